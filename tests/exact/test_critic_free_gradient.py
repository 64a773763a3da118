"""Without critics: the expected update is the policy gradient, by enumerating every possible group.

Responses are two tokens of three. All 9 · 9 ordered pairs of responses are rows of one batch, each
pair a group weighted by its probability, so that the batch's gradient is the expectation.
"""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.testing import assert_close

from constrained_rl.config import PPOConfig
from constrained_rl.constraints import Constraint, Constraints
from constrained_rl.estimators import Mean
from constrained_rl.learner import PolicyObjective
from constrained_rl.ppo import mix
from constrained_rl.rollout import Episodes, Rollout, Streams
from constrained_rl.streams import build_streams, compare_rows

SEQUENCES = torch.tensor(list(product(range(3), repeat=2)))  # [9, 2]
PAIRS = torch.tensor(list(product(range(9), repeat=2)))  # [81, 2]
BETA, LAM = 0.3, 1.7


class Table(torch.nn.Module):
    """π(a_t | a_{t − 1}) from a table; state 3 is the beginning."""

    def __init__(self, seed):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.logits = torch.nn.Parameter(torch.randn(4, 3, generator=g, dtype=torch.float64))

    def forward(self, obs, action):
        logp = self.logits.log_softmax(-1)[obs]
        entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(-1, action.unsqueeze(-1)).squeeze(-1), entropy


def states(action):
    return torch.cat([torch.full_like(action[:, :1], 3), action[:, :-1]], 1)


def scores(action):
    """Reward and cost of responses, each [B]."""
    reward = tensor(5.0, 1.0, -2.0)[action[:, 0]] + tensor(0.0, 2.0, 0.5)[action[:, 1]]
    return reward, (action == 0).any(1).double()


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def at_end(x):
    return torch.stack([torch.zeros_like(x), x], 1)


def true_gradient(policy, reference):
    """∇ Σ_y π(y) (R(y) − λ C(y) − (1 + λ) β ln(π(y)/π_ref(y))) / (1 + λ): KL in both streams."""
    logp = policy(states(SEQUENCES), SEQUENCES)[0].sum(1)
    reference_logp = reference(states(SEQUENCES), SEQUENCES)[0].sum(1).detach()
    reward, cost = scores(SEQUENCES)
    kl = logp - reference_logp
    value = (logp.exp() * ((reward - LAM * cost) / (1 + LAM) - BETA * kl)).sum()
    return torch.autograd.grad(value, policy.logits)[0]


def expected_update(policy, reference, rule):
    """Minus the gradient of the loop's loss, in expectation over groups of two responses."""
    config = PPOConfig(
        advantage=rule, gamma=1.0, normalize="none", kl_coefficient=BETA, kl_streams="both"
    )
    action = SEQUENCES[PAIRS.flatten()]  # [162, 2]
    obs = states(action)
    with torch.no_grad():
        logp, reference_logp = policy(obs, action)[0], reference(obs, action)[0]
    reward, cost = scores(action)
    end = torch.tensor([[False, True]]).expand(len(action), 2)
    rollout = Rollout(
        obs=obs, action=action, reward=at_end(reward), cost=at_end(cost).unsqueeze(-1),
        terminated=end, done=end, mask=torch.ones_like(end), exchangeable=False,
        episodes=Episodes(reward, cost.unsqueeze(1), *(torch.ones(162).long(),) * 3),
        group=torch.arange(81).repeat_interleave(2),
    )  # fmt: skip
    constraints = Constraints([Constraint("cost", 0.0)], [Mean()])
    paid = build_streams(rollout, constraints.streams(rollout), config, logp - reference_logp)
    advantage = compare_rows(rollout, paid, config)
    streams = Streams(obs, action, rollout.mask, logp, paid, advantage, exchangeable=False)
    batch = mix(streams, tensor(LAM), config)
    chance = logp.sum(1).exp().view(81, 2).prod(1).repeat_interleave(2) / 2  # Σ over rows is 1
    batch = replace(batch, weight=chance.unsqueeze(1).expand(162, 2))
    loss, _ = PolicyObjective(policy, clip=0.2, entropy=0.0)(batch)
    return -torch.autograd.grad(loss, policy.logits)[0]


@pytest.mark.parametrize("seed", range(3))
def test_the_expected_leave_one_out_update_is_the_gradient_of_the_lagrangian(seed):
    policy, reference = Table(seed), Table(seed + 10)
    true = true_gradient(policy, reference)
    assert true.abs().max() > 0.05
    assert_close(expected_update(policy, reference, "leave_one_out"), true)


def test_the_expected_group_normalised_update_is_another():
    policy, reference = Table(0), Table(10)
    true, found = true_gradient(policy, reference), expected_update(policy, reference, "group")
    cosine = torch.nn.functional.cosine_similarity(true.flatten(), found.flatten(), dim=0)
    assert 0 < cosine < 0.99
