"""Learning held against the exact optimum of a finite CMDP. Slow: run with `make test-slow`."""

import pytest

import constrained_rl as crl
from constrained_rl.envs.problems import cmdp_of
from constrained_rl.exact import Yardstick, tabular_policy

DETOUR, COIN = "constrained_rl/Detour-v0", "constrained_rl/Coin-v0"


def learned(agent, env_id, steps=None):
    """The trained policy, measured exactly."""
    agent.train(steps)
    return Yardstick.of(cmdp_of(env_id)).measure(tabular_policy(agent))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [200, 201, 202])
@pytest.mark.parametrize("env_id", [DETOUR, COIN])
def test_the_default_rule_comes_within_five_percent_of_the_optimum(env_id, seed):
    found = learned(crl.scale_free(env_id, seed=seed), env_id)
    assert found.regret < 0.05
    assert found.violation < 0.05


@pytest.mark.slow
def test_without_a_constraint_the_limit_is_clearly_violated():
    # Negative control: the same learner at price 0 takes the risky lane.
    found = learned(crl.static_shaping(DETOUR, weight=0.0, seed=200), DETOUR, steps=800_000)
    assert found.violation > 0.5
    assert found.regret > 0.05
