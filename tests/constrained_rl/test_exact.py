import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import constrained_rl as crl
from constrained_rl.errors import InputError
from constrained_rl.exact import Yardstick, average_policy, tabular_policy
from constrained_rl.finite import FiniteCMDP
from constrained_rl.occupancy import evaluate_policy


def toll(limit=4.0, reward=(1.0, 0.0)):
    """One state at γ = 0.9: the first action pays and costs 1, so J_R = J_C = 10 · π(0)."""
    return FiniteCMDP(
        transition=np.ones((1, 2, 1)),
        reward=np.array([reward]),
        cost=np.array([[[1.0, 0.0]]]),
        initial=np.ones(1),
        discount=0.9,
        limit=np.array([limit]),
    )


def fork():
    """γ = 0.5: stay in state 0 or leave for ever to state 1; staying costs, being away pays."""
    return FiniteCMDP(
        transition=np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]),
        reward=np.array([[0.0, 0.0], [1.0, 1.0]]),
        cost=np.array([[[1.0, 0.0], [0.0, 0.0]]]),
        initial=np.array([1.0, 0.0]),
        discount=0.5,
        limit=np.array([1.0]),
    )


def test_tabular_policy_is_the_softmax_of_the_network_in_each_state():
    agent = crl.ppo(fork(), env={"num_envs": 2})
    with torch.no_grad():
        agent.policy.net[-1].weight.copy_(torch.tensor([[0.0, 3.0], [0.0, 3.0]]).log1p())
        agent.policy.net[-1].bias.copy_(torch.tensor([0.0, 3.0]).log1p())
    # odds 1 : 4 in both states: a weight that all actions share changes nothing
    np.testing.assert_allclose(tabular_policy(agent), [[0.2, 0.8], [0.2, 0.8]], atol=1e-6)


def test_tabular_policy_reads_states_that_no_episode_has_visited():
    agent = crl.ppo(fork(), env={"num_envs": 2})
    with torch.no_grad():
        agent.policy.net[-1].weight.copy_(torch.tensor([[0.0, 3.0], [0.0, 0.0]]).log1p())
        agent.policy.net[-1].bias.zero_()
    np.testing.assert_allclose(tabular_policy(agent), [[0.5, 0.5], [0.8, 0.2]], atol=1e-6)


def test_tabular_policy_refuses_an_environment_without_a_table():
    agent = crl.ppo("constrained_rl/PointHazard-v0", env={"num_envs": 1})
    with pytest.raises(InputError, match=r"PointHazard-v0, which is no finite CMDP"):
        tabular_policy(agent)


@pytest.mark.parametrize(
    ("share", "regret", "violation"),
    [
        (0.6, 2.0, 0.5),  # J = 6: nothing lost, λ* = 1 prices 2 too much of cost; span |4 − 5|
        (0.3, 1.0, 0.0),  # J = 3: 1 lost
        (0.4, 0.0, 0.0),  # the optimum
        (0.5, 1.0, 0.25),  # uniform: J = 5
    ],
)
def test_measures_of_a_policy_by_hand(share, regret, violation):
    found = Yardstick.of(toll()).measure(np.array([[share, 1 - share]]))
    assert found.value == pytest.approx(10 * share)
    assert found.cost == pytest.approx([10 * share])
    assert found.regret == pytest.approx(regret, abs=1e-9)
    assert found.violation == pytest.approx(violation, abs=1e-9)


def test_no_regret_where_every_policy_is_worth_the_same():
    found = Yardstick.of(toll(reward=(1.0, 1.0))).measure(np.array([[0.6, 0.4]]))
    assert found.regret is None
    assert found.violation == pytest.approx(0.5)


def test_an_infeasible_problem_has_violations_and_no_regret():
    yardstick = Yardstick.of(toll(limit=-1.0))  # least cost 0
    found = yardstick.measure(np.array([[0.1, 0.9]]))
    assert not yardstick.solution.feasible
    assert not yardstick.unique_price
    assert found.regret is None
    assert found.violation == pytest.approx(2.0)  # (1 + 1) / |−1|


def test_a_price_is_unique_unless_the_optimum_sits_on_a_corner():
    assert Yardstick.of(toll(limit=4.0)).unique_price
    # at limit 10 the best policy just fits: any price from 0 to 1 supports it
    assert not Yardstick.of(toll(limit=10.0)).unique_price


def test_average_policy_averages_occupancies_not_probabilities():
    stay, leave = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.5, 0.5]])
    # visits of state 0: 2 when staying, 1 when leaving; so stay : leave = 2 : 1
    np.testing.assert_allclose(average_policy(fork(), [stay, leave])[0], [2 / 3, 1 / 3])


@given(seed=st.integers(0, 1000), count=st.integers(1, 4))
def test_value_and_costs_of_the_average_are_the_means(seed, count):
    random = np.random.default_rng(seed)
    cmdp = FiniteCMDP(
        transition=random.dirichlet(np.ones(3), (3, 2)),
        reward=random.random((3, 2)),
        cost=random.random((2, 3, 2)),
        initial=random.dirichlet(np.ones(3)),
        discount=0.9,
        limit=np.ones(2),
    )
    policies = list(random.dirichlet(np.ones(2), (count, 3)))
    found = [evaluate_policy(cmdp, policy) for policy in policies]
    value, cost = evaluate_policy(cmdp, average_policy(cmdp, policies))
    assert value == pytest.approx(np.mean([v for v, _ in found]))
    np.testing.assert_allclose(cost, np.mean([c for _, c in found], axis=0))


def test_no_policy_has_no_average():
    with pytest.raises(InputError, match="no policy to average"):
        average_policy(fork(), [])
