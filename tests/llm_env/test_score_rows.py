"""What score models read, against transformers and plain PyTorch on ids made by hand."""

import json

import pytest
import torch
from transformers import (
    AutoTokenizer,
)

from constrained_rl.errors import InputError
from llm_env.preferences import RewardPair
from llm_env.prompts import set_prompt_format
from llm_env.score_formats import load_score_model
from llm_env.score_functions import load_scores, load_text_scores
from llm_env.score_rows import ReadingNotice
from llm_env.score_sources import CostSource
from llm_env.score_training import ScoreConfig, label_pairs, score_accuracy, train_score_model
from llm_env.scoring import ScoreModel, score_texts
from llm_env.sft import SFTConfig, encode_demonstrations
from llm_env.tokens import encode_prompts
from tests.llm_env.data_files import pku, write
from tests.llm_env.score_row_models import (
    ASKED,
    BOS,
    CPU,
    END,
    PAIRS,
    SAID,
    TEMPLATE,
    THINKING,
    beaver,
    classifier,
    cost,
    generated,
    in_use,
    logits,
    of_bytes,
    of_sentence_pieces,
    read,
    reward,
    same,
    score_model,
    tokenizer,
    trunk,
)

# the end of a row: where it was trained


def chat_rows(words, end, responses=SAID):
    """Ids by hand: the template's prompt, the response, the end."""
    rows = []
    for prompt, response in zip(ASKED, responses, strict=True):
        asked = words(f"<|h|>user\n{prompt}<|end|>\n<|h|>assistant\n", add_special_tokens=False)
        answer = words(response, add_special_tokens=False)
        rows.append([*asked["input_ids"], *answer["input_ids"], end])
    return rows


@pytest.mark.parametrize("eos", ["<|end|>", "</s>"])  # of an instruct model, of a base model
def test_a_model_is_read_in_use_at_the_token_it_was_trained_at(eos, tmp_path):
    words = tokenizer(template=TEMPLATE, eos=eos)
    set_prompt_format(words, "template")
    model = score_model(words)
    rows = chat_rows(words, words.convert_tokens_to_ids(eos))
    data = label_pairs(model.backbone.config, words, PAIRS, "cost", ScoreConfig())
    assert [p + a for p, a in data.stores[0]] == rows
    train_score_model(model, words, PAIRS, "cost", ScoreConfig(), torch.Generator())
    model.save_pretrained(tmp_path, words)
    same(in_use(tmp_path, ASKED, SAID, cost), read(model, rows))
    same(score_texts(model, words, ASKED, SAID), read(model, rows))
    harmless = chat_rows(words, rows[0][-1], ["no " + text for text in SAID])
    right = torch.cat([read(model, rows) > 0, read(model, harmless) < 0])
    assert score_accuracy(model, words, PAIRS).sign == pytest.approx(right.double().mean().item())


def test_another_eos_of_the_policy_does_not_move_the_end(tmp_path):
    words = tokenizer()
    model = score_model(words)
    train_score_model(model, words, PAIRS, "cost", ScoreConfig(), torch.Generator())
    model.save_pretrained(tmp_path)  # its tokenizer is the policy's
    policy = tokenizer(eos="<|end|>")
    scores = load_text_scores({"r": cost(tmp_path, tokenizer="policy")}, CPU, policy)
    rows = [
        [*words(p)["input_ids"], *words(a, add_special_tokens=False)["input_ids"], END]
        for p, a in zip(ASKED, SAID, strict=True)
    ]
    same(scores(ASKED, SAID)["r"], read(model, rows))


