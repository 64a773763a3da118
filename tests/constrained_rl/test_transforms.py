import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from constrained_rl.constraints import Constraint
from constrained_rl.transforms import (
    group_excess,
    group_payment,
    quantile,
    tail_cost,
    transform_cost,
)

numbers = st.lists(st.floats(-100, 100), min_size=1, max_size=20)
shares = st.floats(0.05, 0.95)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_identity_bounds_the_cost_itself():
    assert transform_cost(tensor(-2, 3), "identity").tolist() == [-2, 3]


def test_probability_reads_the_cost_as_a_logit():
    # σ(0) = ½, σ(ln 3) = ¾
    logits = tensor(0, math.log(3))
    assert_close(transform_cost(logits, "probability"), tensor(0.5, 0.75))
    assert_close(transform_cost(logits + 2, "probability", threshold=2.0), tensor(0.5, 0.75))


def test_indicator_counts_costs_above_the_threshold_only():
    assert transform_cost(tensor(-1, 0, 0.1), "indicator").tolist() == [0, 0, 1]
    assert transform_cost(tensor(-1, 0, 0.1), "indicator", threshold=-0.5).tolist() == [0, 1, 1]


def test_excess_is_what_lies_above_the_threshold():
    assert transform_cost(tensor(-5, 2, 6), "excess", threshold=2.0).tolist() == [0, 0, 4]


@given(numbers, st.floats(-10, 10))
def test_an_excess_is_never_negative_and_never_below_that_of_the_mean(costs, threshold):
    excess = transform_cost(tensor(*costs), "excess", threshold)
    assert float(excess.min()) >= 0
    rounding = 1e-6 * abs(threshold) + 1e-9  # a cost at the threshold is not above it
    assert float(excess.mean()) >= sum(costs) / len(costs) - threshold - rounding


# CVaR


def test_cvar_is_the_mean_of_the_worst():
    # the worst fifth of ten costs are 9 and 10
    costs = torch.arange(1.0, 11.0, dtype=torch.float64)
    assert_close(transform_cost(costs, "cvar", alpha=0.8).mean(), tensor(9.5)[0])
    # the worst quarter: 10, 9 and half of 8, that is (10 + 9 + 4) / 2.5
    assert_close(transform_cost(costs, "cvar", alpha=0.75).mean(), tensor(9.2)[0])


def test_tail_cost_charges_what_exceeds_t_by_the_rarity_of_the_tail():
    # 2 + (5 − 2) / (1 − ¾) = 14
    assert tail_cost(tensor(1, 5), 2.0, 0.75).tolist() == [2, 14]


@given(numbers, shares, st.floats(-100, 100))
def test_cvar_is_at_least_the_mean_and_least_at_the_quantile(costs, alpha, t):
    cost = tensor(*costs)
    cvar = float(transform_cost(cost, "cvar", alpha=alpha).mean())
    assert cvar >= float(cost.mean()) - 1e-9
    assert cvar <= float(tail_cost(cost, t, alpha).mean()) + 1e-9
    assert cvar <= max(costs) + 1e-9


@given(numbers, shares)
def test_the_quantile_is_the_smallest_cost_that_enough_do_not_exceed(costs, alpha):
    t = quantile(costs, alpha)
    assert t in costs
    assert sum(c <= t for c in costs) >= alpha * len(costs) - 1e-9
    assert sum(c < t for c in costs) < alpha * len(costs)


# groups


def test_a_safe_group_does_not_pay_for_an_unsafe_one():
    value, group = tensor(-9, -7, 1, 3), torch.tensor([4, 4, 7, 7])
    # means −8 and 2: the mean over all is −3, the mean excess over −1 is (0 + 3) / 2
    assert group_excess(value, group, -1.0).tolist() == [0, 3]
    assert group_payment(value, group, -1.0).tolist() == [0, 0, 2, 4]


def test_members_that_lift_their_group_over_the_threshold_pay_for_it():
    # mean ½; without 4 it is −3, without −3 it is 4:  2·½ − 0 = 1  and  2·½ − 4 = −3
    assert group_payment(tensor(4, -3), torch.tensor([0, 0]), 0.0).tolist() == [1, -3]


