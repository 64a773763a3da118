import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tomllib
import warnings
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from constrained_rl import cli, run
from constrained_rl.agent import Agent
from constrained_rl.checkpoint import checkpoints, load_latest, write_tensors
from constrained_rl.config import RunConfig
from constrained_rl.envs import BUILT_IN, FINITE
from constrained_rl.errors import InputError, NonFiniteError
from constrained_rl.loggers import read_csv
from constrained_rl.logging import JsonlLogger, RichLogger, keep_iterations, read_metrics
from constrained_rl.presets import defaults
from constrained_rl.report import write_report
from constrained_rl.settings import merge, to_toml, validate
from constrained_rl.stopping import Stopped, stoppable
from constrained_rl.under_way import UnderWay
from tests.constrained_rl.helpers import CARTPOLE, DETOUR, PENDULUM

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 6
# One of the finite CMDPs stands for them all: they differ in their tables only.
FINITE_IDS = {row.id for row in FINITE}
ENVIRONMENTS = [DETOUR, *(e for e in BUILT_IN if e not in FINITE_IDS), CARTPOLE, PENDULUM]


def config_of(env_id=DETOUR, iterations=ITERATIONS, name="pid_lagrangian", **settings):
    """Six iterations of 4 × 16 decisions with a checkpoint after every second."""
    tree = {
        "device": "cpu",
        "total_steps": iterations * 64,
        "limit": None if env_id in BUILT_IN else 1.5,
        "env": {"id": env_id, "num_envs": 4, "burn_in": 3},
        "network": {"hidden": [8]},
        # TOML has no null: unset, a file of this would get the environment's own critic rate.
        "ppo": {"horizon": 16, "epochs": 2, "minibatches": 2, "critic_learning_rate": 1e-3},
        "checkpoint": {"every": 2},
        "evaluation": {"every": 0},
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


EVALUATED = {"every": 2, "episodes": 4}


def best_of(folder):
    return {p.name: p.read_bytes() for p in (folder / "best").iterdir()}


def test_evaluation_changes_nothing_and_keeps_the_best_feasible_policy(uninterrupted, tmp_path):
    config = config_of(evaluation=EVALUATED, limit=1000.0)
    folder = run.start(config, tmp_path / "a")
    plain = run.start(config_of(limit=1000.0), tmp_path / "b")
    assert policy_bytes(folder) == policy_bytes(plain)
    rows = [r for r in read_metrics(folder / "metrics.jsonl") if "evaluation/feasible" in r]
    assert [row["iteration"] for row in rows] == [2, 4, 6]
    best = max(rows, key=lambda row: row["evaluation/sampled/return"])
    agent = Agent.load(folder / "best")
    assert agent.parts.iteration == best["iteration"]
    found = agent.play(agent.separate_environments(4), 4).intervals()["return"]
    assert found.value == best["evaluation/sampled/return"]  # the same seed, the same episodes


def test_no_policy_is_best_where_none_is_feasible(tmp_path):
    folder = run.start(config_of(evaluation=EVALUATED, limit=-1.0), tmp_path / "a")
    assert not (folder / "best").exists()
    assert "so there is no best/ policy" in write_report(folder).read_text()


@pytest.mark.parametrize("env_id", [DETOUR, CARTPOLE])
@pytest.mark.parametrize("at", [3, 5])
def test_a_resumed_run_has_the_same_evaluations_and_best(env_id, at, die_at, tmp_path):
    config = config_of(env_id, evaluation=EVALUATED, limit=1000.0)
    folder, whole = tmp_path / "a", run.start(config, tmp_path / "b")
    die_at(at)
    with pytest.raises(KeyboardInterrupt):
        run.start(config, folder)
    run.resume(folder)
    assert rows_without_times(folder) == rows_without_times(whole)
    assert best_of(folder) == best_of(whole)
    assert policy_bytes(folder) == policy_bytes(whole)


def test_a_run_out_of_patience_stops_early_and_is_finished(tmp_path):
    impatient = {"every": 1, "episodes": 4, "patience": 1}
    config = config_of(iterations=60, evaluation=impatient, limit=1000.0)
    folder = run.start(config, tmp_path / "a")
    rows = read_metrics(folder / "metrics.jsonl")
    assert len(rows) < 60
    *_, before, last = [row["evaluation/sampled/return"] for row in rows]
    assert last <= before
    assert run.resume(folder) is False


@pytest.mark.parametrize("signaled", [True, False])
def test_a_run_out_of_patience_that_ends_before_its_policy_is_written_goes_no_further(
    signaled, monkeypatch, tmp_path
):
    # SIGTERM in the iteration that exhausts it, or a kill after that iteration's checkpoint
    impatient = {"every": 1, "episodes": 4, "patience": 1}
    settings = {"evaluation": impatient, "limit": 1000.0, "checkpoint": {"every": 1}}
    config = config_of(iterations=60, **settings)
    whole = run.start(config, tmp_path / "whole")
    last = len(read_metrics(whole / "metrics.jsonl"))
    with monkeypatch.context() as patch:
        if signaled:
            ask_to_stop(patch, last)
        else:
            patch.setattr(run, "write_tensors", raising(Stopped))
        with pytest.raises(Stopped), stoppable():
            run.start(config, tmp_path / "run")
    assert run.resume(tmp_path / "run")
    assert rows_without_times(tmp_path / "run") == rows_without_times(whole)
    assert policy_bytes(tmp_path / "run") == policy_bytes(whole)


def raising(error):
    """A function that raises `error`, whatever it is called with."""

    def function(*_):
        raise error

    return function


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


EVERYTHING = {
    "network": {"bounds": "squash", "deviation": "state"},
    "ppo": {"critic_warmup": 2, "normalize_values": True, "dual_clip": 3.0},
    "constraint": {"estimator": {"kind": "ema"}},
    "average": 0.9,
    "multiplier": {
        "kind": "gradient",
        "initial": 1.0,
        "parameterization": "softplus",
        "optimizer": "nadam",
        "delay": 1,
    },
    "evaluation": {"every": 1, "episodes": 4, "patience": 9},
    "loggers": ["csv"],
}


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_run_with_everything_switched_on_resumes_to_the_same_bytes(
    vectorization, die_at, tmp_path
):
    section = {"vectorization": vectorization}
    config = config_of(PENDULUM, env=section, **EVERYTHING)
    whole = run.start(config, tmp_path / "whole")
    die_at(5)
    with pytest.raises(KeyboardInterrupt):
        run.start(config, tmp_path / "killed")
    assert run.resume(tmp_path / "killed")
    assert policy_bytes(tmp_path / "killed") == policy_bytes(whole)
    assert rows_without_times(tmp_path / "killed") == rows_without_times(whole)
    killed, expected = (
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_csv(path)[1]]
        for path in (tmp_path / "killed" / "metrics.csv", whole / "metrics.csv")
    )
    assert killed == expected


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


