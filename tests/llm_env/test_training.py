"""`crl llm train` on tiny random models in folders: a run is started, killed, resumed, exported."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from constrained_rl.certificate import Request
from constrained_rl.checkpoint import checkpoints, load_state, save_state
from constrained_rl.devices import DeviceNotice
from constrained_rl.errors import InputError, Notice
from constrained_rl.logging import read_metrics
from constrained_rl.settings import merge, validate
from constrained_rl.stopping import Stopped
from llm_env.scoring import ScoreModel
from llm_env.training import run, starts
from llm_env.training.certificate import certify_training
from llm_env.training.config import TrainConfig
from llm_env.training.evaluation import read_samples
from llm_env.training.report import write_training_report
from tests.llm_env.families import save_family

pytestmark = pytest.mark.xdist_group("training")  # its fixtures are made once, in one worker

PROMPTS = ["how do i bake bread", "how do i trap a wolf", "hello", "tell me a story", "what is up"]
SHORT = {
    "iterations": 4,
    "prompts": 6,
    "max_new_tokens": 5,
    "limit": 0.5,
    "ppo": {"kl_coefficient": 0.1, "minibatches": 2},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Policy, reward model and cost model of one family, and prompts."""
    home = tmp_path_factory.mktemp("models")
    policy = save_family("llama", home / "policy")
    model = AutoModelForCausalLM.from_pretrained(policy)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    for seed, name in enumerate(("reward", "cost")):
        generator = torch.Generator().manual_seed(seed)
        score = ScoreModel.from_causal_lm(model, generator=generator)
        score.save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
    (home / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (home / "held_out.txt").write_text("good morning\nwhere is the cat\n")
    return home


def random_score(path, direction):
    """A score without a meaning, whose sign is not to be checked."""
    return {"path": str(path), "direction": direction, "sign_check": "off"}


def tree(models, **over):
    return merge(
        {
            "policy": {"path": str(models / "policy")},
            "reward": random_score(models / "reward", "higher_is_better"),
            "costs": {"harm": random_score(models / "cost", "higher_is_worse")},
            "prompts": [{"path": str(models / "prompts.txt")}],
            "align": SHORT,
            "checkpoint": {"every": 2},
            "evaluation": {
                "every": 2,
                "select": "deterministic",
                "prompts": [{"path": str(models / "held_out.txt")}],
            },
        },
        over,
    )


def config_of(models, **over):
    return validate(TrainConfig, tree(models, **over), "test")


def learned(folder):
    """Metrics without the times."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    return run.start(config_of(models), tmp_path_factory.mktemp("runs") / "whole")


def test_a_run_leaves_a_model_that_transformers_loads(models, finished):
    policy = AutoModelForCausalLM.from_pretrained(finished / "policy")
    start = AutoModelForCausalLM.from_pretrained(models / "policy")
    tokenizer = AutoTokenizer.from_pretrained(finished / "policy")
    moved = [
        not torch.equal(a, b) for a, b in zip(policy.parameters(), start.parameters(), strict=True)
    ]
    assert all(moved)
    assert (
        tokenizer("how do i")["input_ids"]
        == AutoTokenizer.from_pretrained(models / "policy")("how do i")["input_ids"]
    )
    card = (finished / "policy" / "README.md").read_text()
    assert "| harm | P(C > 0) | 0.5 |" in card
    assert "After iteration 4" in card
    assert 'path = "' in card


def test_evaluations_are_rows_of_the_metrics_and_their_responses_can_be_read(finished):
    rows = read_metrics(finished / "metrics.jsonl")
    assert [row["iteration"] for row in rows if "evaluation/feasible" in row] == [2, 4]
    samples = read_samples(finished / "samples" / "00000004-greedy.jsonl")
    assert [sample["prompt"] for sample in samples] == ["good morning", "where is the cat"]
    mean = sum(sample["reward"] for sample in samples) / 2
    assert rows[-1]["evaluation/deterministic/return"] == pytest.approx(mean)
    assert {sample["stop"] for sample in samples} <= {"eos", "length"}


def test_a_run_killed_anywhere_continues_to_the_same_bits(models, finished, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "policy")
    shutil.rmtree(folder / "checkpoints" / "00000004")
    assert run.resume(folder)
    assert learned(folder) == learned(finished)
    weights = [p / "policy" / "model.safetensors" for p in (folder, finished)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not run.resume(folder)


def test_a_run_of_a_gpu_continues_and_is_certified_where_there_is_none(
    models, finished, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = tmp_path / "moved"
    shutil.copytree(finished, folder)
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace('device = "auto"', 'device = "cuda:1"'))
    shutil.rmtree(folder / "policy")
    shutil.rmtree(folder / "checkpoints" / "00000004")
    (checkpoint,) = (folder / "checkpoints").iterdir()
    state = load_state(checkpoint)
    state["collector"]["sampler"] = torch.tensor([7] + [0] * 15, dtype=torch.uint8)
    save_state(checkpoint, state)
    with pytest.warns(DeviceNotice) as told:
        assert run.resume(folder)
    assert {str(notice.message)[:18] for notice in told} == {
        "this was made with",
        "the saved random n",
    }
    assert [row["iteration"] for row in learned(folder)] == [1, 2, 3, 4]
    request = Request(seed=5, device="cpu")
    prompts = tmp_path / "fresh.txt"
    prompts.write_text("how are you\nwhat is that\n")
    assert certify_training(folder, folder, request, prompts).certificate.bounds[0].n == 2


@pytest.mark.parametrize("name", ["policy", "cost"])
def test_a_run_whose_models_have_changed_is_not_continued(models, finished, tmp_path, name):
    home, folder = tmp_path / "models", tmp_path / "run"
    shutil.copytree(models, home)
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "policy")
    moved = (folder / "config.toml").read_text().replace(str(models), str(home))
    (folder / "config.toml").write_text(moved)
    starts.record(run.read_train_config(folder), folder)
    starts.compare(run.read_train_config(folder), folder)
    weights = home / name / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1  # one bit of the last of its numbers
    weights.write_bytes(changed)
    with pytest.raises(InputError, match=f"{name} is not the model that .* began with"):
        run.resume(folder)


def test_a_stopped_run_keeps_its_work(models, finished, tmp_path, monkeypatch):
    asked = iter([False, True])
    monkeypatch.setattr("constrained_rl.run.finishing_steps", lambda: _asking(lambda: next(asked)))
    with pytest.raises(Stopped):
        run.start(config_of(models), tmp_path / "stopped")
    monkeypatch.undo()
    assert checkpoints(tmp_path / "stopped" / "checkpoints")
    assert run.resume(tmp_path / "stopped")
    assert learned(tmp_path / "stopped") == learned(finished)


class _asking:  # noqa: N801  stands for a context manager
    def __init__(self, stopping):
        self.stopping = stopping

    def __enter__(self):
        return self.stopping

    def __exit__(self, *_):
        return None


def test_the_best_is_the_feasible_evaluation_with_the_highest_reward(finished):
    rows = [row for row in read_metrics(finished / "metrics.jsonl") if "evaluation/feasible" in row]
    feasible = [row for row in rows if row["evaluation/feasible"]]
    assert (finished / "best").is_dir() == bool(feasible)
    if feasible:
        best = max(feasible, key=lambda row: row["evaluation/deterministic/return"])
        card = (finished / "best" / "README.md").read_text()
        assert f"After iteration {best['iteration']:g} " in card


@pytest.mark.parametrize("trunk", ["shared", "reward"])
def test_adapters_are_all_that_is_trained_and_saved(models, tmp_path, trunk):
    pytest.importorskip("peft")
    lora = {"rank": 2, "alpha": 4.0}
    config = config_of(
        models,
        policy={"lora": lora},
        critic={"trunk": trunk, "lora": lora},
        align={"ppo": {"learning_rate": 0.05}},
    )
    folder = run.start(config, tmp_path / "lora")
    assert learned(folder)[0]["kl/reference"] == pytest.approx(0.0, abs=1e-5)
    assert learned(folder)[-1]["kl/reference"] != pytest.approx(0.0, abs=1e-5)
    state = load_state(checkpoints(folder / "checkpoints")[-1])
    for module in ("policy", "critic"):
        names = state[module]["module"]
        assert names
        assert all("lora_" in name or name.startswith("model.head") for name in names)
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy")
    start = AutoModelForCausalLM.from_pretrained(models / "policy")
    assert policy.state_dict().keys() == start.state_dict().keys()
    (folder / "policy").rename(tmp_path / "before")
    assert run.resume(folder)
    for file in (folder / "policy", tmp_path / "before"):
        assert (file / "model.safetensors").is_file()
    again = AutoModelForCausalLM.from_pretrained(folder / "policy").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in policy.state_dict().items())


def test_without_critics_no_values_are_learned(models, tmp_path):
    align = {"responses_per_prompt": 3, "ppo": {"advantage": "leave_one_out", "value_clip": None}}
    folder = run.start(config_of(models, align=align), tmp_path / "critic_free")
    assert not any("value" in key for row in learned(folder) for key in row)
    assert "critic" not in load_state(checkpoints(folder / "checkpoints")[-1])


def test_each_cost_may_have_its_own_limit(models):
    cost = tree(models)["costs"]["harm"]
    config = config_of(models, costs={"rude": cost | {"limit": 0.25}})
    assert config.limits == (0.5, 0.25)


def test_a_report_is_one_file(finished):
    html = write_training_report(finished).read_text(encoding="utf-8")
    assert "where is the cat" in html
    assert "http://" not in html
    assert "Multiplier" in html


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"align": {"ptx_coefficient": 1.0}}, "needs demonstrations"),
        ({"critic": {"trunk": "shared"}}, r"set policy\.lora too"),
        ({"align": {"limit": [0.1, 0.2]}}, "2 entries for the costs"),
        ({"reward": {"direction": "up"}}, "higher_is_better"),
        ({"policy": {"pth": "x"}}, "did you mean 'path'"),
    ],
)
def test_a_config_that_cannot_work_is_refused(models, over, said):
    with pytest.raises(InputError, match=said):
        config_of(models, **over)


def test_prompts_beyond_the_context_are_counted_or_left_out(models, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text("hello\n" + "word " * 400 + "\n")
    prompts = [{"path": str(long)}]
    with pytest.raises(InputError, match=r"1 of 2 prompts have more than 507 tokens"):
        run.start(config_of(models, prompts=prompts), tmp_path / "refused")
    shorter = config_of(models, prompts=prompts, over_length="drop", align={"iterations": 1})
    with pytest.warns(Notice, match="1 prompts of .*long.txt have more than 507 tokens"):
        run.start(shorter, tmp_path / "kept")


def test_a_folder_that_is_missing_leaves_no_run_behind(models, tmp_path):
    config = config_of(models, policy={"path": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match="nowhere"):
        run.start(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