@given(numbers, st.floats(-10, 10))
def test_groups_of_one_are_the_excess_of_single_episodes(costs, threshold):
    value, group = tensor(*costs), torch.arange(len(costs))
    excess = transform_cost(value, "excess", threshold)
    assert_close(group_excess(value, group, threshold), excess)
    assert_close(group_payment(value, group, threshold), excess)


@given(numbers, st.floats(-10, 10))
def test_a_group_exceeds_by_no_more_than_its_members_do(costs, threshold):
    value = tensor(*costs)
    one = torch.zeros(len(costs), dtype=torch.long)
    together = float(group_excess(value, one, threshold)[0])
    assert 0 <= together <= float((value - threshold).relu().mean()) + 1e-9


COSTS = tensor([-6, -2, 3], [1, 4, -3])  # of three answers to each of two prompts


def mean_excess(theta, members, threshold):  # [2, 3] → scalar
    """E over prompts and answers of the groups' excess, by enumeration."""
    total = tensor(0.0)[0]
    for prompt, answers in every_group(members):
        chance = theta.softmax(1)[prompt, list(answers)].prod() / 2
        group = torch.zeros(members, dtype=torch.long)
        total = total + chance * group_excess(COSTS[prompt, list(answers)], group, threshold)[0]
    return total


def every_group(members):
    return itertools.product(range(2), itertools.product(range(3), repeat=members))


@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.0, -1.5])
def test_payments_give_the_policy_gradient_of_the_mean_excess(members, threshold):
    theta = tensor([0.3, -0.2, 0.5], [-0.4, 0.1, 0.2])
    # E[(1/n) Σ w_i ∇ln π(y_i)], every group weighted by its chance
    logits = theta.clone().requires_grad_()
    loss = tensor(0.0)[0]
    for prompt, answers in every_group(members):
        index = list(answers)
        logp = logits.log_softmax(1)[prompt, index]
        group = torch.zeros(members, dtype=torch.long)
        paid = group_payment(COSTS[prompt, index], group, threshold)
        loss = loss + logp.sum().exp().detach() / 2 * (paid * logp).mean()
    (gradient,) = torch.autograd.grad(loss, logits)
    for place in itertools.product(range(2), range(3)):
        step = torch.zeros_like(theta)
        step[place] = 1e-5
        up, down = (mean_excess(theta + s * step, members, threshold) for s in (1, -1))
        assert gradient[place].item() == pytest.approx(float(up - down) / 2e-5, abs=1e-8)


def most_reward(constraint, members):
    """Largest share of harmful answers to prompt 1 that a constraint allows, by enumeration.

    Prompt 0 has one answer, of cost −4. Prompt 1 has a harmful and helpful one (reward 1, cost 3)
    and a refusal (reward 0, cost −1), so the reward is the share of harmful ones.
    """
    allowed = 0.0
    for q in torch.linspace(0, 1, 201, dtype=torch.float64).tolist():
        bounded = 0.0
        for harmful in range(members + 1):
            chance = math.comb(members, harmful) * q**harmful * (1 - q) ** (members - harmful)
            answers = [3.0] * harmful + [-1.0] * (members - harmful)
            cost = tensor(*[-4.0] * members, *answers)
            group = torch.arange(2).repeat_interleave(members)
            bounded += chance * float(constraint.value(cost, group=group).mean())
        if bounded <= constraint.limit + 1e-9:
            allowed = q
    return allowed


def test_a_bound_on_the_mean_lets_a_safe_prompt_pay_for_an_unsafe_one():
    # (−4 + 4q − 1) / 2 ≤ 0 for every q: prompt 1 may be answered harmfully each time
    assert most_reward(Constraint("harm", 0.0), members=1) == 1
    # excess of single answers: 3q / 2 ≤ .05 allows q = 1/30, .03 on the grid of .005
    assert most_reward(Constraint("harm", 0.05, transform="excess"), members=1) == pytest.approx(
        0.03
    )
    # four answers: with k harmful ones the mean is k − 1, E(k − 1)⁺ = 4q − 1 + (1 − q)⁴, which at
    # q = .13 is .0929 and at .135 .0999: half of it keeps the limit
    by_group = Constraint("harm", 0.05, per="group")
    assert most_reward(by_group, members=4) == pytest.approx(0.135)
    # ever more answers approach 4q − 1 ≤ .1, q = .275: what a prompt's own mean allows
    assert most_reward(by_group, members=64) == pytest.approx(0.265, abs=0.0101)
