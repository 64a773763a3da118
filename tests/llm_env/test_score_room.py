"""What does not fit a score model's context is said before any weights are read."""

import json
import shutil
import warnings

import pytest

from constrained_rl.errors import InputError, Notice
from llm_env import score_files
from llm_env.models import ModelSource, load_tokenizer
from llm_env.score_room import require_room
from llm_env.score_sources import ScoreSource
from tests.bad_input.project import json_fields, project
from tests.llm_env.families import family_tokenizer

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
        require_room({"reward": source(**settings)}, policy, prompts, longest)


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
