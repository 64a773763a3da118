"""A cost that meets its limit exactly keeps it, whatever its sum is rounded to.

0.1 + 0.1 + 0.1 is 0.30000000000000004 in float64; in float32 0.1 is 0.10000000149011612.
"""

import json

import gymnasium
import numpy as np
import pytest
import torch

from constrained_rl.constraints import Constraint, Signal
from constrained_rl.evaluation import Evaluation
from constrained_rl.feasibility import kept
from constrained_rl.logging import read_metrics
from constrained_rl.safety_test import SafetyTest
from constrained_rl.transforms import group_excess, transform_cost
from llm_env import cli
from tests.constrained_rl.helpers import Scripted, tiny, vector

THREE = 0.1 + 0.1 + 0.1
FLOAT32 = 3 * float(np.float32(0.1))


def three(dtype="float64"):
    """Episodes of three steps that pay 0.1 each."""
    env = Scripted([(1.0, np.dtype(dtype).type(0.1))] * 3, ends="truncated")
    env.cost_names = ("risk",)
    return env


@pytest.mark.parametrize("cost", [THREE, FLOAT32, 0.3, 0.0])
@pytest.mark.parametrize("unit", [1, 1e-9, 1e9])
def test_a_cost_at_its_limit_keeps_it_in_every_unit(cost, unit):
    assert kept(cost * unit, 0.3 * unit)
    assert not kept(0.3001 * unit, 0.3 * unit)
    assert not kept(-0.2999 * unit, -0.3 * unit)
    assert not kept(1e-30 * unit, 0.0)  # a limit of 0 has no digits to be rounded in


@pytest.mark.parametrize("cost", [THREE, FLOAT32])
def test_an_evaluation_at_its_limit_is_feasible(cost):
    costs = np.full((4, 1), cost)
    assert costs.mean() > 0.3
    found = Evaluation(costs[:, 0], costs, costs[:, 0], (Constraint("c", 0.3),), ("c",))
    assert found.feasible


@pytest.mark.parametrize("rule", [{"kind": "gradient"}, {"kind": "pid"}, {"kind": "scale_free"}])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_no_price_rises_at_the_limit(rule, dtype):
    agent = tiny("ppo_lagrangian", lambda: three(dtype), limit=0.3, multiplier=rule)
    for metrics in agent.iterate(3 * agent.steps_per_iteration):
        assert metrics["lambda/risk"] == 0
    assert metrics["estimate/risk"] > 0.3


def test_costs_that_cancel_meet_a_limit_of_0():
    # 0.1 + 0.2 − 0.3 is 5.6e-17
    env = Scripted([(1.0, 0.1), (1.0, 0.2), (1.0, -0.3)], ends="truncated")
    env.cost_names = ("risk",)
    agent = tiny("ppo_lagrangian", lambda: env, limit=0.0, sub={"num_envs": 1})
    for metrics in agent.iterate(3 * agent.steps_per_iteration):
        assert metrics["lambda/risk"] == 0
    assert 0 < metrics["estimate/risk"] < 1e-16
    found = agent.evaluate(2, env=vector(env))
    assert found.feasible
    assert found.cost.tolist() == [[0.0], [0.0]]


def test_the_violation_is_0_within_rounding_and_exact_beyond():
    cost = torch.tensor([THREE, 0.3 - 1e-9, 0.31, 0.0], dtype=torch.float64)
    limit = torch.tensor([0.3, 0.3, 0.3, 0.3], dtype=torch.float64)
    one = torch.ones_like(cost)
    found = Signal(cost, limit, one, one, 1.0, 1.0).violation
    assert found.tolist() == [0, 0, 0.31 - 0.3, -0.3]


def test_a_cost_at_the_threshold_is_not_above_it():
    costs = torch.tensor([THREE, FLOAT32, 0.31, 0.2], dtype=torch.float64)
    assert transform_cost(costs, "indicator", threshold=0.3).tolist() == [0, 0, 1, 0]
    assert transform_cost(costs, "excess", threshold=0.3).tolist() == [0, 0, 0.31 - 0.3, 0]
    assert group_excess(costs[:2], torch.tensor([0, 0]), 0.3).tolist() == [0]
    below = torch.tensor([-THREE, -FLOAT32, -0.29])
    assert transform_cost(below, "indicator", threshold=-0.3).tolist() == [0, 0, 1]


def test_a_bound_at_the_limit_passes():
    # all samples are equal, so that Student's t bounds the mean by itself
    test = SafetyTest(limit=0.3, method="t")
    assert test(np.full((20, 1), THREE)).passed
    assert not test(np.full((20, 1), 0.301)).passed


def test_a_run_at_its_limit_has_a_best_policy_that_can_be_certified(tmp_path, monkeypatch, capsys):
    def crl(*arguments):
        monkeypatch.setattr("sys.argv", ["crl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, capsys.readouterr().out

    gymnasium.register("tests/Three-v0", three)
    folder = tmp_path / "run"
    settings = ["env.num_envs=2", "ppo.horizon=8", "ppo.epochs=1", "total_steps=16", "device=cpu"]
    settings += ["evaluation.every=1", "evaluation.episodes=4"]
    crl("train", "--preset", "pid_lagrangian", "env.id=tests/Three-v0", "limit=0.3", *settings,
        "--out", folder)  # fmt: skip
    (row,) = read_metrics(folder / "metrics.jsonl")
    assert row["evaluation/feasible"] == 1
    _, out = crl("evaluate", folder, "--episodes", 4, "--json")
    found = json.loads(out)
    assert {p["policy"].split()[0] for p in found["policies"]} == {"last", "best"}
    assert all(c["kept"] for p in found["policies"] for c in p["constraints"])
    assert crl("certify", folder / "best", "--episodes", 8)[0] == 0
