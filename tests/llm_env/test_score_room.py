"""What does not fit a score model's context is said before any weights are read."""

import json
import shutil
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

from constrained_rl.errors import InputError, Notice
from llm_env import score_files
from llm_env.collectors import TokenCollector, by_model
from llm_env.models import ModelSource, load_tokenizer
from llm_env.policy import CausalLMPolicy
from llm_env.score_room import Asked, require_room
from llm_env.score_sources import ScoreSource
from llm_env.scoring import ScoreModel
from tests.bad_input.project import json_fields, project
from tests.llm_env.families import family_tokenizer
from tests.llm_env.tiny import causal_lm, word_tokenizer

ASKED = ("--prompts", "prompts.txt", "--reward", "reward")


@pytest.fixture
def home(tmp_path, monkeypatch):
    project()(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def source(**settings):
    told = {"path": "reward", "direction": "higher_is_better", "sign_check": "off"}
    return ScoreSource(**told, **settings)


def room(prompts, longest, **settings):
    policy = load_tokenizer(ModelSource(path="policy"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_room({"reward": source(**settings)}, Asked(policy, prompts, longest))


def test_a_row_may_fill_the_context_to_its_last_token(home):
    prompt = "how do i bake bread"
    tokens = len(family_tokenizer("llama")(prompt)["input_ids"])  # with its bos
    # the prompt, seven tokens, and the eos that a score model was trained with
    json_fields("reward/config.json", max_position_embeddings=tokens + 7 + 1)(home)
    room([prompt, "hi"], 7)
    with pytest.raises(InputError, match=rf"bread' has {tokens} .*: 1 of 2 prompts leave"):
        room([prompt, "hi"], 8)
    room([prompt, "hi"], 8, append_eos=False)
    room([prompt, "hi"], 8, too_long="cut_prompt")
    with pytest.raises(InputError, match=r"2 of 2 .*lower max_new_tokens, shorten such prompts$"):
        room([prompt, "hi"], tokens + 7, too_long="cut_prompt")


def test_of_other_tokens_only_what_cannot_fit_is_refused(home):
    family_tokenizer("qwen").save_pretrained(home / "reward")
    json_fields("reward/config.json", max_position_embeddings=24)(home)
    with pytest.raises(Notice, match=r"reward \(reward\) sees 24 tokens; .* tokens, which are ot"):
        room(["hi"], 40)
    room(["hi"], 8)
    with pytest.raises(InputError, match="1 of 1 prompts leave no room"):
        room(["a " * 40], 8)


def unread(monkeypatch):
    """Weights may not be read."""

    def read(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr(score_files, "load_whole", read)
    monkeypatch.setattr("llm_env.models.load_whole", read)


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "train.toml", "align.max_new_tokens=12", "--out", "run"),
        ("dual", "train.toml", "align.max_new_tokens=12"),
        ("plan", "train.toml", "align.max_new_tokens=12"),
        (
            "evaluate",
            "policy",
            "--prompts",
            "prompts.txt",
            "--reward",
            "reward",
            "max_new_tokens=12",
        ),
    ],
)
def test_every_command_says_it_before_weights_are_read(home, crl, monkeypatch, arguments):
    json_fields("reward/config.json", max_position_embeddings=16)(home)
    unread(monkeypatch)
    code, _, errors = crl("llm", *arguments)
    assert code == 2
    assert "reward (reward) sees 16 tokens" in " ".join(errors.split())
    assert not (home / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "train.toml", "policy.lora.targets=c_attn", "--out", "run"),
        ("train", "train.toml", "critic.lora.targets=c_attn", "--out", "run"),
        ("sft", "sft.toml", "model.lora.targets=c_attn", "--out", "run"),
        ("score", "score.toml", "model.lora.targets=c_attn", "--out", "run"),
        ("rounds", "rounds.toml", "policy.lora.targets=c_attn", "--out", "run"),
    ],
)
def test_targets_of_adapters_are_checked_before_weights_are_read(home, crl, monkeypatch, arguments):
    pytest.importorskip("peft")
    unread(monkeypatch)
    code, _, errors = crl("llm", *arguments)
    assert code == 2
    assert "'c_attn' fits no linear layer of Llama" in errors
    assert not (home / "run").exists()


def test_a_certificate_on_longer_prompts_is_refused_before_they_are_answered(home, crl):
    assert crl("llm", "train", "train.toml", "--out", "run")[0] == 0
    shutil.copytree("run", "again")
    (home / "long.txt").write_text("a " * 40 + "\nhello you\n")
    config = json.loads((home / "cost/config.json").read_text())
    (home / "cost/config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    (home / "again/models.json").unlink()  # the folder of the cost has changed
    code, _, errors = crl("certify", "again", "--prompts", "long.txt")
    assert code == 2
    assert "costs.harm (cost) sees 64 tokens; the prompt 'a a a" in " ".join(errors.split())


def test_a_calibration_says_it_before_weights_are_read(home, crl, monkeypatch):
    json_fields("cost/config.json", max_position_embeddings=16)(home)
    unread(monkeypatch)
    own = ("--cost-model", "cost", "--data", "pairs.jsonl", "--model", "policy")
    code, _, errors = crl(
        "llm", "calibrate", *own, "--prompts", "prompts.txt", "--max-new-tokens", "12"
    )
    assert code == 2
    assert "--cost-model (cost) sees 16 tokens" in " ".join(errors.split())
    assert "too_long" not in errors


def test_a_score_model_in_memory_does_not_read_beyond_its_context():
    # rotary positions have no end: it would read on, with numbers that nobody has trained
    model = ScoreModel.from_causal_lm(causal_lm(seed=1), generator=torch.Generator())
    model.backbone.config.max_position_embeddings = 6
    score, policy = by_model(model), CausalLMPolicy(causal_lm(scale=1.0))
    for longest, fits in ((5, True), (6, False)):
        collector = TokenCollector(
            policy, word_tokenizer(), ["cat"], score, {}, 16, longest, seed=0
        )
        if fits:
            collector.collect()
            continue
        with pytest.raises(
            InputError, match=r"sees 6 tokens, but a prompt and its response have 7"
        ):
            collector.collect()


def test_a_reference_without_the_rows_of_a_model_is_refused_before_it_answers(home, crl):
    shutil.copytree("policy", "wide")
    model = AutoModelForCausalLM.from_pretrained("wide")
    model.resize_token_embeddings(384, mean_resizing=False)
    model.save_pretrained("wide")
    told = ("--prompts", "prompts.txt", "--reference", "base", "max_new_tokens=3")
    code, _, errors = crl("llm", "evaluate", "base=policy", "wide=wide", *told, "--out", "run")
    assert code == 2
    assert "wide has 384 rows, that of base 320" in " ".join(errors.split())
    assert not (home / "run").exists()
    narrow = ("--prompts", "prompts.txt", "--reference", "wide", "max_new_tokens=3")
    assert crl("llm", "evaluate", "base=policy", "wide=wide", *narrow, "--out", "run")[0] == 0
