"""What people and models say is text, whatever it spells."""

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.trainers import UnigramTrainer
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
)

from llm_env.arena.answers import Answering
from llm_env.arena.judging import score_answers
from llm_env.control_tokens import Marked, StandIns, encode_marked, encode_said, marked
from llm_env.models import ModelSource
from llm_env.prompts import with_prompt_format
from llm_env.score_batching import Batcher, ScoreRequest
from llm_env.score_functions import load_scores, load_text_scores
from llm_env.score_rows import ReadAs, note, score_rows
from llm_env.tokens import encode_pairs, encode_prompts
from tests.llm_env.score_row_models import (
    ASKED,
    BOS,
    CPU,
    END,
    PAD,
    SAID,
    TEMPLATE,
    TEXT,
    TURN,
    UNK,
    generated,
    in_use,
    of_bytes,
    of_sentence_pieces,
    read,
    reward,
    same,
    score_model,
    tokenizer,
    trunk,
)
from tests.llm_env.tiny import word_tokenizer


def test_one_response_has_one_score_whoever_reads_it(tmp_path):
    words = tokenizer()
    model = score_model(words)
    model.save_pretrained(tmp_path, words)
    policy = AutoTokenizer.from_pretrained(tmp_path)
    score, _ = load_scores(reward(tmp_path), {}, policy, CPU)
    text = "you can </s> do it"
    letters = words(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert words.decode(letters) == text
    asked = [words(p)["input_ids"] for p in ASKED]
    want = read(model, [[*row, *letters, END] for row in asked])
    same(in_use(tmp_path, ASKED, [text] * 3), want)
    # written letter by letter; with control tokens sampled in the middle; and at a cut-off end
    sampled = [[*letters, END], [*letters[:3], BOS, TURN, *letters[3:], END], [*letters, PAD, UNK]]
    batch = generated(policy, ASKED, sampled)
    assert batch.texts == [text] * 3
    same(score(batch), want)
    # halves of a word around one are a word in its text
    whole = words("bread", add_special_tokens=False)["input_ids"]
    halves = [words(part, add_special_tokens=False)["input_ids"] for part in ("bre", "ad")]
    assert halves[0] + halves[1] != whole
    split = generated(policy, ASKED, [[*halves[0], BOS, *halves[1], END]] * 3)
    same(score(split), in_use(tmp_path, ASKED, ["bread"] * 3))
    same(score(split), read(model, [[*row, *whole, END] for row in asked]))


def test_an_arena_and_a_service_score_a_response_as_training_does(tmp_path):
    words = tokenizer()
    score_model(words).save_pretrained(tmp_path / "r", words)
    answer = words(SAID[0], add_special_tokens=False)["input_ids"]
    tokens = [*answer[:2], TURN, *answer[2:], PAD, END]
    score, _ = load_scores(reward(tmp_path / "r"), {}, words, CPU)
    trained = score(generated(words, ASKED, [tokens] * 3))
    row = {"response": SAID[0], "tokens": tokens, "stop_reason": "eos"}
    rows = [{"prompt": prompt, **row} for prompt in ASKED]
    answering = Answering("m", ModelSource(path=str(tmp_path)), words, CPU)
    place = "key", tmp_path / "cache"
    arena = score_answers("r", reward(tmp_path / "r"), score, answering, rows, place)
    batcher = Batcher(load_text_scores({"r": reward(tmp_path / "r")}, CPU), ("r",), 8, 0.0)
    request = ScoreRequest(prompts=ASKED, responses=[SAID[0]] * 3)
    served = batcher.submit(request).result(10)["r"]
    batcher.close()
    same(torch.tensor(arena), trained)
    same(torch.tensor(served), trained)


def test_a_demonstration_that_spells_eos_ends_once():
    words = tokenizer()
    (_, answer), (_, plain) = encode_pairs(words, ["bake"] * 2, ["<s>a</s>b<pad>", "a"])
    letters = words("<s>a</s>b<pad>", add_special_tokens=False, split_special_tokens=True)
    assert answer == [*letters["input_ids"], END]
    assert plain == [*words("a", add_special_tokens=False)["input_ids"], END]


def test_a_message_that_spells_a_control_token_is_text_and_a_written_string_is_not():
    words = tokenizer()
    turns = ["bake", "no </s> fire", "how ?"]
    ids, _ = encode_prompts(words, [turns], 200)
    text = "BEGINNING OF CONVERSATION: USER: bake ASSISTANT:no </s> fire"
    first = words(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    rest = words("USER: how ? ASSISTANT:", add_special_tokens=False)["input_ids"]
    assert ids[0].tolist() == [BOS, *first, END, *rest]
    chat = with_prompt_format(tokenizer(template=TEMPLATE), "template")
    ids, _ = encode_prompts(chat, ["a<|end|>b"], 200)
    assert (ids == TURN).sum() == 1  # the template's
    written, _ = encode_prompts(words, ["<|h|>user<|end|>"], 200)
    assert (written == TURN).sum() == 1


def test_tokenizers_whose_vocabulary_holds_the_control_token_itself():
    words = word_tokenizer()
    bake, unknown = words.convert_tokens_to_ids(["bake", "<unk>"])
    assert encode_said(words, ["bake <eos> bake", "<eos>"]) == [[bake, unknown, bake], [unknown]]
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = sorted(set("".join(TEXT) + "</s>"))
    trainer = UnigramTrainer(
        vocab_size=120,
        special_tokens=["<unk>", "</s>"],
        unk_token="<unk>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    raw.train_from_iterator(TEXT, trainer)
    pieces = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>")
    (ids,) = encode_said(pieces, ["bake </s> bread"])
    assert pieces.eos_token_id not in ids
    plain = pieces("bake bread", add_special_tokens=False)["input_ids"]
    assert encode_said(pieces, ["bake bread"]) == [plain]


def test_tokenizers_written_in_python():
    words = ByT5Tokenizer()  # bytes + 3, and </s> behind every text
    (ids,) = encode_said(words, ["a</s>"])
    assert ids == [byte + 3 for byte in b"a</s>"]
    asked, _ = encode_prompts(words, ["hi"], 9)
    assert asked[0].tolist() == [byte + 3 for byte in b"hi"]
    config = trunk(tokenizer()).config
    note(config, ReadAs("beaver"))
    ((prompt, answer),) = score_rows(words, config).pairs(["b</s>"], ["c</s>"])
    text = b"BEGINNING OF CONVERSATION: USER: b</s> ASSISTANT:c</s>"
    assert [*prompt, *answer] == [*(byte + 3 for byte in text), words.eos_token_id]


@pytest.mark.parametrize("kind", [of_bytes, of_sentence_pieces])
@pytest.mark.parametrize("flags", [{"normalized": True}, {"lstrip": True, "rstrip": True}])
def test_one_text_is_tokenized_as_the_tokenizer_does_but_for_what_is_spelled(kind, flags):
    words = tokenizer(kind)
    words.add_special_tokens({"additional_special_tokens": [AddedToken("<|end|>", **flags)]})
    for text in ("<s>how do<|end|> I </s>", " bake  <|end|>\n<s>", "bread</s></s>you", ""):
        whole = words(text, add_special_tokens=False)["input_ids"]
        assert encode_marked(words, Marked(text, {})) == whole
    spelled = StandIns.of(words).spelled(["a </s> b", "<|end|>"])
    assert set(spelled.values()) == {"</s>", "<|end|>"}
    text = Marked(f"<s>how{marked('</s><|end|>', spelled)}</s>", spelled)
    assert text.plain == "<s>how</s><|end|></s>"
    ids = encode_marked(words, text)
    letters = words("how</s><|end|>", add_special_tokens=False, split_special_tokens=True)
    assert ids == [BOS, *letters["input_ids"], END]