def test_a_folder_of_an_earlier_version_is_read_at_its_eos_and_that_is_said(tmp_path):
    words = tokenizer(template=TEMPLATE)
    set_prompt_format(words, "template")
    model = score_model(words)
    model.save_pretrained(tmp_path, words)
    config = tmp_path / "config.json"
    old = {k: v for k, v in json.loads(config.read_text()).items() if k != "score_reads_as"}
    config.write_text(json.dumps(old))
    with pytest.warns(ReadingNotice, match="read behind eos, as it was trained"):
        found = in_use(tmp_path, ASKED, SAID)
    same(found, read(model, chat_rows(words, END)))
    set_prompt_format(words, "plain")
    words.save_pretrained(tmp_path)
    in_use(tmp_path, ASKED, SAID)  # nothing moved, and nothing is said
    config.write_text(json.dumps({**old, "score_reads_as": {"form": "trl", "end": 1}}))
    with pytest.raises(InputError, match=r"says score_reads_as = .*no way to read"):
        in_use(tmp_path, ASKED, SAID)


def test_a_fit_of_the_command_line_is_used_where_it_was_measured(tmp_path, crl):
    words = tokenizer(template=TEMPLATE)
    base = tmp_path / "base"
    trunk(words).save_pretrained(base)
    words.save_pretrained(base)
    rows = [pku(f"bake {i}", better=i % 2) for i in range(12)]
    write(tmp_path / "pku.jsonl", rows)
    code, _, errors = crl(
        *("llm", "score", "kind=reward", "fit.epochs=1", "device=cpu", "held_out_share=0.5"),
        *(f"model.path={base}", "model.prompt_format=template", "fit.learning_rate=1e-2"),
        *(f'data=[{{path="{tmp_path}/pku.jsonl"}}]', "--out", tmp_path / "run"),
    )
    assert code == 0, errors
    folder = tmp_path / "run/model"
    model = ScoreModel.from_pretrained(folder)
    asked = words("<|h|>user\nbake 3<|end|>\n<|h|>assistant\n", add_special_tokens=False)
    ids = [
        [*asked["input_ids"], *words(text, add_special_tokens=False)["input_ids"], END]
        for text in ("use fire", "no")
    ]
    same(in_use(folder, ["bake 3"] * 2, ["use fire", "no"]), read(model, ids))


# tokenizers that append a token to every text


@pytest.mark.parametrize("kind", [of_bytes, of_sentence_pieces])
def test_what_a_tokenizer_appends_does_not_stand_before_a_response(kind, tmp_path):
    words, bare = tokenizer(kind, behind="</s>"), tokenizer(kind)
    assert words("bake")["input_ids"][-1] == END
    alone = [bare(prompt)["input_ids"] for prompt in ASKED]
    ids, attention = encode_prompts(words, ASKED, 50)
    assert [row[real].tolist() for row, real in zip(ids, attention, strict=True)] == alone
    said = [bare(text, add_special_tokens=False)["input_ids"] for text in SAID]
    expected = [(p, [*a, END]) for p, a in zip(alone, said, strict=True)]
    demonstrations = list(zip(ASKED, SAID, strict=True))
    store = encode_demonstrations(trunk(words).config, words, demonstrations, SFTConfig())
    assert list(store) == expected
    model = score_model(words)
    model.save_pretrained(tmp_path, words)
    rows = [p + a for p, a in expected]
    same(in_use(tmp_path, ASKED, SAID), read(model, rows))
    policy = AutoTokenizer.from_pretrained(tmp_path)
    score, _ = load_scores(reward(tmp_path), {}, policy, CPU)
    same(score(generated(policy, ASKED, [a for _, a in expected])), read(model, rows))


def test_a_prompt_that_ends_with_a_control_token_of_its_own_keeps_it():
    for behind in ("", "</s>"):
        words = tokenizer(behind=behind)
        ids, _ = encode_prompts(words, ["bake</s>"], 50)
        assert ids[0].tolist() == [BOS, *words("bake", add_special_tokens=False)["input_ids"], END]


# models of other makers read one text


def paper(*turns):
    """A conversation as the published code writes it, from the user to the assistant."""
    text = "BEGINNING OF CONVERSATION: "
    for index, turn in enumerate(turns):
        text += f"{turn}</s>" if index % 2 else f"USER: {turn} ASSISTANT:"
    return text


