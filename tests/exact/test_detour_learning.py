"""Learning held against the exact optimum of a finite CMDP. Slow: run with `make test-slow`."""

import pytest
import torch

import constrained_rl as crl
from constrained_rl.envs.problems import cmdp_of
from constrained_rl.oracle import evaluate_policy, solve

ENV = "constrained_rl/Detour-v0"


def exact(agent):
    """Value and cost of the stochastic policy by a linear solve, without sampling."""
    cmdp = cmdp_of(ENV)
    states, actions = cmdp.reward.shape
    obs = torch.eye(states).unsqueeze(1)
    with torch.no_grad():
        logp = [agent.policy(obs, torch.full((states, 1), a))[0][:, 0] for a in range(actions)]
    value, cost = evaluate_policy(cmdp, torch.stack(logp, -1).double().softmax(-1).numpy())
    return value, cost[0]


@pytest.mark.slow
def test_pid_lagrangian_comes_within_five_percent_of_the_optimum_in_four_of_five_seeds():
    optimum, limit = solve(cmdp_of(ENV)).value, 4.0
    reached = 0
    for seed in range(200, 205):
        agent = crl.pid_lagrangian(ENV, seed=seed)
        agent.train()
        value, cost = exact(agent)
        reached += abs(optimum - value) < 0.05 * optimum and cost < 1.05 * limit
    assert reached >= 4


@pytest.mark.slow
def test_without_a_constraint_the_limit_is_clearly_violated():
    # Negative control: the same learner at price 0 takes the risky lane.
    agent = crl.static_shaping(ENV, weight=0.0, seed=200)
    agent.train(1_600_000)
    assert exact(agent)[1] > 1.5 * 4.0
