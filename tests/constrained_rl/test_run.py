import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from constrained_rl import run
from constrained_rl.agent import Agent
from constrained_rl.checkpoint import checkpoints, load_latest, write_tensors
from constrained_rl.config import RunConfig
from constrained_rl.envs import BUILT_IN
from constrained_rl.errors import InputError, NonFiniteError
from constrained_rl.logging import JsonlLogger, RichLogger, keep_iterations, read_metrics
from constrained_rl.presets import defaults
from constrained_rl.settings import merge, validate
from tests.constrained_rl.helpers import CARTPOLE, DETOUR, PENDULUM

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 6
ENVIRONMENTS = [*BUILT_IN, CARTPOLE, PENDULUM]


def config_of(env_id=DETOUR, iterations=ITERATIONS, name="pid_lagrangian", **settings):
    """Six iterations of 4 × 16 decisions with a checkpoint after every second."""
    tree = {
        "device": "cpu",
        "total_steps": iterations * 64,
        "limit": None if env_id in BUILT_IN else 1.5,
        "env": {"id": env_id, "num_envs": 4},
        "network": {"hidden": [8]},
        "ppo": {"horizon": 16, "epochs": 2, "minibatches": 2},
        "checkpoint": {"every": 2},
    }
    return validate(RunConfig, merge(merge(defaults(name, None), tree), settings), "test")


@pytest.fixture
def die_at(monkeypatch):
    """Make the run die when iteration `n` is logged, before its checkpoint."""

    def arm(n):
        original = JsonlLogger.log

        def log(self, step, metrics):
            original(self, step, metrics)
            if step == n:
                monkeypatch.setattr(JsonlLogger, "log", original)
                raise KeyboardInterrupt

        monkeypatch.setattr(JsonlLogger, "log", log)

    return arm


def policy_bytes(folder):
    return (folder / "policy.safetensors").read_bytes()