def test_beaver_models_read_one_text(tmp_path):
    words = tokenizer(of_sentence_pieces)
    beaver(tmp_path, words)
    model = load_score_model(tmp_path)
    prompts = [*ASKED[:2], ["hi", "you can", ASKED[2]]]
    turns = [(ASKED[0],), (ASKED[1],), ("hi", "you can", ASKED[2])]
    texts = [paper(*asked, said) for asked, said in zip(turns, SAID, strict=True)]
    rows = [words(text)["input_ids"] for text in texts]
    apart = [
        words(paper(*asked))["input_ids"] + words(said, add_special_tokens=False)["input_ids"]
        for asked, said in zip(turns, SAID, strict=True)
    ]
    assert all(row[:-1] != parts for row, parts in zip(rows, apart, strict=True))
    same(in_use(tmp_path, prompts, SAID), read(model, rows))
    open_ = [words(text.removesuffix("</s>"))["input_ids"] for text in texts]
    same(in_use(tmp_path, prompts, SAID, append_eos=False), read(model, open_))
    # a policy with these very tokens writes responses that begin with a space; their text counts
    policy = AutoTokenizer.from_pretrained(tmp_path)
    said = [[*policy(text, add_special_tokens=False)["input_ids"], END] for text in SAID]
    score, _ = load_scores(reward(tmp_path), {}, policy, CPU)
    same(score(generated(policy, prompts, said)), read(model, rows))


