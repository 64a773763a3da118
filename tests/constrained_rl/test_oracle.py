import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_rl.envs.tabular import detour_cmdp
from constrained_rl.errors import InputError
from constrained_rl.oracle import FiniteCMDP, evaluate_policy, load_cmdp, solve

DATA = Path(__file__).parents[1] / "data" / "cmdp"
EXPECTED = json.loads((DATA / "expected.json").read_text())


def known(name):
    return detour_cmdp() if name == "detour" else load_cmdp(DATA / f"{name}.npz")


def uniform(cmdp):
    return np.full(cmdp.reward.shape, 1 / cmdp.reward.shape[1])


def coin(**changes):
    """One state; action 0 pays 1 and costs 1, action 1 nothing; γ = 1/2, cost at most 1."""
    arrays = {
        "transition": np.ones((1, 2, 1)),
        "reward": np.array([[1.0, 0.0]]),
        "cost": np.array([[[1.0, 0.0]]]),
        "initial": np.ones(1),
        "discount": 0.5,
        "limit": np.array([1.0]),
    }
    return FiniteCMDP(**{**arrays, **changes})


def random_cmdp(seed, states, actions, channels):
    """A random CMDP whose limits lie between its least costs and those of a random policy."""
    rng = np.random.default_rng(seed)
    cmdp = FiniteCMDP(
        transition=rng.dirichlet(np.full(states, 0.3), (states, actions)),
        reward=rng.normal(size=(states, actions)),
        cost=rng.normal(size=(channels, states, actions)),
        initial=rng.dirichlet(np.ones(states)),
        discount=float(rng.uniform(0, 0.99)),
        limit=np.zeros(channels),
    )
    witness = rng.dirichlet(np.ones(actions), states)
    slack = 0.05 * rng.random(channels)
    limit = evaluate_policy(cmdp, witness)[1] + slack  # the witness makes it feasible
    return FiniteCMDP(**{**vars(cmdp), "limit": limit})


@pytest.mark.parametrize("name", EXPECTED)
def test_the_linear_program_reproduces_the_known_optima(name):
    solution = solve(known(name))
    expected = EXPECTED[name]
    assert solution.feasible
    assert solution.least_cost is None
    assert solution.value == pytest.approx(expected["value"], rel=1e-6)
    assert solution.cost == pytest.approx(expected["cost"], rel=1e-6)
    assert solution.multipliers == pytest.approx(expected["multipliers"], rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_uniform_policy_has_the_known_value_and_costs(name):
    cmdp = known(name)
    value, cost = evaluate_policy(cmdp, uniform(cmdp))
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
def test_at_the_multipliers_the_unconstrained_lagrangian_has_the_same_optimum(name):
    # Strong duality of the LP: max_π J_r − Σ λ_k (J_k − d_k) = J* at λ = λ*.
    cmdp = known(name)
    solution = solve(cmdp)
    shaped = cmdp.reward - np.einsum("k,ksa->sa", solution.multipliers, cmdp.cost)
    loose = np.full_like(cmdp.limit, 1e6)
    free = solve(FiniteCMDP(**{**vars(cmdp), "reward": shaped, "limit": loose}))
    assert free.value + solution.multipliers @ cmdp.limit == pytest.approx(solution.value, rel=1e-6)


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


def test_infeasible_problems_report_the_least_cost_of_each_constraint():
    # Both actions cost: 1 or 0.25 in channel 0, 0 or 1 in channel 1; visits sum to 2.
    cost = np.array([[[1.0, 0.25]], [[0.0, 1.0]]])
    solution = solve(coin(cost=cost, limit=[0.4, 3.0]))
    assert not solution.feasible
    assert np.isnan(solution.value)
    assert np.isnan(solution.policy).all()
    assert solution.least_cost == pytest.approx([0.5, 0.0], abs=1e-9)


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


@settings(max_examples=40, deadline=None, database=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    states=st.integers(1, 6),
    actions=st.integers(1, 4),
    channels=st.integers(1, 3),
)
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


def test_arrays_are_stored_as_float64_copies():
    reward = np.array([[1, 0]])
    cmdp = coin(reward=reward)
    reward[0, 0] = 7
    assert cmdp.reward.dtype == np.float64
    assert cmdp.reward.tolist() == [[1.0, 0.0]]
    assert cmdp.sizes == (1, 2, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": [1.0, 0.0]}, r"reward has shape \(2,\), expected \[S, A\]"),
        ({"cost": [[1.0, 0.0]]}, r"cost has shape \(1, 2\), expected \(1, 1, 2\)"),
        ({"limit": [1.0, 2.0]}, r"cost has shape \(1, 1, 2\), expected \(2, 1, 2\)"),
        ({"transition": np.full((1, 2, 1), 0.9)}, r"row \(0, 0\) sums to 0.9, expected 1"),
        ({"initial": [0.5]}, r"initial: row \(0,\) sums to 0.5"),
        ({"transition": [[[1.0], [-1.0]]]}, "transition holds a negative probability"),
        ({"discount": 1.0}, "discount is 1.0, expected 0 ≤ discount < 1"),
        ({"limit": [np.inf]}, "limit: 1 of 1 values are NaN or infinite"),
        ({"reward": [["a", "b"]]}, "reward is not an array of numbers"),
    ],
)
def test_malformed_problems_are_refused_with_what_was_found(changes, message):
    with pytest.raises(InputError, match=message):
        coin(**changes)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ([[1.0]], r"policy has shape \(1, 1\), expected \[S, A\] = \(1, 2\)"),
        ([[0.5, 0.4]], r"policy: row \(0,\) sums to 0.9"),
    ],
)
def test_malformed_policies_are_refused(policy, message):
    with pytest.raises(InputError, match=message):
        evaluate_policy(coin(), policy)


def test_a_file_without_an_array_is_refused_by_the_name_of_the_array(tmp_path):
    arrays = vars(coin())
    np.savez(tmp_path / "whole.npz", **arrays)
    assert load_cmdp(tmp_path / "whole.npz").discount == 0.5
    np.savez(tmp_path / "part.npz", **{name: arrays[name] for name in ("reward", "cost")})
    with pytest.raises(InputError, match=r"no array transition, initial, discount, limit; found"):
        load_cmdp(tmp_path / "part.npz")


def test_files_that_are_no_archives_of_plain_arrays_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "single.npy", np.ones(3))
    np.savez(tmp_path / "pickle.npz", **{**vars(coin()), "reward": np.array([{}], dtype=object)})
    for name in ("text.npz", "single.npy", "pickle.npz", "absent.npz"):
        with pytest.raises(InputError, match=r"not a readable \.npz archive of plain arrays"):
            load_cmdp(tmp_path / name)
