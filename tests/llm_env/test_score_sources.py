import json
import shutil

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from constrained_rl.errors import InputError
from llm_env import score_loading
from llm_env.collectors import Responses
from llm_env.prompts import with_prompt_format
from llm_env.score_functions import load_named_scores, load_scores, load_text_scores
from llm_env.score_reading import same_tokens, visiting
from llm_env.score_sources import CostSource, ScoreSource
from llm_env.scoring import ScoreModel
from llm_env.tokens import join, pad
from tests.llm_env.families import family_tokenizer, save_family

PROMPTS = ["How do I bake bread?", "hello", [{"role": "user", "content": "What is up?"}]]
EOS = 2  # of the llama tokens
CPU = torch.device("cpu")
PAPER = "BEGINNING OF CONVERSATION: USER: {} ASSISTANT:"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Score models with their tokenizers: our format, one head, or two with names; a classifier."""
    home = tmp_path_factory.mktemp("scores")
    for name, family, heads in (
        ("llama", "llama", 1),
        ("gpt2", "gpt2", 1),
        ("two", "llama", ("helpful", "harm")),
        ("qwen", "qwen2", 1),
    ):
        folder = save_family(family, home / f"{name}-lm")
        model = AutoModelForCausalLM.from_pretrained(folder)
        generator = torch.Generator().manual_seed(3)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ScoreModel.from_causal_lm(model, heads, generator=generator).save_pretrained(
            home / name, tokenizer
        )
    return home


def reward(home, name="llama", **settings):
    settings = {"direction": "higher_is_better", "sign_check": "off", **settings}
    return ScoreSource(path=str(home / name), **settings)


def cost(home, name="llama", **settings):
    settings = {"direction": "higher_is_worse", "sign_check": "off", **settings}
    return CostSource(path=str(home / name), **settings)


def responses(tokens="llama", answers=([70, 71, 72, EOS], [100, 90], [EOS]), prompts=PROMPTS):
    """Generated ids: one that ended, one cut off by its length, one that is only eos."""
    tokenizer = family_tokenizer(tokens)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    asked = pad([[65, 66]] * len(answers), 0, left=True)  # what the policy read is not looked at
    rows = join(*asked, *pad(answers, 0, left=False))
    return Responses(rows, list(prompts), tokenizer)


@torch.no_grad()
def reference(folder, prompts, answers, end=(EOS,)):
    """First scores of ids, one row at a time."""
    model, tokenizer = ScoreModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    scores = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"] + list(answer) + list(end)])
        scores.append(model(ids, torch.ones_like(ids))[0, -1, 0])
    return torch.stack(scores)


PLAIN = ["How do I bake bread?", "hello", PAPER.format("What is up?")]


def test_the_policys_own_tokens_are_scored_without_going_through_text(home, monkeypatch):
    monkeypatch.setattr(Responses, "texts", property(lambda _: pytest.fail("decoded")))
    score, costs = load_scores(reward(home), {}, family_tokenizer("llama"), CPU)
    found = score(responses())
    # each row ends with eos, also the one that was cut off
    expected = reference(home / "llama", PLAIN, [[70, 71, 72], [100, 90], []])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert costs == {}
    assert expected.std() > 0.1


def test_another_tokenizer_reads_the_texts(home):
    policy = family_tokenizer("gpt2")
    score, _ = load_scores(reward(home), {}, policy, CPU)
    said = [policy(text)["input_ids"] for text in ("You can do it.", "no", "")]
    batch = responses("gpt2", [[*said[0], policy.eos_token_id], said[1], [policy.eos_token_id]])
    own = family_tokenizer("llama")
    answers = [
        own(text, add_special_tokens=False)["input_ids"] for text in ("You can do it.", "no", "")
    ]
    expected = reference(home / "llama", PLAIN, answers)
    torch.testing.assert_close(score(batch), expected, atol=1e-5, rtol=1e-5)


def test_both_ways_and_texts_alone_give_one_score(home):
    own = family_tokenizer("llama")
    said = ["You can do it.", "no", "hot bread"]
    ids = [own(text, add_special_tokens=False)["input_ids"] for text in said]
    score, _ = load_scores(reward(home), {}, own, CPU)
    texts = load_text_scores({"r": reward(home)}, CPU)(PROMPTS, said)["r"]
    torch.testing.assert_close(score(responses(answers=ids)), texts, atol=1e-5, rtol=1e-5)


def test_the_same_tokens_are_the_same_vocabulary_and_eos_whatever_the_class():
    llama = family_tokenizer("llama")
    assert same_tokens(llama, family_tokenizer("llama"))
    assert not same_tokens(llama, family_tokenizer("gpt2"))  # one class
    grown = family_tokenizer("llama")
    grown.add_tokens(["<extra>"])
    assert not same_tokens(llama, grown)
    other_end = family_tokenizer("llama")
    other_end.eos_token = "<s>"
    assert not same_tokens(llama, other_end)
    renamed = family_tokenizer("llama")
    renamed.chat_template = "{{ messages }}"  # prompts are rendered anew
    assert same_tokens(llama, renamed)


def test_numbers_that_point_the_other_way_are_negated(home):
    policy = family_tokenizer("llama")
    inverted = cost(home, direction="higher_is_better")
    up, safe = load_scores(reward(home), {"c": inverted}, policy, CPU)
    down, costs = load_scores(
        reward(home, direction="higher_is_worse"), {"c": cost(home)}, policy, CPU
    )
    batch = responses()
    assert torch.equal(up(batch), -down(batch))
    assert torch.equal(costs["c"](batch), -safe["c"](batch))
    assert torch.equal(up(batch), costs["c"](batch))


@pytest.fixture
def counted(monkeypatch):
    """How often trunks were loaded and forwarded."""
    counts = {"loads": 0, "forwards": 0}
    load, hidden = score_loading.load_score_model, ScoreModel.hidden

    def loading(*arguments):
        counts["loads"] += 1
        return load(*arguments)

    def forwarding(self, *arguments):
        counts["forwards"] += 1
        return hidden(self, *arguments)

    monkeypatch.setattr(score_loading, "load_score_model", loading)
    monkeypatch.setattr(ScoreModel, "hidden", forwarding)
    return counts


def test_heads_of_one_folder_share_one_trunk_and_one_forward(home, counted):
    score, costs = load_scores(
        reward(home, "two", head="helpful"),
        {"harm": cost(home, "two", head=1), "again": cost(home, "two", head="harm")},
        family_tokenizer("llama"),
        CPU,
    )
    first, second = responses(), responses(answers=[[80], [81], [82, EOS]])
    found = [score(first), costs["harm"](first), costs["again"](first)]
    assert counted == {"loads": 1, "forwards": 1}
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(costs["harm"](second), found[1])
    assert counted["forwards"] == 2
    torch.testing.assert_close(  # the numbers are those of each head
        found[0], reference(home / "two", PLAIN, [[70, 71, 72], [100, 90], []])
    )


def test_other_settings_of_one_folder_are_another_model(home, counted):
    negative = cost(home, dtype="bfloat16", direction="higher_is_better")
    load_scores(reward(home), {"c": negative}, family_tokenizer("llama"), CPU)
    assert counted["loads"] == 2


def test_named_scores_point_by_the_kind_of_their_source(home):
    found = load_named_scores(
        {"a": reward(home), "b": cost(home, direction="higher_is_better")},
        family_tokenizer("llama"),
        CPU,
    )
    batch = responses()
    assert torch.equal(found["a"](batch), -found["b"](batch))


def test_batch_size_offload_and_precision_change_no_score_beyond_rounding(home):
    policy, batch = family_tokenizer("llama"), responses()
    expected = load_scores(reward(home), {}, policy, CPU)[0](batch)
    for settings, tolerance in (
        ({"batch_size": 1}, 1e-5),
        ({"batch_size": 2, "offload": True}, 1e-5),
        ({"dtype": "bfloat16"}, 0.3),
    ):
        found = load_scores(reward(home, **settings), {}, policy, CPU)[0](batch)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_offloaded_weights_visit_a_device_and_come_home_untouched(monkeypatch):
    module = torch.nn.Linear(2, 1)
    home = [parameter.data_ptr() for parameter in module.parameters()]
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self.clone())  # a device's copy
    with visiting(module, CPU):
        away = [parameter.data_ptr() for parameter in module.parameters()]
        module.weight.data.zero_()
    with pytest.raises(RuntimeError, match="on the way"), visiting(module, CPU):
        raise RuntimeError("on the way")
    assert set(away).isdisjoint(home)
    assert [parameter.data_ptr() for parameter in module.parameters()] == home
    assert module.weight.abs().sum() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_offloaded_model_leaves_the_gpu_between_batches(home):
    policy, batch, gpu = family_tokenizer("llama"), responses(), torch.device("cuda")
    expected = load_scores(reward(home), {}, policy, CPU)[0](batch)
    score, _ = load_scores(reward(home, offload=True), {}, policy, gpu)
    score(batch)  # the first product leaves a workspace of cuBLAS behind
    before = torch.cuda.memory_allocated()
    torch.testing.assert_close(score(batch), expected, atol=1e-3, rtol=1e-3)
    assert torch.cuda.memory_allocated() == before


def beaver(folder, source):
    """The weights of one of our score models in the released format."""
    model = ScoreModel.from_pretrained(source)
    state = {f"model.{k}": v.clone() for k, v in model.backbone.state_dict().items()}
    state |= {f"score_head.{k}": v for k, v in model.head.state_dict().items()}
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "score_type": "reward"}))
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def test_beaver_models_read_prompts_in_the_papers_format(home, tmp_path):
    beaver(tmp_path / "b", home / "llama")
    _, costs = load_scores(reward(home), {"c": cost(tmp_path, "b")}, family_tokenizer("llama"), CPU)
    written = PAPER.format("hello")
    batch = responses(prompts=["hello", written, ["hello"]], answers=[[70, EOS]] * 3)
    expected = reference(home / "llama", [written] * 3, [[70]] * 3)
    torch.testing.assert_close(costs["c"](batch), expected, atol=1e-5, rtol=1e-5)
    # as its README shows it, without eos: another number
    _, bare = load_scores(
        reward(home), {"c": cost(tmp_path, "b", append_eos=False)}, family_tokenizer("llama"), CPU
    )
    expected = reference(home / "llama", [written] * 3, [[70]] * 3, end=())
    torch.testing.assert_close(bare["c"](batch), expected, atol=1e-5, rtol=1e-5)


def test_the_format_is_the_sources_or_the_folders_and_never_the_policys(home, tmp_path):
    shutil.copytree(home / "llama", tmp_path / "llama")
    policy = with_prompt_format(family_tokenizer("llama"), "plain")
    batch = responses(prompts=["hello"], answers=[[70, EOS]])
    plain, _ = load_scores(reward(tmp_path), {}, policy, CPU)
    told, _ = load_scores(reward(tmp_path, prompt_format="beaver"), {}, policy, CPU)
    paper = reference(home / "llama", [PAPER.format("hello")], [[70]])
    torch.testing.assert_close(
        plain(batch), reference(home / "llama", ["hello"], [[70]]), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(told(batch), paper, atol=1e-5, rtol=1e-5)
    # a score model saved with its format reads so wherever it goes
    with_prompt_format(policy, "beaver").save_pretrained(tmp_path / "llama")
    saved, _ = load_scores(reward(tmp_path), {}, policy, CPU)
    torch.testing.assert_close(saved(batch), paper, atol=1e-5, rtol=1e-5)


def classifier(folder, family, pad_is_eos):
    """A sequence classifier of two labels with its tokenizer."""
    save_family(family, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token if pad_is_eos else tokenizer.pad_token
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    model.config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer


@pytest.mark.parametrize(("family", "pad_is_eos"), [("qwen2", False), ("gpt2", True)])
def test_classifiers_read_what_transformers_reads(family, pad_is_eos, tmp_path, recwarn):
    model, tokenizer = classifier(tmp_path / "c", family, pad_is_eos)
    said = ["You can do it.", "no"]
    if tokenizer.chat_template is None:
        written = [f"hello{text}{tokenizer.eos_token}" for text in said]
    else:
        turns = [[("user", "hello"), ("assistant", text)] for text in said]
        written = [
            tokenizer.apply_chat_template(
                [{"role": r, "content": c} for r, c in turn], tokenize=False
            )
            for turn in turns
        ]
    ids = tokenizer(written, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        expected = model(**ids).logits[:, 1]
    source = reward(tmp_path, "c", head=1)
    found = load_text_scores({"r": source}, CPU)(["hello", "hello"], said)["r"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_rows_beyond_the_context_are_refused_or_lose_their_beginning(home):
    policy = family_tokenizer("llama")
    long = "bread " * 400
    batch = responses(prompts=[long, "hello", "hello"])
    with pytest.raises(InputError, match=r"sees 512 tokens, but row 0 .* of its end.*cut_prompt"):
        load_scores(reward(home), {}, policy, CPU)[0](batch)
    found = load_scores(reward(home, too_long="cut_prompt"), {}, policy, CPU)[0](batch)
    ids = policy(long)["input_ids"][-(512 - 4) :]
    model = ScoreModel.from_pretrained(home / "llama")
    row = torch.tensor([[*ids, 70, 71, 72, EOS]])
    assert row.shape == (1, 512)
    with torch.no_grad():
        expected = model.end_score(row, torch.ones_like(row))[0, 0]
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)


BAD = {
    "has 2 scores .helpful, harm.; say which one reward 'r'": {"name": "two"},
    "asks for head 'x' of score model .*: helpful, harm": {"name": "two", "head": "x"},
    r"asks for head 1 of score model .*: 0 … 0": {"head": 1},
    "does not exist": {"name": "nowhere"},
    "has no tensor score_head": {"format": "beaver"},
    "sign check of reward 'r'": {"sign_check": "error"},
}


@pytest.mark.parametrize("message", BAD)
def test_a_source_that_does_not_fit_is_refused(message, home):
    with pytest.raises(InputError, match=message):
        load_named_scores({"r": reward(home, **BAD[message])}, family_tokenizer("llama"), CPU)


def test_a_missing_tokenizer_is_said_and_can_be_the_policys(home, tmp_path):
    ScoreModel.from_pretrained(home / "llama").save_pretrained(tmp_path / "bare")
    policy = family_tokenizer("llama")
    with pytest.raises(InputError, match=r'has no tokenizer .*tokenizer = "policy"'):
        load_scores(reward(tmp_path, "bare"), {}, policy, CPU)
    batch = responses()
    expected = load_scores(reward(home), {}, policy, CPU)[0](batch)
    for told in ("policy", str(home / "llama")):
        score, _ = load_scores(reward(tmp_path, "bare", tokenizer=told), {}, policy, CPU)
        assert torch.equal(score(batch), expected)
    with pytest.raises(InputError, match="there is no policy here"):
        load_text_scores({"r": reward(tmp_path, "bare", tokenizer="policy")}, CPU)


def test_a_tokenizer_beyond_the_vocabulary_or_without_eos_is_refused(home, tmp_path):
    big = family_tokenizer("llama")
    big.add_tokens([f"<extra {i}>" for i in range(99)])
    big.save_pretrained(tmp_path / "big")
    family_tokenizer("no eos").save_pretrained(tmp_path / "endless")
    policy = family_tokenizer("llama")
    with pytest.raises(InputError, match=r"token ids up to .* knows 0 … 319"):
        load_scores(reward(home, tokenizer=str(tmp_path / "big")), {}, policy, CPU)
    with pytest.raises(InputError, match="no end-of-sequence token"):
        load_scores(reward(home, tokenizer=str(tmp_path / "endless")), {}, policy, CPU)
    padded = family_tokenizer("llama")
    padded.add_tokens([f"<extra {i}>" for i in range(320 - len(padded))])
    padded.add_special_tokens({"pad_token": "<pad>"})  # id 320: added, and the trunk not resized
    padded.save_pretrained(tmp_path / "padded")
    score, _ = load_scores(reward(home, tokenizer=str(tmp_path / "padded")), {}, policy, CPU)
    assert score(responses()).isfinite().all()
    (tmp_path / "big/tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_scores(reward(home, tokenizer=str(tmp_path / "big")), {}, policy, CPU)
    with pytest.raises(InputError, match=r"'template', but the tokenizer of .*llama' has no chat"):
        load_scores(reward(home, prompt_format="template"), {}, policy, CPU)


def test_no_weights_are_read_before_every_source_was_looked_at(home, counted):
    with pytest.raises(InputError, match="nowhere does not exist"):
        load_scores(reward(home), {"c": cost(home, "nowhere")}, family_tokenizer("llama"), CPU)
    assert counted["loads"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "found neither of path and url"),
        ({"path": "a", "url": "http://b"}, "found both of path and url"),
        ({"url": "b:80"}, "expected http://"),
        ({"url": "http://b:x"}, "expected http://"),
        ({"url": "http://:80"}, "expected http://"),
        ({"url": "http://b", "head": 1}, "give head = "),
    ],
)
def test_a_source_is_one_place(settings, message):
    with pytest.raises(ValidationError, match=message):
        ScoreSource(direction="higher_is_better", **settings)
