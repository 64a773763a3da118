"""A λ that overflows is named, and not the policy whose loss it makes NaN."""

import math
import tomllib

import gymnasium
import pytest
import tomli_w
import torch

from constrained_rl.advantages import require_mixable
from constrained_rl.errors import NonFiniteError
from constrained_rl.logging import read_metrics
from tests.constrained_rl.helpers import Scripted, tiny
from tests.constrained_rl.test_cli import TINY, crl

__all__ = ["crl"]  # the fixture


def costly():
    """Episodes of five steps that cost 100 together."""
    env = Scripted([(1.0, 20.0)] * 5, ends="truncated")
    env.cost_names = ("risk",)
    return env


gymnasium.register("tests/Costly-v0", costly)
LOG = {"kind": "gradient", "parameterization": "log", "initial": 1.0}


def test_the_log_rule_explodes_as_its_equation_says_and_is_named():
    # ln λ += .05 λ (100 − 25): 1 → e^3.75 = 42.5 → e^(3.75 + 159.4) = 7.5e70, no float32 any more
    agent = tiny("ppo_lagrangian", costly, limit=25.0, multiplier=LOG)
    steps = agent.iterate(40 * agent.steps_per_iteration)
    assert next(steps)["lambda/risk"] == pytest.approx(math.exp(3.75))
    with pytest.raises(NonFiniteError, match=r"λ has exploded: it is .*e\+70.*multiplier\.maximum"):
        list(steps)
    assert all(bool(torch.isfinite(p).all()) for p in agent.policy.parameters())


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "gradient", "learning_rate": 1e30},
        {"kind": "pid", "kp": 1e37},
        {"kind": "gradient", "parameterization": "softplus", "initial": 1.0, "learning_rate": 1e37},
    ],
)
def test_so_is_that_of_every_other_rule(rule, divide):
    agent = tiny("ppo_lagrangian", costly, limit=25.0, multiplier=rule, ppo={"divide": divide})
    if divide and rule["kind"] == "gradient" and "parameterization" not in rule:
        # λ = 7.5e31: numerator and denominator are numbers, and so is what the policy learns from
        assert math.isfinite(agent.train(agent.steps_per_iteration)["loss/policy"])
        return
    with pytest.raises(NonFiniteError, match="λ has exploded"):
        agent.train(5 * agent.steps_per_iteration)


def test_advantages_that_are_too_large_themselves_are_not_blamed_on_lambda():
    advantage = torch.tensor([[[1e20, 1.0]]])
    huge = advantage[..., 0]
    assert require_mixable(huge, advantage, torch.tensor([0.5])) is huge
    small = torch.tensor([[3.0, -4.0]])
    assert require_mixable(small, advantage, torch.tensor([0.5])) is small


def test_a_run_goes_on_below_a_maximum(crl, tmp_path):
    folder = tmp_path / "run"
    rule = ("multiplier.kind=gradient", "multiplier.parameterization=log", "multiplier.initial=1")
    run = (*TINY, "--preset", "ppo_lagrangian", "env.id=tests/Costly-v0", "limit=25", *rule)
    longer = ("total_steps=192", "ppo.horizon=16", "checkpoint.every=1")
    code, _, err = crl("train", *run, *longer, "--out", folder)
    assert code == 2
    said = " ".join(err.split())
    assert "λ has exploded" in said
    assert "loss/policy" not in said
    config = tomllib.loads((folder / "config.toml").read_text())
    config["multiplier"]["maximum"] = 9.0
    config["total_steps"] = 4 * 64
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    code, _, err = crl("resume", folder)
    assert (code, err) == (0, "")
    assert read_metrics(folder / "metrics.jsonl")[-1]["lambda/risk"] == pytest.approx(9.0)