def rows_without_times(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Finished runs, one per environment, made when first asked for."""
    made = {}

    def get(env_id):
        if env_id not in made:
            folder = tmp_path_factory.mktemp("runs") / str(len(made))
            made[env_id] = run.start(config_of(env_id), folder)
        return made[env_id]

    return get


# start


def test_a_finished_run_holds_its_files_and_one_row_per_iteration(uninterrupted):
    folder = uninterrupted(DETOUR)
    assert sorted(os.listdir(folder)) == [
        "checkpoints",
        "config.toml",
        "metrics.jsonl",
        "policy.safetensors",
        "provenance.json",
    ]
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {"lambda/risk", "loss/policy", "kl/approx", "time/collect"} <= set(rows[-1])
    assert [f.name for f in checkpoints(folder / "checkpoints")] == ["00000004", "00000006"]
    assert "commit" in json.loads((folder / "provenance.json").read_text())


def test_running_without_loggers_and_checkpoints_gives_the_same_policy(uninterrupted, tmp_path):
    agent = Agent(config_of(DETOUR))
    agent.train()
    write_tensors(tmp_path / "policy.safetensors", agent.policy.state_dict())
    assert policy_bytes(tmp_path) == policy_bytes(uninterrupted(DETOUR))


def test_an_existing_directory_is_refused_and_untouched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty; nothing was changed"):
        run.start(config_of(), tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]
    with pytest.raises(InputError, match="nothing was changed"):
        run.start(config_of(), tmp_path / "notes.txt")


def test_a_wrong_config_shows_before_a_folder_exists(tmp_path):
    folder = tmp_path / "run"
    for bad in ({"env": {"id": "Detuor-v0"}}, {"limit": (1.0, 2.0)}):
        with pytest.raises(InputError):
            run.start(config_of(**bad), folder)
    assert not folder.exists()


def test_total_steps_are_rounded_up_to_whole_iterations(tmp_path):
    folder = run.start(config_of(total_steps=65), tmp_path / "run")
    assert len(read_metrics(folder / "metrics.jsonl")) == 2  # ⌈65 / 64⌉


# resume


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
@pytest.mark.parametrize("iteration", [1, 4, 5])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    uninterrupted, die_at, monkeypatch, tmp_path, env_id, iteration
):
    # Killed before the first checkpoint, before the second was written, and after it.
    folder = tmp_path / "run"
    die_at(iteration)
    with pytest.raises(KeyboardInterrupt):
        run.start(config_of(env_id), folder)
    assert not (folder / "policy.safetensors").exists()
    logged = []
    monkeypatch.setattr(RichLogger, "log", lambda _, step, metrics: logged.append(step))
    assert run.resume(folder)
    assert logged[0] == {1: 1, 4: 3, 5: 5}[iteration]  # what no checkpoint covers is run again
    assert policy_bytes(folder) == policy_bytes(uninterrupted(env_id))
    assert rows_without_times(folder) == rows_without_times(uninterrupted(env_id))


@pytest.mark.parametrize("name", ["ppo", "static_shaping", "ppo_lagrangian"])
def test_every_preset_resumes_to_the_same_policy(die_at, tmp_path, name):
    # With every kind of memory: Adam on λ, an averaging estimator, a warm-up, an entropy schedule.
    settings = {"ppo": {"warmup": 0.5, "entropy": 0.01, "target_kl": 0.01}}
    settings["constraint"] = {"estimator": {"kind": "window", "size": 7}}
    if name == "ppo_lagrangian":
        settings["multiplier"] = {"optimizer": "adam"}
    config = config_of(DETOUR, name=name, **settings)
    whole = run.start(config, tmp_path / "whole")
    die_at(3)
    with pytest.raises(KeyboardInterrupt):
        run.start(config, tmp_path / "killed")
    assert run.resume(tmp_path / "killed")
    assert policy_bytes(tmp_path / "killed") == policy_bytes(whole)


def test_a_run_killed_twice_still_equals_an_uninterrupted_one(uninterrupted, die_at, tmp_path):
    folder = tmp_path / "run"
    die_at(3)
    with pytest.raises(KeyboardInterrupt):
        run.start(config_of(CARTPOLE), folder)
    die_at(5)
    with pytest.raises(KeyboardInterrupt):
        run.resume(folder)
    assert run.resume(folder)
    assert policy_bytes(folder) == policy_bytes(uninterrupted(CARTPOLE))
    assert rows_without_times(folder) == rows_without_times(uninterrupted(CARTPOLE))


def test_resuming_over_a_damaged_checkpoint_uses_the_one_before(uninterrupted, die_at, tmp_path):
    folder = tmp_path / "run"
    die_at(5)
    with pytest.raises(KeyboardInterrupt):
        run.start(config_of(), folder)
    tensors = folder / "checkpoints" / "00000004" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.warns(UserWarning, match="falling back"):
        assert run.resume(folder)
    assert policy_bytes(folder) == policy_bytes(uninterrupted(DETOUR))


@pytest.mark.parametrize("env_id", list(BUILT_IN))
def test_a_run_killed_by_the_system_resumes_to_the_same_policy(tmp_path, env_id):
    config = config_of(env_id, iterations=40)
    whole, folder = run.start(config, tmp_path / "whole"), tmp_path / "killed"
    # The child waits at every iteration so that it cannot finish before it is killed.
    code = (
        "import sys, time, pathlib, torch\n"
        "from constrained_rl import config, logging, run\n"
        "torch.set_num_threads(1)\n"
        "log = logging.JsonlLogger.log\n"
        "logging.JsonlLogger.log = lambda *a: (log(*a), time.sleep(0.05))\n"
        "c = config.RunConfig.model_validate_json(sys.argv[1])\n"
        "run.start(c, pathlib.Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", code, config.model_dump_json(), str(folder)]
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(read_metrics(folder / "metrics.jsonl")) < 3:
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (folder / "policy.safetensors").exists()
    assert run.resume(folder)
    assert policy_bytes(folder) == policy_bytes(whole)
    assert rows_without_times(folder) == rows_without_times(whole)


def test_resuming_a_finished_run_does_nothing(uninterrupted):
    folder = uninterrupted(DETOUR)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert not run.resume(folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_resuming_what_is_no_run_says_so(tmp_path):
    with pytest.raises(InputError, match=r"no config\.toml"):
        run.resume(tmp_path)


def test_a_row_cut_short_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n{"iter')
    assert [row["iteration"] for row in read_metrics(path)] == [1, 2]
    keep_iterations(path, 1)
    assert path.read_text() == '{"iteration": 1}\n'


# numbers that are none


def test_a_nan_reward_stops_the_run_and_leaves_the_last_checkpoint_intact(tmp_path):
    poisoned = {"env": {"kwargs": {"poison_after": 52}}}  # steps of each env: 3 windows of 16, 4
    with pytest.raises(NonFiniteError, match="rollout reward"):
        run.start(config_of(CARTPOLE, **poisoned), tmp_path / "run")
    assert load_latest(tmp_path / "run" / "checkpoints")["iteration"] == 2
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 3
    assert not (tmp_path / "run" / "policy.safetensors").exists()


def test_an_exploding_loss_stops_the_run_by_name(tmp_path, monkeypatch):
    config = config_of(ppo={"learning_rate": 1e38, "schedule": "constant"})
    with pytest.raises(NonFiniteError, match=r"(loss|values|log-prob|gradient|KL|kl).* NaN or inf"):
        run.start(config, tmp_path / "run")
    assert not (tmp_path / "run" / "policy.safetensors").exists()
