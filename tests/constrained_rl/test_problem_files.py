"""A finite CMDP as a file or an object is an environment like any other."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import constrained_rl as crl
from constrained_rl.agent import Agent
from constrained_rl.cli import run_config
from constrained_rl.environments import resolve
from constrained_rl.errors import InputError
from constrained_rl.evaluation_report import evaluate_run
from constrained_rl.oracle import evaluate_policy, save_cmdp, uniform_policy
from constrained_rl.presets import defaults
from constrained_rl.run import resume, start
from constrained_rl.settings import read_run_config
from tests.constrained_rl.small_cmdps import coin, leave

TINY = (
    *("env.num_envs=4", "env.burn_in=0", "ppo.horizon=8", "ppo.epochs=1", "total_steps=64"),
    *("device=cpu", "evaluation.every=2", "evaluation.episodes=8", "checkpoint.every=1"),
)
DICT = {"env": {"num_envs": 4, "burn_in": 0}, "ppo": {"horizon": 8}, "device": "cpu"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with coin.npz."""
    save_cmdp(coin(limit=[0.75]), tmp_path / "coin.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(folder, *settings):
    return start(run_config(None, ["env.file=coin.npz", *TINY, *settings]), folder / "run")


def test_a_file_is_trained_on_with_its_own_limits_and_remembered(folder):
    config = read_run_config(trained(folder))
    assert config.limit == (0.75,)
    assert config.env.id == "coin.npz"
    assert config.env.file == str(folder / "coin.npz")
    assert len(config.env.digest) == 64


def test_a_limit_of_ones_own_comes_before_the_files(folder):
    assert resolve(run_config(None, ["env.file=coin.npz", "limit=2"]), None).limit == 2


def test_every_finite_problem_gets_the_same_settings_and_waits_for_its_episodes(folder):
    built_in = defaults("scale_free", "constrained_rl/Detour-v0")
    found = run_config("scale_free", ["env.file=coin.npz"])
    assert found.ppo.model_dump(include=set(built_in["ppo"])) == built_in["ppo"]
    assert found.env.num_envs == built_in["env"]["num_envs"]
    assert found.env.burn_in == 6  # 3 mean episodes of 1 / (1 − 1/2) = 2 decisions
    # Uniform in state 0: 1 + 1/2 + … = 2 decisions until the absorbing state.
    assert defaults("scale_free", None, leave())["env"]["burn_in"] == 6


def test_a_run_is_resumed_evaluated_and_loaded_from_another_folder(folder, monkeypatch):
    run = trained(folder)
    finished = (run / "policy.safetensors").read_bytes()
    (run / "policy.safetensors").unlink()
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert resume(run)
    assert (run / "policy.safetensors").read_bytes() == finished
    assert evaluate_run(run, 8, 9)["policies"][0]["constraints"][0]["limit"] == 0.75
    agent = Agent.load(run)
    assert agent.predict(np.array([1.0], np.float32)) in (0, 1)
    agent.close()


def test_a_file_that_has_changed_is_refused_and_nothing_is_changed(folder):
    run = trained(folder)
    (run / "policy.safetensors").unlink()
    save_cmdp(coin(limit=[0.5]), folder / "coin.npz")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for use in (resume, Agent.load, lambda run: evaluate_run(run, 8, 0)):
        with pytest.raises(InputError, match=r"coin\.npz has changed: its SHA-256 is"):
            use(run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    (folder / "coin.npz").unlink()
    with pytest.raises(InputError, match=r"env\.file .*coin\.npz cannot be read \(No such file"):
        resume(run)


def test_an_agent_is_built_on_a_file_saved_and_loaded(folder, monkeypatch):
    agent = crl.ppo_lagrangian(Path("coin.npz"), **DICT)
    agent.train(64)
    agent.save(folder / "agent")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    again = Agent.load(folder / "agent")
    assert again.config.env.file == str(folder / "coin.npz")
    for mine, theirs in zip(agent.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_an_agent_is_built_on_a_problem_given_as_an_object():
    agent = crl.ppo_lagrangian(coin(), **DICT)
    assert agent.config.limit == (1.0,)
    assert agent.config.env.id == "<given as an object>"
    assert len(agent.evaluate(8)) == 8


def test_episodes_of_a_problem_without_discount_end_in_absorbing_states():
    cmdp = leave(limit=[3.0])
    agent = crl.ppo_lagrangian(cmdp, **DICT)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.zero_()  # uniform
    found = agent.evaluate(2000, seed=1)
    value, cost = evaluate_policy(cmdp, uniform_policy(cmdp))  # 1/2 + 1/4 + … = 1, variance 2
    assert (value, cost.tolist()) == (1.0, [1.0])
    assert found.return_.mean() == pytest.approx(1.0, abs=4 * np.sqrt(2 / 2000))
    assert found.length.mean() == pytest.approx(2.0, abs=4 * np.sqrt(2 / 2000))
    with pytest.raises(InputError, match="no state is absorbing"):
        crl.ppo_lagrangian(replace(coin(), discount=1.0), **DICT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["env.id=CartPole-v1"], "found both file = 'coin.npz' and id = 'CartPole-v1'"),
        (["env.kwargs={a = 1}"], "is played natively and has no constructor"),
        (["env.vectorization=async"], "is played natively and has no constructor"),
        (["limit=[1, 2]"], "limit has 2 entries"),
    ],
)
def test_settings_that_a_file_cannot_have_are_refused(folder, settings, message):
    with pytest.raises(InputError, match=message):
        trained(folder, *settings)
    assert not (folder / "run").exists()


def test_a_digest_without_a_file_is_refused():
    with pytest.raises(InputError, match="digest is 'abc', but there is no file"):
        run_config(None, ["env.digest=abc"])


def test_the_settings_of_a_finished_run_can_be_used_again(folder):
    run = trained(folder)
    again = run_config(None, [str(run / "config.toml"), "seed=1"])
    assert again.env == read_run_config(run).env
    assert json.loads(again.model_dump_json())["env"]["file"] == str(folder / "coin.npz")
