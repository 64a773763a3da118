"""What score models read, against transformers and plain PyTorch on ids made by hand."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from constrained_rl.errors import InputError
from llm_env.collectors import Responses
from llm_env.control_tokens import encode_said
from llm_env.preferences import CostPair, RewardPair
from llm_env.prompts import set_prompt_format, with_prompt_format
from llm_env.score_formats import load_score_model, save_beaver
from llm_env.score_functions import load_scores, load_text_scores
from llm_env.score_rows import ReadAs, ReadingNotice, note, score_rows
from llm_env.score_sources import CostSource, ScoreSource
from llm_env.score_training import ScoreConfig, label_pairs, score_accuracy, train_score_model
from llm_env.scoring import ScoreModel, score_texts
from llm_env.sft import SFTConfig, encode_demonstrations
from llm_env.tokens import encode_pairs, encode_prompts, join, pad
from tests.llm_env.data_files import pku, write
from tests.llm_env.tiny import word_tokenizer

CPU = torch.device("cpu")
SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", "<|h|>", "<|end|>", "<think>", "</think>")
BOS, END, PAD, UNK, _, TURN, *_ = range(len(SPECIAL))
TEXT = (
    "how do I bake bread with the flour that I have in the kitchen ?",
    "BEGINNING OF CONVERSATION: USER: what is the best way ASSISTANT:Sorry, you can not do it",
    "ASSISTANT:you can do other things",
) * 4
TEMPLATE = (
    "{% for m in messages %}<|h|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant\n{% endif %}"
)
THINKING = TEMPLATE.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ (m.content.split('</think>') | last) | trim }}",
)


def of_bytes(raw):
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return {"initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet())}


def of_sentence_pieces(raw):
    """As Llama's tokenizer.json: no words, a space before every text, merges across words."""
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(strip)
    return {"initial_alphabet": sorted(set("".join(TEXT) + "▁</>s|hed"))}


def tokenizer(kind=of_bytes, *, behind="", template=None, eos="</s>", padding="<pad>"):
    """A trained tokenizer that begins every text with <s> and puts `behind` after it."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    alphabet = kind(raw)
    trainer = BpeTrainer(
        vocab_size=340, special_tokens=list(SPECIAL), show_progress=False, **alphabet
    )
    raw.train_from_iterator(TEXT, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single=f"<s> $A {behind}".strip(),
        special_tokens=[(token, raw.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    found = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token=eos, pad_token=padding, unk_token="<unk>"
    )
    found.chat_template = template
    return found


def trunk(words, head=LlamaForCausalLM, seed=0, **settings):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **settings,
    )
    model = head(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


def score_model(words, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ScoreModel.from_causal_lm(trunk(words, seed=seed), generator=generator)


def beaver(folder, words, score_type="reward", **config):
    save_beaver(score_model(words), folder, score_type, words)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **config}))
    return folder


def classifier(folder, words):
    model = trunk(words, LlamaForSequenceClassification, num_labels=1)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return model


@torch.no_grad()
def read(model, rows):
    """First scores of rows of ids: the hidden state of the last, times the head."""
    found = []
    for row in rows:
        hidden = model.backbone(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
        found.append(hidden @ model.head.weight[0] + model.head.bias[0])
    return torch.stack(found)


@torch.no_grad()
def logits(model, rows):
    return torch.stack([model(input_ids=torch.tensor([row])).logits[0, 0] for row in rows])


def reward(folder, **settings):
    told = {"direction": "higher_is_better", "sign_check": "off"}
    return ScoreSource(path=str(folder), **told, **settings)


def in_use(folder, prompts, responses, **settings):
    """The scores that a folder's model gives."""
    scores = load_text_scores({"r": reward(folder, **settings)}, CPU)
    return scores(prompts, responses)["r"]


def same(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.std() > 1e-3  # it is no constant


def generated(words, prompts, rows):
    ids, attention = encode_prompts(words, prompts, 100)
    return Responses(join(ids, attention, *pad(rows, PAD, left=False)), prompts, words)


ASKED = ["how do I bake bread ?", "what is the best way", "you"]
SAID = ["Sorry, you can not", "do other things", "I have flour"]
PAIRS = [CostPair(p, a, "no " + a, 1, -1) for p, a in zip(ASKED, SAID, strict=True)]


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
    same(in_use(tmp_path, ASKED, SAID), read(model, rows))
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
    scores = load_text_scores({"r": reward(tmp_path, tokenizer="policy")}, CPU, policy)
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


# control tokens in what somebody says


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
