import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_rl.errors import InputError
from llm_env.scoring import ScoreModel, TokenCritic, model_scores, score_texts
from llm_env.tokens import encode_pairs, join, pad, pair_rows
from tests.llm_env.tiny import EOS, FAMILIES, causal_lm, ragged_prompts, word_tokenizer


def score_model(family="llama", heads=2, seed=0):
    return ScoreModel.from_causal_lm(
        causal_lm(family), heads, generator=torch.Generator().manual_seed(seed)
    )


GPT2 = score_model("gpt2")  # absolute positions, pad = eos


@pytest.mark.parametrize("family", FAMILIES)
def test_end_score_is_the_score_of_the_unpadded_row_on_either_side(family):
    model = score_model(family)
    rows = [[5, 6, 7, EOS], [8, EOS], [EOS]]
    with torch.no_grad():
        alone = torch.stack([model(torch.tensor([r]), torch.ones(1, len(r)))[0, -1] for r in rows])
        for left in (True, False):
            ids, attention = pad(rows, EOS, left=left)
            torch.testing.assert_close(model.end_score(ids, attention), alone, atol=1e-5, rtol=1e-5)
    assert alone.shape == (3, 2)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.lists(st.integers(0, 21), min_size=1, max_size=5), min_size=1, max_size=4),
    st.integers(0, 4),
    st.integers(0, 4),
    st.randoms(use_true_random=False),
)
def test_padding_and_order_change_no_end_score(rows, before, after, random):
    ids, attention = pad(rows, EOS, left=False)
    wide = torch.nn.functional.pad(ids, (before, after), value=EOS)
    wide_attention = torch.nn.functional.pad(attention, (before, after), value=False)
    order = random.sample(range(len(rows)), len(rows))
    with torch.no_grad():
        expected = GPT2.end_score(ids, attention)[order]
        found = GPT2.end_score(wide[order], wide_attention[order])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_score_model_copies_the_trunk_and_a_zero_head_scores_zero():
    model = causal_lm()
    scores = ScoreModel.from_causal_lm(model, 3, zero_init=True)
    ids, attention = ragged_prompts()
    assert scores(ids, attention).shape == (5, 6, 3)
    assert scores(ids, attention).eq(0).all()
    with torch.no_grad():
        scores.backbone.embed_tokens.weight.zero_()
    assert model.get_input_embeddings().weight.abs().sum() > 0


def test_the_head_comes_from_the_generator_alone():
    before = torch.get_rng_state()
    first, second = score_model(seed=3), score_model(seed=3)
    assert torch.equal(first.head.weight, second.head.weight)
    causal = causal_lm()
    before = torch.get_rng_state()
    ScoreModel.from_causal_lm(causal, generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_scores_are_float32_whatever_the_trunk_computes_in():
    scores = ScoreModel.from_causal_lm(causal_lm().bfloat16())
    assert scores(*ragged_prompts()).dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_saved_models_score_the_same_when_loaded(family, tmp_path):
    model = score_model(family)
    model.save_pretrained(tmp_path / "m")
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert {"config.json", "model.safetensors", "score_head.safetensors"} <= names
    loaded = ScoreModel.from_pretrained(tmp_path / "m")
    assert torch.equal(loaded(*ragged_prompts()), model(*ragged_prompts()))


def test_a_directory_without_a_head_is_no_score_model(tmp_path):
    with pytest.raises(InputError, match=r"score_head\.safetensors is missing"):
        ScoreModel.from_pretrained(tmp_path)


def test_the_critic_values_the_state_before_each_decision():
    model = score_model("gpt2", heads=3)
    critic = TokenCritic(model)
    ids, attention = ragged_prompts()
    response = torch.randint(4, 20, (5, 4), generator=torch.Generator().manual_seed(0))
    rows = join(ids, attention, response, torch.ones(5, 4).bool())
    values = critic(rows)
    assert values.shape == (5, 4, 3)
    # decision t is taken from the token at P − 1 + t
    everywhere = model(rows.ids, rows.attention)
    torch.testing.assert_close(values, everywhere[:, 5:9], atol=1e-5, rtol=1e-5)
    # a value does not know the decision: another action changes no value up to its own
    other = rows.ids.clone()
    other[:, 6 + 2] = 4
    changed = critic(type(rows)(other, rows.attention, rows.prompt_width))
    torch.testing.assert_close(changed[:, :3], values[:, :3])
    critic.update_statistics(None)


def test_texts_and_token_rows_have_one_score():
    tokenizer, model = word_tokenizer(), score_model()
    prompts = ["how do i trap a fox ?", "bake bread ."] * 3
    responses = ["no .", "use the fire .", "", "yes", "sorry no", "use a cat"]
    rows = pair_rows(encode_pairs(tokenizer, prompts, responses), tokenizer.pad_token_id)
    scores = score_texts(model, tokenizer, prompts, responses, batch_size=4)
    assert scores.shape == (6,)
    torch.testing.assert_close(scores, model_scores(model, rows), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores, model_scores(model, rows, 4), atol=1e-5, rtol=1e-5)


def test_the_final_eos_is_scored_in_a_family_whose_pad_and_unk_are_eos():
    # the reference implementation drops this eos and scores the token before it
    tokenizer = word_tokenizer(pad=False)
    tokenizer.pad_token = tokenizer.eos_token
    score = score_texts(GPT2, tokenizer, ["bake"], ["bread"])
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(["bake", "bread", "<eos>"])])
    with torch.no_grad():
        expected = GPT2(ids, torch.ones_like(ids))[0, -1, 0]
    torch.testing.assert_close(score[0], expected)


def test_texts_beyond_the_context_are_refused_with_their_length():
    with pytest.raises(InputError, match=r"pair 1 has 1 \+ 71 tokens .* limit is 64"):
        score_texts(GPT2, word_tokenizer(), ["bake", "bake"], ["no", "no " * 70])
