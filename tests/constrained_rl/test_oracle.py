import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_rl.envs.problems import cmdp_of
from constrained_rl.errors import InputError
from constrained_rl.oracle import (
    Average,
    Discounted,
    FiniteCMDP,
    Horizon,
    evaluate_policy,
    multiplier_ranges,
    solve,
    uniform_policy,
)
from tests.constrained_rl.small_cmdps import coin, leave, random_cmdp

DATA = Path(__file__).parents[1] / "data" / "cmdp"
EXPECTED = json.loads((DATA / "expected.json").read_text())


def known(name):
    return cmdp_of(f"constrained_rl/{name.capitalize()}-v0")


@pytest.mark.parametrize("name", EXPECTED)
def test_the_linear_program_reproduces_the_known_optima(name):
    solution, expected = solve(known(name)), EXPECTED[name]
    assert solution.feasible
    assert solution.least_cost is None
    assert solution.value == pytest.approx(expected["value"], rel=1e-6)
    assert solution.cost == pytest.approx(expected["cost"], rel=1e-6)
    assert solution.multipliers == pytest.approx(expected["multipliers"], rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_uniform_policy_has_the_known_value_and_costs(name):
    value, cost = evaluate_policy(known(name), uniform_policy(known(name)))
    assert value == pytest.approx(EXPECTED[name]["uniform_policy"]["value"], rel=1e-6)
    assert cost == pytest.approx(EXPECTED[name]["uniform_policy"]["cost"], rel=1e-6)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_optimal_policy_attains_the_value_and_respects_the_limits(name):
    cmdp = known(name)
    solution = solve(cmdp)
    value, cost = evaluate_policy(cmdp, solution.policy)
    assert value == pytest.approx(solution.value, rel=1e-9)
    assert cost == pytest.approx(solution.cost, rel=1e-8)
    assert (cost <= cmdp.limit + 1e-8).all()


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("criterion", [Discounted(), Average(), Horizon(6)], ids=str)
def test_at_the_multipliers_the_unconstrained_lagrangian_has_the_same_optimum(name, criterion):
    # Strong duality of the LP: max_π J_r − Σ λ_k (J_k − d_k) = J* at λ = λ*.
    cmdp = known(name)
    solution = solve(cmdp, criterion)
    shaped = cmdp.reward - np.einsum("k,ksa->sa", solution.multipliers, cmdp.cost)
    loose = np.full_like(cmdp.limit, 1e6)
    free = solve(replace(cmdp, reward=shaped, limit=loose), criterion)
    bound = free.value + solution.multipliers @ cmdp.limit
    assert bound == pytest.approx(solution.value, rel=1e-6)


def test_the_optimum_of_a_coin_randomises_and_the_price_of_cost_is_one():
    # Visits sum to 1 / (1 − 1/2) = 2; cost ≤ 1 allows action 0 half of the time; return 1 = cost.
    solution = solve(coin())
    assert solution.policy == pytest.approx(np.array([[0.5, 0.5]]))
    assert solution.value == pytest.approx(1)
    assert solution.multipliers == pytest.approx([1])


def test_a_constraint_that_does_not_bind_has_multiplier_zero():
    solution = solve(coin(limit=[5.0]))  # the most costly policy costs 2
    assert solution.value == pytest.approx(2)
    assert solution.multipliers.tolist() == [0.0]


def test_a_problem_without_constraints_is_solved_too():
    solution = solve(coin(cost=np.zeros((0, 1, 2)), limit=[]))
    assert (solution.value, solution.cost.shape, solution.multipliers.shape) == (2.0, (0,), (0,))


def test_infeasible_problems_report_the_least_cost_of_each_constraint():
    # Both actions cost: 1 or 0.25 in channel 0, 0 or 1 in channel 1; visits sum to 2.
    cost = np.array([[[1.0, 0.25]], [[0.0, 1.0]]])
    solution = solve(coin(cost=cost, limit=[0.4, 3.0]))
    assert not solution.feasible
    assert np.isnan(solution.value)
    assert np.isnan(solution.policy).all()
    assert solution.least_cost == pytest.approx([0.5, 0.0], abs=1e-9)
    # one decision costs what it costs, and so does the average decision
    for criterion in (Horizon(1), Average()):
        alone = solve(coin(cost=cost, limit=[0.2, 3.0]), criterion)
        assert alone.least_cost == pytest.approx([0.25, 0.0], abs=1e-9)


def test_states_that_the_optimum_never_visits_get_the_uniform_policy():
    # State 1 cannot be reached from state 0.
    cmdp = FiniteCMDP(
        transition=np.broadcast_to(np.eye(2)[:, None], (2, 2, 2)),
        reward=[[1.0, 0.0], [0.0, 1.0]],
        cost=np.zeros((1, 2, 2)),
        initial=[1.0, 0.0],
        discount=0.5,
        limit=[1.0],
    )
    assert solve(cmdp).policy == pytest.approx(np.array([[1.0, 0.0], [0.5, 0.5]]))


def test_over_three_decisions_the_optimum_of_a_coin_with_limit_two_pays_twice():
    solution = solve(coin(limit=[2.0]), Horizon(3))
    assert solution.policy.shape == (3, 1, 2)
    assert solution.value == pytest.approx(2)  # undiscounted: one unit of cost is one of reward
    assert solution.multipliers == pytest.approx([1])


def test_over_a_horizon_the_best_decision_depends_on_the_time_left():
    # Stay twice and leave once within cost 2: 2, whatever the order of the first two.
    solution = solve(leave(limit=[2.0]), Horizon(3))
    assert solution.value == pytest.approx(2)
    # With leaving worth 1.5, only the last decision leaves: 2 + 1.5.
    late = leave(reward=[[1.0, 1.5], [0.0, 0.0]], limit=[3.0])
    solution = solve(late, Horizon(3))
    assert solution.value == pytest.approx(3.5)
    assert solution.policy[:, 0] == pytest.approx(np.array([[1, 0], [1, 0], [0, 1]]))


def test_totals_of_episodes_spend_the_limit_before_the_end():
    # Each stay pays 1 and costs 1, at most 3 on average: stay 3/4 of the time, 1 / (1 − 3/4) = 4
    # decisions, the last of which leaves.
    solution = solve(leave(limit=[3.0]))
    assert solution.value == pytest.approx(3)
    assert solution.policy[0] == pytest.approx([0.75, 0.25])


def test_an_unbounded_total_is_refused_with_the_loop_that_pays():
    free = leave(cost=np.zeros((1, 2, 2)))
    with pytest.raises(InputError, match="going round state 0 action 0 gains 1 per decision"):
        solve(free)


def test_a_total_that_no_policy_attains_is_refused():
    # State 0 ends (0) or, at reward −1, enters the loop 1, which costs −1 each time until it is
    # left. Cost ≤ −1 is met by entering with probability ε for 1/ε rounds: reward −ε → 0.
    there = np.zeros((3, 2, 3))
    there[0, 0, 2] = there[0, 1, 1] = there[1, 0, 1] = there[1, 1, 2] = there[2, :, 2] = 1
    cmdp = FiniteCMDP(
        transition=there,
        reward=[[0.0, -1.0], [0.0, 0.0], [0.0, 0.0]],
        cost=[[[0.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]],
        initial=[1.0, 0.0, 0.0],
        discount=1.0,
        limit=[-1.0],
    )
    with pytest.raises(InputError, match="no policy attains the optimum 0"):
        solve(cmdp)


def test_a_long_run_average_may_need_to_settle_in_one_part():
    # Average cost ≤ 1/2: half of the episodes stay for ever, which no stationary policy does.
    solution = solve(leave(), Average())
    assert solution.value == pytest.approx(0.5)
    assert solution.multipliers == pytest.approx([1])
    assert np.isnan(solution.policy).all()
    value, cost = evaluate_policy(leave(), solution.settling, Average())
    assert value == pytest.approx(0.5)
    assert cost == pytest.approx([0.5])


def test_the_average_of_a_coin_is_its_share_of_tosses():
    solution = solve(coin(limit=[0.25]), Average())
    assert solution.value == pytest.approx(0.25)
    assert solution.policy == pytest.approx(np.array([[0.25, 0.75]]))
    assert solution.settling is None


@pytest.mark.parametrize(
    ("limit", "least", "greatest", "unique"),
    [
        (0.0, 1, np.inf, False),  # nothing costs less than 0: any price from 1 on holds the limit
        (1.0, 1, 1, True),
        (2.0, 0, 1, False),  # exactly what the best policy costs: a corner of the front
        (3.0, 0, 0, True),
    ],
)
def test_multipliers_have_a_range_where_the_front_has_a_corner(limit, least, greatest, unique):
    found = multiplier_ranges(coin(limit=[limit]))
    assert found.least == pytest.approx([least], abs=1e-6)
    assert found.greatest == pytest.approx([greatest], abs=1e-6)
    assert found.unique.tolist() == [unique]


def test_an_infeasible_problem_has_no_multipliers():
    with pytest.raises(InputError, match="no policy keeps the limits"):
        multiplier_ranges(coin(limit=[-1.0]))


SMALL = {
    "seed": st.integers(0, 2**32 - 1),
    "states": st.integers(1, 6),
    "actions": st.integers(1, 4),
    "channels": st.integers(1, 3),
}


@settings(max_examples=40)
@given(**SMALL)
def test_the_policy_of_the_linear_program_attains_its_value(seed, states, actions, channels):
    cmdp = random_cmdp(seed, states, actions, channels)
    solution = solve(cmdp)
    assert solution.feasible
    assert (solution.multipliers >= 0).all()
    assert solution.policy.sum(axis=1) == pytest.approx(np.ones(states))
    value, cost = evaluate_policy(cmdp, solution.policy)
    assert value == pytest.approx(solution.value, rel=1e-6, abs=1e-6)
    assert cost == pytest.approx(solution.cost, rel=1e-6, abs=1e-6)
    assert (cost <= cmdp.limit + 1e-6).all()


@settings(max_examples=30)
@given(criterion=st.sampled_from([Discounted(), Average(), Horizon(3)]), **SMALL)
def test_no_feasible_policy_is_better(criterion, seed, states, actions, channels):
    cmdp = random_cmdp(seed, states, actions, channels)
    rng = np.random.default_rng(seed)
    policy = rng.dirichlet(np.full(actions, 0.5), states)
    value, cost = evaluate_policy(cmdp, policy, criterion)
    solution = solve(replace(cmdp, limit=cost + 1e-9), criterion)
    assert solution.feasible
    assert solution.value >= value - 1e-6
    if solution.settling is None:
        reached, costs = evaluate_policy(cmdp, solution.policy, criterion)
        assert reached == pytest.approx(solution.value, abs=1e-6)
        assert (costs <= cost + 1e-6).all()


@pytest.mark.parametrize("criterion", [Discounted(), Average(), Horizon(4)], ids=str)
@pytest.mark.parametrize("seed", [1271, 1316, 1396])
def test_large_rewards_and_long_horizons_are_solved_as_well(seed, criterion):
    # HiGHS' tolerances are absolute; unscaled, each of these once failed for one criterion.
    cmdp = random_cmdp(seed, states=11, actions=5, channels=3)
    cmdp = replace(cmdp, reward=cmdp.reward * 1e4, discount=0.9995)
    value, cost = evaluate_policy(cmdp, uniform_policy(cmdp), criterion)
    cmdp = replace(cmdp, limit=cost + 1e-6 * np.abs(cost))
    solution, ranges = solve(cmdp, criterion), multiplier_ranges(cmdp, criterion)
    assert solution.value > value
    assert evaluate_policy(cmdp, solution.policy, criterion)[0] == pytest.approx(solution.value)
    assert (ranges.least <= solution.multipliers + 1e-3).all()
    assert (ranges.greatest >= solution.multipliers - 1e-3).all()


@settings(max_examples=8)
@given(scale=st.floats(0.01, 100), **SMALL)
def test_multipliers_are_in_units_of_reward_per_cost(scale, seed, states, actions, channels):
    cmdp = random_cmdp(seed, states, actions, channels)
    scaled = replace(cmdp, reward=cmdp.reward * 7, cost=cmdp.cost * scale, limit=cmdp.limit * scale)
    here, there = multiplier_ranges(cmdp), multiplier_ranges(scaled)
    unique = here.unique & there.unique
    one, two = (here.least + here.greatest) / 2, (there.least + there.greatest) / 2
    assert two[unique] * scale / 7 == pytest.approx(one[unique], rel=1e-2, abs=1e-5)


@settings(max_examples=10)
@given(**SMALL)
def test_more_of_a_limit_buys_reward_at_a_price_within_the_multipliers(
    seed, states, actions, channels
):
    cmdp = random_cmdp(seed, states, actions, channels)
    ranges, step = multiplier_ranges(cmdp), 1e-4 * np.eye(channels)[0]
    more = solve(replace(cmdp, limit=cmdp.limit + step)).value - solve(cmdp).value
    assert more / 1e-4 <= ranges.greatest[0] + 1e-3
