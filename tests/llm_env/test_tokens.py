import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_rl.errors import InputError
from llm_env.tokens import (
    TokenRows,
    check_tokenizer,
    decode_responses,
    encode_pairs,
    encode_prompts,
    join,
    last_real,
    pad,
    pair_rows,
    position_ids,
)
from tests.llm_env.tiny import EOS, word_tokenizer


def test_prompts_are_padded_on_the_left_and_the_mask_comes_from_construction():
    tokenizer = word_tokenizer()
    ids, attention = encode_prompts(tokenizer, ["how do i trap a fox ?", "bake bread ."], 7)
    bake, bread, stop = tokenizer.convert_tokens_to_ids(["bake", "bread", "."])
    assert ids[1].tolist() == [0, 0, 0, 0, bake, bread, stop]
    assert attention[0].all()
    assert attention[1].tolist() == [False] * 4 + [True] * 3


def test_a_prompt_longer_than_the_context_is_named_with_its_length_and_the_limit():
    with pytest.raises(InputError, match=r"prompt 1 has 7 tokens, the limit is 3"):
        encode_prompts(word_tokenizer(), ["bake bread .", "how do i trap a fox ?"], 3)


def test_empty_prompts_are_refused():
    with pytest.raises(InputError, match=r"prompt 1 .* has no tokens"):
        encode_prompts(word_tokenizer(), ["bake bread .", " "], 9)
    with pytest.raises(InputError, match="no prompts"):
        encode_prompts(word_tokenizer(), [], 9)


def test_a_missing_pad_becomes_eos_and_a_missing_eos_is_an_error_with_its_cure():
    bare = word_tokenizer(pad=False)
    check_tokenizer(bare)
    assert bare.pad_token_id == bare.eos_token_id == bare.unk_token_id == EOS
    bare.eos_token = None
    with pytest.raises(InputError, match=r"tokenizer\.eos_token ="):
        check_tokenizer(bare)


def test_positions_do_not_count_left_padding():
    attention = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]).bool()
    # row 0: 0 real tokens, 0, then 1, 2, 3 of them: cumsum − 1, at least 0
    assert position_ids(attention).tolist() == [[0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 3, 3]]
    assert last_real(attention).tolist() == [4, 3]


def test_a_row_without_tokens_has_no_end():
    with pytest.raises(InputError, match="row 1 holds no real token"):
        last_real(torch.tensor([[True, False], [False, False]]))


def test_rows_join_prompt_and_response_and_can_be_selected():
    rows = pair_rows([([5, 6], [7, EOS]), ([8], [EOS])], pad_id=EOS)
    assert rows.ids.tolist() == [[5, 6, 7, EOS], [EOS, 8, EOS, EOS]]
    assert rows.attention.tolist() == [[True] * 4, [False, True, True, False]]
    assert (rows.prompt_width, rows.decisions, len(rows)) == (2, 2, 2)
    picked = rows[torch.tensor([1])]
    assert picked.response_ids.tolist() == [[EOS, EOS]]
    assert picked.response_mask.tolist() == [[True, False]]
    assert picked.position_ids.tolist() == [[0, 0, 1, 1]]
    assert len(rows[:1]) == 1


def test_rows_refuse_shapes_that_cannot_be_meant():
    with pytest.raises(InputError, match="one shape"):
        TokenRows(torch.zeros(2, 3).long(), torch.ones(2, 2).bool(), 1)
    with pytest.raises(InputError, match="prompt_width is 0"):
        TokenRows(torch.zeros(2, 3).long(), torch.ones(2, 3).bool(), 0)


def test_only_the_response_is_decoded_and_its_spaces_stay():
    tokenizer = word_tokenizer()
    (prompt, answer), (_, short) = encode_pairs(
        tokenizer, ["how do i bake ?", "no"], ["use the fire .", ""]
    )
    assert answer[-1] == EOS
    assert short == [EOS]
    rows = pair_rows([(prompt, answer), (prompt, short)], tokenizer.pad_token_id)
    texts = decode_responses(tokenizer, rows.response_ids, rows.response_mask)
    assert texts == ["use the fire .", ""]


def test_pairs_that_do_not_fit_are_named():
    with pytest.raises(InputError, match=r"pair 0 has 2 \+ 3 tokens .* limit is 4"):
        encode_pairs(word_tokenizer(), ["bake bread"], ["no ."], max_tokens=4)
    with pytest.raises(InputError, match="1 prompts but 2 responses"):
        encode_pairs(word_tokenizer(), ["bake"], ["no", "yes"])


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 9),
)
def test_padding_keeps_the_tokens_of_every_row(rows, left, pad_id):
    ids, attention = pad(rows, pad_id, left=left)
    assert [row[keep].tolist() for row, keep in zip(ids, attention, strict=True)] == rows
    assert (ids[torch.arange(len(rows)), last_real(attention)]).tolist() == [r[-1] for r in rows]


def test_joining_makes_masks_boolean():
    rows = join(
        torch.ones(1, 2).long(), torch.ones(1, 2), torch.ones(1, 1).long(), torch.ones(1, 1)
    )
    assert rows.attention.dtype == torch.bool
