import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_rl.errors import InputError
from constrained_rl.occupancy import (
    Settling,
    evaluate_policy,
    occupancy,
    policy_of,
    uniform_policy,
)
from constrained_rl.oracle import Average, Discounted, Horizon
from tests.constrained_rl.small_cmdps import coin, leave, random_cmdp

STAY, HALF = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.5, 0.5], [0.5, 0.5]])


def test_a_uniform_coin_is_worth_half_a_visit_at_every_discount():
    # 1 / (1 − 1/2) = 2 visits, half of them pay 1 and cost 1
    assert evaluate_policy(coin(), uniform_policy(coin())) == (1.0, [1.0])


def test_totals_until_an_absorbing_state_count_the_visits_before_it():
    # Staying with 3/4: 1 + 3/4 + (3/4)² + … = 4 visits, of which 3 pay.
    policy = np.array([[0.75, 0.25], [1.0, 0.0]])
    assert occupancy(leave(), policy)[0] == pytest.approx([3, 1])
    assert evaluate_policy(leave(), policy)[0] == pytest.approx(3)


def test_a_policy_that_never_ends_an_undiscounted_episode_is_refused():
    with pytest.raises(InputError, match="in state 0 never ends, and discount is 1"):
        evaluate_policy(leave(), STAY)


def test_an_episode_of_three_decisions_weighs_each_once():
    # Leaving with 1/2 each time: still there with 1, 1/2, 1/4; half of that pays: 7/8.
    value, cost = evaluate_policy(leave(), HALF, Horizon(3))
    assert (value, cost.tolist()) == (0.875, [0.875])
    assert occupancy(leave(), HALF, Horizon(3)).sum(axis=(1, 2)) == pytest.approx([1, 1, 1])
    # a policy of its own for each decision: stay, stay, leave
    timed = np.stack([STAY, STAY, np.array([[0.0, 1.0], [1.0, 0.0]])])
    assert evaluate_policy(leave(), timed, Horizon(3))[0] == 2.0


def test_the_average_of_a_periodic_chain_is_its_share_of_time():
    # 0 → 1 → 0 → …: half of the decisions are made in state 0, whatever the period.
    swap = np.array([[[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    value, _ = evaluate_policy(leave(transition=swap), STAY, Average())
    assert value == pytest.approx(0.5)


def test_the_average_of_several_closed_classes_weighs_them_by_absorption():
    # From 0, 1/4 to state 1, which pays 8, and 3/4 to the pair 2 ↔ 3, which pays 1 and 3: 2 + 1.5.
    there = np.zeros((4, 1, 4))
    there[0, 0, 1:3] = 0.25, 0.75
    there[1, 0, 1] = there[2, 0, 3] = there[3, 0, 2] = 1
    cmdp = leave(
        transition=there,
        reward=np.array([[5.0], [8.0], [1.0], [3.0]]),
        cost=np.ones((1, 4, 1)),
        initial=np.eye(4)[0],
    )
    value, cost = evaluate_policy(cmdp, np.ones((4, 1)), Average())
    assert value == pytest.approx(3.5)
    assert cost == pytest.approx([1])


def test_settling_splits_episodes_as_no_stationary_policy_does():
    # Settle in state 0 in 3/4 of the episodes, else leave: the average is 3/4.
    wander = np.array([[0.0, 1.0], [0.5, 0.5]])
    policy = Settling(wander, np.array([0.75, 1.0]), STAY)
    assert evaluate_policy(leave(), policy, Average())[0] == pytest.approx(0.75)
    stationary = np.array([[0.999, 0.001], [0.5, 0.5]])
    assert evaluate_policy(leave(), stationary, Average())[0] == pytest.approx(0)
    with pytest.raises(InputError, match="is for the long-run average, not for Discounted"):
        evaluate_policy(leave(), policy)
    never = Settling(STAY, np.array([0.0, 1.0]), STAY)
    with pytest.raises(InputError, match="may wander for ever"):
        evaluate_policy(leave(), never, Average())


def test_the_policy_of_an_occupancy_is_uniform_where_nothing_is_visited():
    assert policy_of(np.array([[1.0, 3.0], [0.0, 0.0]])).tolist() == [[0.25, 0.75], [0.5, 0.5]]


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), criterion=st.sampled_from([Discounted(), Average()]))
def test_averaging_occupancies_averages_values_which_averaging_policies_does_not(seed, criterion):
    cmdp = random_cmdp(seed, states=4, actions=3, channels=2)
    rng = np.random.default_rng(seed)
    policies = rng.dirichlet(np.ones(3), (2, 4))
    mean = sum(occupancy(cmdp, policy, criterion) for policy in policies) / 2
    value, cost = evaluate_policy(cmdp, policy_of(mean), criterion)
    values, costs = zip(*(evaluate_policy(cmdp, p, criterion) for p in policies), strict=True)
    assert value == pytest.approx(np.mean(values), abs=1e-9)
    assert cost == pytest.approx(np.mean(costs, axis=0), abs=1e-9)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ([[1.0]], r"policy has shape \(1, 1\), expected \[S, A\] = \(1, 2\)"),
        ([[0.5, 0.4]], r"policy\[0\] sums to 0.9"),
        ([[1.5, -0.5]], r"policy\[0, 1\] is -0.5"),
        ([[np.nan, 1.0]], r"policy\[0, 0\] is nan"),
    ],
)
def test_malformed_policies_are_refused(policy, message):
    with pytest.raises(InputError, match=message):
        evaluate_policy(coin(), policy)
    with pytest.raises(InputError, match=r"expected \[S, A\] = \(1, 2\) or \[H, S, A\] = \(2, 1"):
        evaluate_policy(coin(), np.ones((3, 1, 2)), Horizon(2))