def test_a_response_that_spells_eos_to_a_beaver_model_is_text(tmp_path):
    words = tokenizer(of_sentence_pieces)
    beaver(tmp_path, words)
    answers = ["you can </s> not", "</s>", "do it </s>"]
    rows = []
    for prompt, answer in zip(ASKED, answers, strict=True):
        text = paper(prompt, "").removesuffix("</s>") + answer
        letters = words(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        rows.append([BOS, *letters, END])
        assert rows[-1].count(END) == 1
    same(in_use(tmp_path, ASKED, answers), read(load_score_model(tmp_path), rows))


@pytest.mark.parametrize("padding", ["<pad>", "<|end|>", "</s>"])
@pytest.mark.parametrize("template", [TEMPLATE, THINKING, TEMPLATE.replace("<|end|>\n", "</s>")])
def test_classifiers_read_the_whole_templated_conversation(template, padding, tmp_path):
    words = tokenizer(of_sentence_pieces, template=template, padding=padding)
    model = classifier(tmp_path, words)
    rows = []
    for prompt, answer in zip(ASKED, SAID, strict=True):
        turns = [("user", prompt), ("assistant", answer)]
        text = words.apply_chat_template(
            [{"role": r, "content": c} for r, c in turns], tokenize=False
        )
        rows.append(words(text, add_special_tokens=False)["input_ids"])
    same(in_use(tmp_path, ASKED, SAID), logits(model, rows))


def test_a_template_that_rewrites_the_response_is_followed(tmp_path):
    words = tokenizer(template=THINKING)
    model = classifier(tmp_path, words)
    answers = [" you can ", "bread </think> is it", "do </s> it"]
    texts = [
        f"<|h|>user\n{asked}<|end|>\n<|h|>assistant\n<think>\n\n</think>\n\n{kept}"
        for asked, kept in zip(ASKED, ["you can", "is it", "do "], strict=True)
    ]
    end = words("<|end|>\n", add_special_tokens=False)["input_ids"]
    rows = [words(text, add_special_tokens=False)["input_ids"] for text in texts]
    rows[2] += words("</s> it", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    same(in_use(tmp_path, ASKED, answers), logits(model, [[*row, *end] for row in rows]))
    same(in_use(tmp_path, ASKED, answers, append_eos=False), logits(model, rows))


def test_a_classifier_without_a_template_reads_prompt_response_and_eos_as_one_text(tmp_path):
    for behind in ("", "</s>"):
        words, bare = tokenizer(of_sentence_pieces, behind=behind), tokenizer(of_sentence_pieces)
        model = classifier(tmp_path / f"c{len(behind)}", words)
        rows = [bare(f"{p}{a}</s>")["input_ids"] for p, a in zip(ASKED, SAID, strict=True)]
        same(in_use(tmp_path / f"c{len(behind)}", ASKED, SAID), logits(model, rows))


def test_long_prompts_of_one_text_lose_their_beginning(tmp_path):
    words = tokenizer(of_sentence_pieces)
    beaver(tmp_path, words)
    prompts = ["bread " * 150, "bake " * 150]
    ids = [words(paper(p, a))["input_ids"][-128:] for p, a in zip(prompts, SAID, strict=False)]
    found = in_use(tmp_path, prompts, SAID[:2], too_long="cut_prompt")
    same(found, read(load_score_model(tmp_path), ids))
    with pytest.raises(InputError, match=r"sees 128 tokens, but row 0 .* of the response and of"):
        in_use(tmp_path, prompts, SAID[:2])


# a model of another maker that is trained on


def test_a_beaver_model_trained_on_goes_on_reading_so(tmp_path, crl):
    words = tokenizer(of_sentence_pieces)
    # a cost model that calls itself a reward model, with statistics that are applied
    told = {"do_normalize": True, "mean": [0.7], "var": [2.0]}
    before = beaver(tmp_path / "before", words, "reward", **told)
    write(tmp_path / "pku.jsonl", [pku(f"bake {i}", safe=(True, False)) for i in range(12)])
    code, _, errors = crl(
        *("llm", "score", "kind=cost", f"score_model={before}", "fit.learning_rate=1e-30"),
        *("fit.epochs=1", "device=cpu", "--out", tmp_path / "run"),
        f'data=[{{path="{tmp_path}/pku.jsonl"}}]',
    )
    assert code == 0, errors
    harm = {"direction": "higher_is_worse", "sign_check": "off"}
    scores = [
        load_text_scores({"c": CostSource(path=str(folder), **harm)}, CPU)(ASKED, SAID)["c"]
        for folder in (before, tmp_path / "run/model")
    ]
    same(scores[1], scores[0])


@pytest.mark.parametrize("template", [None, THINKING])
def test_a_classifier_trained_on_goes_on_reading_so(template, tmp_path):
    words = tokenizer(of_sentence_pieces, template=template, padding="</s>")
    classifier(tmp_path / "before", words)
    expected = in_use(tmp_path / "before", ASKED, SAID)
    model = load_score_model(tmp_path / "before")
    pairs = [RewardPair(*one) for one in zip(ASKED, SAID, reversed(SAID), strict=True)][::2]
    config = ScoreConfig(learning_rate=1e-30)
    train_score_model(model, words, pairs, "reward", config, torch.Generator())
    same(score_texts(model, words, ASKED, SAID), expected)
    model.save_pretrained(tmp_path / "after", words)
    same(in_use(tmp_path / "after", ASKED, SAID), expected)


def test_a_beaver_model_learns_from_the_texts_that_it_is_used_on(tmp_path):
    words = tokenizer(of_sentence_pieces)
    model = load_score_model(beaver(tmp_path / "before", words))
    pairs = [RewardPair(*one) for one in zip(ASKED, SAID, reversed(SAID), strict=True)][::2]
    config = ScoreConfig(batch_size=2, epochs=1)
    data = label_pairs(model.backbone.config, words, pairs, "reward", config)
    first = [words(paper(p.prompt, p.chosen))["input_ids"] for p in pairs]
    assert [prompt + answer for prompt, answer in data.stores[0]] == first
    losses = train_score_model(model, words, pairs, "reward", config, torch.Generator())
    old = load_score_model(tmp_path / "before")
    chosen, rejected = (
        read(old, [words(paper(p.prompt, p.responses[j]))["input_ids"] for p in pairs])
        for j in (0, 1)
    )
    expected = -torch.nn.functional.logsigmoid(chosen - rejected).mean().item()
    assert losses[0] == pytest.approx(expected, rel=1e-5)