def kill_at_random(out, *arguments):
    """benchmarks/random_kills.py, which exits with 1 if anything differs or was lost."""
    words = ["random_kills.py", "--out", *map(str, (out, *arguments))]
    fork = multiprocessing.get_context("fork").Process(target=random_kills, args=(words,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12: forks with threads
        fork.start()
    fork.join()
    assert fork.exitcode == 0
    return json.loads(out.read_text())


def random_kills(words):
    """The script, in a copy of this process that has nothing to import."""
    sys.argv = words
    sys.path.insert(0, str(ROOT / "benchmarks"))
    runpy.run_path(str(ROOT / "benchmarks" / "random_kills.py"), run_name="__main__")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")
def test_a_run_killed_by_the_system_at_random_resumes_to_the_same_policy(tmp_path):
    # one that saves its state and one that cannot; the slow test takes all there are
    every = [next(iter(BUILT_IN)), "kills/Pendulum-v0"]
    found = kill_at_random(tmp_path / "kills.json", "--phases", ",".join(every), "--kills", 1)
    phases = {phase["phase"]: phase for phase in found["phases"]}
    assert set(phases) == set(every)
    for phase in phases.values():
        assert phase["kills"] >= phase["trials"] == phase["equal"] >= 1
        assert phase["lost"] <= found["every"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")
def test_random_kills_over_all_phases(tmp_path):
    found = kill_at_random(tmp_path / "kills.json", "--kills", 30, "--seed", 1)
    assert found["good"]
    own = {f"crl llm {command}" for command in ("train", "sft", "score", "rounds")}
    assert {phase["phase"] for phase in found["phases"]} > {*BUILT_IN, *own}


# SIGTERM


def ask_to_stop(monkeypatch, step):
    """SIGTERM comes in the middle of an iteration: while it is logged."""
    original = JsonlLogger.log

    def log(self, done, metrics):
        original(self, done, metrics)
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(JsonlLogger, "log", log)


def call(capsys, *arguments):
    """A command line in this process: exit code and standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.app(list(map(str, arguments)))
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize("env_id", [DETOUR, PENDULUM])
def test_sigterm_ends_a_run_after_its_iteration_and_it_resumes_to_the_same_policy(
    uninterrupted, monkeypatch, capsys, tmp_path, env_id
):
    folder = tmp_path / "run"
    (tmp_path / "config.toml").write_text(to_toml(config_of(env_id)))
    with monkeypatch.context() as patch:
        ask_to_stop(patch, 5)
        code, err = call(capsys, "train", tmp_path / "config.toml", "--out", folder)
    assert code == 0
    assert f"stopped; continue with: crl resume {folder}" in err
    saved = [f.name for f in checkpoints(folder / "checkpoints")]
    assert saved == ["00000004", "00000005"]
    assert len(read_metrics(folder / "metrics.jsonl")) == 5
    assert call(capsys, "resume", folder) == (0, "")
    assert policy_bytes(folder) == policy_bytes(uninterrupted(env_id))
    assert rows_without_times(folder) == rows_without_times(uninterrupted(env_id))


def test_sigterm_to_the_processes_of_the_environment_too_is_no_error(
    uninterrupted, monkeypatch, capsys, tmp_path
):
    # As a service manager or a cluster sends it: to the whole group.
    folder, play = tmp_path / "run", UnderWay.play
    settings = to_toml(config_of(CARTPOLE, env={"vectorization": "async"}))
    (tmp_path / "config.toml").write_text(settings)

    steps = iter(range(100))

    def end_all(self, actions):
        if next(steps) == 3 + 3 * 16 + 5:  # burn-in, three windows, some of the fourth
            for process in (os.getpid(), *(child.pid for child in active_children())):
                os.kill(process, signal.SIGTERM)
        return play(self, actions)

    with monkeypatch.context() as patch:
        patch.setattr(UnderWay, "play", end_all)
        code, err = call(capsys, "train", tmp_path / "config.toml", "--out", folder)
    assert code == 0
    assert "were stopped too: the run continues after iteration 2" in err
    assert f"stopped; continue with: crl resume {folder}" in err
    assert call(capsys, "resume", folder) == (0, "")
    assert policy_bytes(folder) == policy_bytes(uninterrupted(CARTPOLE))


def test_sigterm_before_a_run_has_begun_says_that_there_is_nothing_to_resume(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(run, "write_provenance", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    (tmp_path / "config.toml").write_text(to_toml(config_of()))
    arguments = ("train", tmp_path / "config.toml", "--out", tmp_path / "run")
    code, err = call(capsys, *arguments)
    assert code == 0
    assert "give the same command again: the run had not begun" in err
    monkeypatch.undo()
    assert call(capsys, *arguments)[0] == 0  # what is left there is in nobody's way
    assert (tmp_path / "run" / "policy.safetensors").exists()


# damage and full disks on the command line


def test_a_damaged_checkpoint_is_said_in_one_line(uninterrupted, die_at, capsys, tmp_path):
    folder = tmp_path / "run"
    die_at(5)
    with pytest.raises(KeyboardInterrupt):
        run.start(config_of(), folder)
    (folder / "checkpoints" / "00000004" / "state.json").unlink()
    code, err = call(capsys, "resume", folder)
    assert code == 0
    (line,) = err.splitlines()
    assert line.startswith(f"warning: checkpoint {folder / 'checkpoints' / '00000004'} is not int")
    assert line.endswith("falling back to the one before it")
    assert policy_bytes(folder) == policy_bytes(uninterrupted(DETOUR))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("filled", [280_000, 399_000, 409_600])
def test_a_full_disk_stops_a_run_with_one_message_and_loses_nothing(
    small_disk, uninterrupted, capsys, tmp_path, filled
):
    folder, filler = small_disk / "run", small_disk / "filler"
    config = config_of(checkpoint={"every": 1, "keep": 99}, network={"hidden": [32]}, iterations=4)
    (tmp_path / "config.toml").write_text(to_toml(config))
    filler.write_bytes(bytes(filled))
    arguments = ("train", tmp_path / "config.toml", "--out", folder)
    with pytest.raises(InputError, match=r"no space to write .*/disk/run.*No space left") as full:
        call(capsys, *arguments)
    saved = [int(f.name) for f in checkpoints(folder / "checkpoints")]
    assert not [p for p in folder.rglob(".*")]  # nothing half written is left
    filler.unlink()
    begun = (folder / "config.toml").exists()
    assert bool(saved) == (filled == 280_000)
    if saved:
        assert f"the last good checkpoint is iteration {saved[-1]}. Free space," in str(full.value)
        assert load_latest(folder / "checkpoints")["iteration"] == saved[-1] < 4
    then = f"continue with: crl resume {folder}" if begun else "give the same command again"
    assert f"Free space, then {then}" in str(full.value)
    assert call(capsys, *(["resume", folder] if begun else arguments))[0] == 0
    whole = run.start(config, tmp_path / "whole")
    assert policy_bytes(folder) == policy_bytes(whole)
    assert rows_without_times(folder) == rows_without_times(whole)


def test_resuming_a_finished_run_does_nothing(uninterrupted):
    folder = uninterrupted(DETOUR)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert not run.resume(folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def edited(folder, **changes):
    """Merge `changes` into a run's config, as somebody with an editor would."""
    file = folder / "config.toml"
    config = merge(tomllib.loads(file.read_text()), changes)
    file.write_text(to_toml(validate(RunConfig, config, "edited")))


def crl_resume(folder, monkeypatch):
    monkeypatch.setattr("sys.argv", ["crl", "resume", str(folder)])
    with pytest.raises(SystemExit) as stop:
        cli.run_cli(cli.app)
    return stop.value.code or 0


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_goes_on_at_the_learning_rate_that_its_config_has_now(
    die_at, tmp_path, monkeypatch, optimizer
):
    multiplier = {"kind": "gradient", "initial": 5.0, "optimizer": optimizer}
    die_at(5)
    with pytest.raises(KeyboardInterrupt):
        run.start(config_of(multiplier=multiplier), tmp_path / "run")
    edited(tmp_path / "run", multiplier={"learning_rate": 0.5})
    assert crl_resume(tmp_path / "run", monkeypatch) == 0
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert len(rows) == ITERATIONS
    # the same gradient ascent in plain torch: .05 in the four iterations of the checkpoint
    lam = torch.tensor([5.0], dtype=torch.float64)
    plain = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]([lam], lr=0.05)
    for row in rows:
        plain.param_groups[0]["lr"] = 0.05 if row["iteration"] <= 4 else 0.5
        if "estimate/risk" in row:
            lam.grad = torch.tensor([row["limit/risk"] - row["estimate/risk"]], dtype=torch.float64)
            plain.step()
            lam.clamp_(min=0)
        assert row["lambda/risk"] == pytest.approx(lam.item(), rel=1e-12)


def test_a_run_does_not_go_on_with_another_controller(die_at, tmp_path, monkeypatch, capsys):
    die_at(5)
    with pytest.raises(KeyboardInterrupt):
        run.start(config_of(name="scale_free", average=0.0), tmp_path / "run")
    edited(tmp_path / "run", multiplier={"kind": "pid"})
    assert crl_resume(tmp_path / "run", monkeypatch) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the checkpoint's multiplier does not fit the settings" in said


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
    # Steps of each env: burn-in 3, three windows of 16, 4. Some steps only reset.
    poisoned = {"env": {"kwargs": {"poison_after": 55}}}
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
