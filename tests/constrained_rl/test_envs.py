from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given
from hypothesis import strategies as st

from constrained_rl.cmdp import make_vec
from constrained_rl.envs import BUILT_IN, FINITE, tabular_settings
from constrained_rl.envs.courier import Courier
from constrained_rl.envs.cruise import Cruise, best_speed
from constrained_rl.envs.native import NativeVectorEnv
from constrained_rl.envs.point import GOAL_RADIUS, HAZARD_RADIUS, PointHazard, advance
from constrained_rl.envs.problems import NARROW, cmdp_of
from constrained_rl.envs.random_cmdp import random_cmdp
from constrained_rl.envs.tabular import Lottery, Tabular, tabular_vec
from constrained_rl.errors import InputError
from constrained_rl.oracle import FiniteCMDP, evaluate_policy, solve

DETOUR, POINT = "constrained_rl/Detour-v0", "constrained_rl/PointHazard-v0"
COURIER, SPEED = "constrained_rl/PointCourier-v0", "constrained_rl/SpeedLimit-v0"


def episodes(envs, act, steps):
    """Return, costs, length of every episode *started* in the first half of `steps`."""
    obs, _ = envs.reset()
    count = envs.num_envs
    channels = len(envs.cost_names)
    sums, started = np.zeros((count, channels + 2)), np.zeros(count)
    idle, finished = np.zeros(count, dtype=bool), []
    for t in range(steps):
        obs, reward, terminated, truncated, info = envs.step(act(obs))
        sums += np.column_stack([reward, info["cost"], ~idle])
        started[idle] = t
        idle = terminated | truncated
        finished.append(sums[idle & (started < steps / 2)])
        sums[idle] = 0
    return np.concatenate(finished)


@pytest.mark.parametrize("env_id", BUILT_IN)
def test_single_environments_pass_the_checks_of_gymnasium(env_id):
    check_env(gymnasium.make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", BUILT_IN)
def test_the_table_of_built_in_environments_is_true(env_id):
    row = BUILT_IN[env_id]
    envs = make_vec(env_id, 3, seed=0)
    info = envs.step(envs.action_space.sample())[4]
    assert row.id == env_id
    assert envs.cost_names == row.cost_names == gymnasium.make(env_id).unwrapped.cost_names
    assert info["cost"].shape == (3, len(row.limit)) == (3, len(row.cost_names))
    assert info["cost"].dtype == np.float64


@pytest.mark.parametrize("env_id", BUILT_IN)
def test_gymnasium_creates_the_native_vector_form(env_id):
    for envs in (gymnasium.make_vec(env_id, num_envs=2), make_vec(env_id, 2, seed=0)):
        assert isinstance(envs, NativeVectorEnv)
        assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        obs, info = envs.reset(seed=1)
        assert envs.observation_space.contains(obs)
        assert info == {}


@pytest.mark.parametrize("env_id", BUILT_IN)
def test_the_step_after_an_end_ignores_its_action_and_pays_nothing(env_id):
    envs = make_vec(env_id, 200, seed=0)
    idle, resets = np.zeros(200, dtype=bool), 0
    for _ in range(130):
        obs, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
        assert (info["_cost"] == ~idle).all()
        assert not reward[idle].any()
        assert not info["cost"][idle].any()
        assert not (terminated | truncated)[idle].any()
        assert envs.observation_space.contains(obs)
        resets += idle.sum()
        idle = terminated | truncated
    assert resets >= 30  # mean length of an episode: 10 … 500 steps


@pytest.mark.parametrize("env_id", BUILT_IN)
def test_a_reset_step_starts_an_episode_whatever_the_action(env_id):
    def after_reset(action):
        envs = make_vec(env_id, 1, seed=5)
        rng = np.random.default_rng(0)
        shape = (3000, *envs.action_space.shape)
        discrete = isinstance(envs.single_action_space, Discrete)
        sample = rng.integers(0, 2, shape) if discrete else rng.random(shape) - 0.5
        for chosen in sample:
            _, _, terminated, truncated, _ = envs.step(chosen)
            if (terminated | truncated).any():
                return envs.step(np.full_like(chosen, action))[0]
        raise AssertionError("no episode ended")

    assert (after_reset(0) == after_reset(1)).all()


@pytest.mark.parametrize("env_id", BUILT_IN)
def test_a_restored_environment_continues_to_the_last_bit(env_id):
    envs = make_vec(env_id, 64, seed=0)
    envs.action_space.seed(0)
    actions = [np.asarray(envs.action_space.sample()) for _ in range(160)]
    for action in actions[:80]:
        envs.step(action)
    saved = envs.get_state()
    other = make_vec(env_id, 64, seed=99)
    other.set_state(saved)
    assert all(isinstance(array, np.ndarray) for array in saved.values())
    for action in actions[80:]:
        ours, theirs = envs.step(action), other.step(action)
        for a, b in zip(
            (*ours[:4], ours[4]["cost"]), (*theirs[:4], theirs[4]["cost"]), strict=True
        ):
            assert a.tobytes() == b.tobytes()
    assert (envs.reset()[0] == other.reset()[0]).all()


def test_a_state_of_another_size_is_refused():
    saved = make_vec(DETOUR, 3, seed=0).get_state()
    with pytest.raises(InputError, match=r"'state' is int64 \(3,\), expected int64 \(4,\)"):
        make_vec(DETOUR, 4, seed=0).set_state(saved)


def test_actions_of_another_shape_or_out_of_range_are_refused():
    envs = make_vec(DETOUR, 3, seed=0)
    with pytest.raises(InputError, match=r"actions have shape \(3, 1\), expected \(3,\)"):
        envs.step(np.zeros((3, 1), dtype=np.int64))
    with pytest.raises(InputError, match="an action lies outside 0…1"):
        envs.step(np.array([0, 1, 2]))


def test_stepping_a_single_environment_before_reset_is_refused():
    with pytest.raises(InputError, match=r"call env\.reset\(seed=…\) first"):
        gymnasium.make(POINT).unwrapped.step(np.zeros(2))


# Tabular


def test_episode_sums_of_the_uniform_policy_have_the_exact_values_as_means():
    cmdp = cmdp_of(DETOUR)
    envs = make_vec(DETOUR, 400, seed=0)
    rng = np.random.default_rng(1)
    # Episodes started in the first 600 of 1200 steps: one outlives 600 steps with 0.97^600 ≈ 1e−8.
    sums = episodes(envs, lambda obs: rng.integers(0, 2, len(obs)), steps=1200)
    value, cost = evaluate_policy(cmdp, np.full(cmdp.reward.shape, 0.5))
    expected = np.array([value, cost[0], 1 / (1 - cmdp.discount)])  # mean length 1 / (1 − γ)
    error = sums.std(axis=0) / np.sqrt(len(sums))
    assert len(sums) > 6000
    assert (np.abs(sums.mean(axis=0) - expected) < 4 * error).all()


@pytest.mark.parametrize("row", FINITE, ids=lambda row: row.id)
def test_the_table_of_finite_problems_is_true(row):
    cmdp = cmdp_of(row.id)
    assert row.limit == tuple(cmdp.limit)
    # ⌈3 / (1 − γ)⌉: 30 at 0.9, 60 at 0.95, 100 at 0.97, 300 at 0.99, 1500 at 0.998
    burn_in = row.settings["env"]["burn_in"]
    assert burn_in == {0.9: 30, 0.95: 60, 0.97: 100, 0.99: 300, 0.998: 1500}[cmdp.discount]
    assert row.settings == tabular_settings(cmdp.discount)
    assert solve(cmdp).feasible == ("Infeasible" not in row.id)


def test_the_corridor_walks_where_it_is_narrow_and_mixes_in_one_cell():
    found = solve(cmdp_of("constrained_rl/Corridor-v0"))
    back, walk, run = found.policy.T
    assert (back == 0).all()
    assert (walk[NARROW] == 1).all()
    assert ((run > 0) & (run < 1)).sum() == 1
    mixed = int(((run > 0) & (run < 1)).argmax())
    assert (walk[:mixed] == 1).all()  # an early cost is discounted less
    assert (run[[*range(mixed + 1, NARROW.start), *range(NARROW.stop, len(run))]] == 1).all()
    assert found.cost == pytest.approx([2.0])


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_with_one_price_every_policy_lies_on_one_line(risky):
    cmdp = cmdp_of("constrained_rl/OnePrice-v0")
    value, (cost,) = evaluate_policy(cmdp, np.stack([1 - np.array(risky), risky], axis=1))
    # Safe pays (0.5 + 0 + 1 + 0.2 + 0.3) / 5 = 0.4 per step, 20 steps; the price of risk is 0.8.
    assert value == pytest.approx(8 + 0.8 * cost)


def test_with_one_price_static_weights_give_extremes_and_the_price_itself_nothing():
    cmdp = cmdp_of("constrained_rl/OnePrice-v0")
    optimum = solve(cmdp)
    assert (optimum.value, *optimum.cost, *optimum.multipliers) == pytest.approx((11.2, 4, 0.8))

    def shaped(weight):  # unconstrained optimum of R − νC
        free = replace(cmdp, reward=cmdp.reward - weight * cmdp.cost[0], limit=np.array([1e6]))
        return solve(free).policy[:, 1].tolist()

    assert shaped(0.79) == [1.0] * 5  # risk everywhere costs 20
    assert shaped(0.81) == [0.0] * 5  # costs nothing
    tied = cmdp.reward - 0.8 * cmdp.cost[0]
    assert tied[:, 0] == pytest.approx(tied[:, 1])


def test_either_limit_of_the_infeasible_problem_can_be_met():
    cmdp = cmdp_of("constrained_rl/Infeasible-v0")
    assert evaluate_policy(cmdp, np.array([[1.0, 0.0]]))[1] == pytest.approx([0, 10])
    assert evaluate_policy(cmdp, np.array([[0.5, 0.5]]))[1] == pytest.approx([5, 5])
    assert solve(cmdp).least_cost == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.parametrize("constraints", [1, 2, 3])
@pytest.mark.parametrize("seed", [200, 201])
def test_random_problems_can_be_met_with_room_and_every_limit_binds(seed, constraints):
    cmdp = random_cmdp(seed, constraints=constraints)
    solution = solve(cmdp)
    assert (solution.multipliers * cmdp.limit >= 0.01 * solution.value).all()
    assert solution.cost == pytest.approx(cmdp.limit)
    # Stricter limits, by 1 %, can be met as well.
    assert solve(replace(cmdp, limit=0.99 * cmdp.limit)).feasible
    assert ((cmdp.transition > 0).sum(axis=-1) == 3).all()
    again = random_cmdp.__wrapped__(seed, constraints=constraints)
    assert (again.transition == cmdp.transition).all()
    assert (again.limit == cmdp.limit).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed is -1, expected an integer ≥ 0"),
        ({"states": 2.5}, r"states is 2\.5, expected an integer ≥ 2"),
        ({"branching": 40}, "branching is 40, expected at most states = 30"),
        ({"discount": 1.0}, r"discount is 1\.0, expected 0 < discount < 1"),
        ({"sed": 1}, "does not take the settings {'sed': 1}"),
    ],
)
def test_settings_that_make_no_random_problem_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        cmdp_of("constrained_rl/Random-v0", **settings)


def test_only_finite_problems_have_a_cmdp():
    with pytest.raises(InputError, match=f"{POINT}' is not a built-in finite CMDP"):
        cmdp_of(POINT)


def test_a_lottery_draws_each_outcome_with_its_probability():
    lottery = Lottery(np.array([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]]))
    draws = lottery.draw(np.repeat([0, 1, 2], 10_000), np.random.default_rng(0)).reshape(3, -1)
    counts = np.array([np.bincount(row, minlength=3) for row in draws])
    # Standard deviation of a count ≤ sqrt(10 000 / 4) = 50; 4 of them.
    assert counts == pytest.approx(
        np.array([[0, 2500, 7500], [10_000, 0, 0], [2000, 3000, 5000]]), abs=200
    )
    assert counts[0, 0] == counts[1, 1] == counts[1, 2] == 0


def test_a_lottery_of_many_outcomes_draws_each_with_its_probability():
    # 12 outcomes 0, 2, …, 22 of chance 1/12 each, one certain outcome, and two of ¾ and ¼.
    many, certain, two = np.zeros((3, 24))
    many[::2], certain[5], two[[3, 23]] = 1 / 12, 1, (0.75, 0.25)
    lottery = Lottery(np.array([many, certain, two]))
    assert lottery.outcome.shape[1] > Lottery.FEW
    draws = lottery.draw(np.repeat([0, 1, 2], 12_000), np.random.default_rng(0)).reshape(3, -1)
    counts = np.array([np.bincount(row, minlength=24) for row in draws])
    # Standard deviations sqrt(12 000 p (1 − p)): 30 and 47; 4 of them.
    assert counts[0, ::2] == pytest.approx(np.full(12, 1000), abs=120)
    assert counts[2, [3, 23]] == pytest.approx([9000, 3000], abs=190)
    assert counts[1, 5] == counts[0, ::2].sum() == counts[2, [3, 23]].sum() == 12_000


class Largest:
    """A generator whose uniform numbers are the largest below 1."""

    def random(self, count):
        return np.full(count, np.nextafter(1, 0))


@pytest.mark.parametrize("outcomes", [3, 12])
def test_the_largest_uniform_number_draws_the_last_outcome_of_its_own_row(outcomes):
    lottery = Lottery(np.full((3, outcomes), 1 / outcomes))
    assert lottery.draw(np.array([0, 1, 2]), Largest()).tolist() == [outcomes - 1] * 3


def test_tables_pay_reward_and_cost_of_the_state_and_action():
    # Two states, the action is the next state, nothing ends within 1e-9; reward = 10 s + a.
    cmdp = FiniteCMDP(
        transition=np.broadcast_to(np.eye(2), (2, 2, 2)),
        reward=[[0.0, 1.0], [10.0, 11.0]],
        cost=[[[0.0, 2.0], [0.0, 4.0]], [[1.0, 1.0], [3.0, 3.0]]],
        initial=[1.0, 0.0],
        discount=1 - 1e-9,
        limit=[1.0, 1.0],
    )
    envs = tabular_vec(cmdp, 2)
    assert envs.reset(seed=0)[0].tolist() == [[1, 0], [1, 0]]
    obs, reward, _, _, info = envs.step(np.array([0, 1]))
    assert obs.tolist() == [[1, 0], [0, 1]]
    assert reward.tolist() == [0, 1]
    assert info["cost"].tolist() == [[0, 1], [2, 1]]
    _, reward, _, _, info = envs.step(np.array([1, 1]))
    assert reward.tolist() == [1, 11]
    assert info["cost"].tolist() == [[2, 1], [4, 3]]
    assert envs.cost_names == ("cost_0", "cost_1")


def test_cost_names_must_match_the_channels():
    with pytest.raises(InputError, match="2 cost names"):
        Tabular(cmdp_of(DETOUR), ("a", "b"))


# PointHazard


def steer(target):
    """Full speed to `target(obs)`, given relative to the point; slower on the last step."""

    def act(obs):
        way = target(obs)
        length = np.linalg.norm(way, axis=1, keepdims=True)
        return (way / np.maximum(length, 0.1)).astype(np.float32)

    return act


def around(obs):
    """Fly over the hazard's top until past it, then to the goal."""
    top = obs[:, 4:6] + np.array([0.0, HAZARD_RADIUS + 0.2])
    return np.where(top[:, :1] < 0.05, obs[:, 2:4], top)


def test_straight_ahead_pays_best_and_violates_the_limit_and_around_it_is_feasible():
    envs = make_vec(POINT, 300, seed=0)
    straight = episodes(envs, steer(lambda obs: obs[:, 2:4]), steps=100)
    safe = episodes(envs, steer(around), steps=100)
    limit = BUILT_IN[POINT].limit[0]
    # Measured: return 9.8 and cost 11.5 against 7.8 and 0.1 of this crude way around.
    assert straight[:, 0].mean() > 9.5
    assert straight[:, 1].mean() > 5 * limit
    assert 0 < safe[:, 1].mean() < limit / 4
    assert 7.5 < safe[:, 0].mean() < straight[:, 0].mean() - 1


def test_standing_still_is_truncated_at_the_horizon_and_pays_only_for_the_time():
    envs = make_vec(POINT, 2, seed=0, horizon=5)
    total = np.zeros(2)
    for t in range(5):
        _, reward, terminated, truncated, _ = envs.step(np.zeros((2, 2), np.float32))
        total += reward
        assert not terminated.any()
        assert truncated.all() == (t == 4)
    assert total == pytest.approx([-2.5, -2.5])  # 5 steps · −0.5
    with pytest.raises(InputError, match="horizon is 0, expected at least 1"):
        PointHazard(horizon=0)


def test_reward_is_progress_and_cost_counts_steps_inside_the_hazard():
    # Point, goal, hazard, time: one step right from the origin to (0.1, 0).
    state = np.array([[0.0, 0, 1, 0, 0.2, 0, 0], [0.0, 0, 1, 0, 0.1, 0.61, 0]])
    moved = PointHazard().move(state, np.array([[1.0, 0], [1, 0]]), np.random.default_rng(0))
    # reward = 10 (1 − 0.9) − 0.5 = 0.5; hazards at distance 0.1 and 0.61 of radius 0.6
    assert moved.reward == pytest.approx([0.5, 0.5])
    assert moved.cost.tolist() == [[1.0], [0.0]]
    assert moved.state[0] == pytest.approx([0.1, 0, 1, 0, 0.2, 0, 1])


def test_reaching_the_goal_terminates_even_on_the_last_step():
    start = 1 - GOAL_RADIUS - 0.05
    state = np.array([[start, 0, 1, 0, 0, 0, 59.0]])
    moved = PointHazard().move(state, np.array([[1.0, 0]]), np.random.default_rng(0))
    assert moved.terminated.tolist() == [True]
    assert moved.truncated.tolist() == [False]


def test_a_step_is_no_longer_along_the_diagonal_and_stays_in_the_arena():
    diagonal = advance(np.zeros((1, 2)), np.ones((1, 2)))
    assert np.hypot(*diagonal[0]) == pytest.approx(0.1)
    assert advance(np.array([[1.45, 0]]), np.array([[1.0, 0]])).tolist() == [[1.5, 0]]
    assert advance(np.zeros((1, 2)), np.array([[0.5, 0]])).tolist() == [[0.05, 0]]


# PointCourier


def test_the_three_costs_are_hazard_speed_in_the_zone_and_energy():
    # Point, goal, hazard, time. The goal is at (1, 0); the zone reaches 0.6 around it.
    near, far = [0.5, 0, 1, 0, 0.5, 0, 0], [0.0, 0, 1, 0, 9, 9, 0]
    state = np.array([near, near, far, far])
    action = np.array([[0.6, 0], [0.3, 0.4], [1, 0], [3, 4]])
    moved = Courier().move(state, action, np.random.default_rng(0))
    # Speeds 0.6, 0.5 (not above ½), 1, and 5 cut to 1; energy is 5 s².
    expected = [[1, 1, 1.8], [1, 0, 1.25], [0, 0, 5], [0, 0, 5]]
    assert moved.cost == pytest.approx(np.array(expected))
    assert moved.state[0, 0] == pytest.approx(0.56)


def test_each_limit_of_the_courier_binds_on_the_straight_way():
    envs = make_vec(COURIER, 300, seed=0)
    straight = episodes(envs, steer(lambda obs: obs[:, 2:4]), steps=100)
    assert straight[:, 0].mean() > 9.5
    assert (straight[:, 1:4].mean(axis=0) > BUILT_IN[COURIER].limit).all()  # 11.5, 6.0, 98


def test_a_slow_way_around_meets_all_limits_of_the_courier():
    def careful(obs):
        distance = np.linalg.norm(obs[:, 2:4], axis=1, keepdims=True)
        return np.where(distance < 0.75, 0.45, 0.6) * steer(around)(obs)

    envs = make_vec(COURIER, 300, seed=0)
    slow = episodes(envs, careful, steps=200)
    assert (slow[:, 1:4].mean(axis=0) < BUILT_IN[COURIER].limit).all()
    assert slow[:, -1].max() < 80  # it arrives


# SpeedLimit


def hold(speed, horizon=100):
    """Return and cost of an episode at a constant speed: the throttle is half of it."""
    state, total = np.array([[speed, 0.0]]), np.zeros(2)
    for _ in range(horizon):
        moved = Cruise(horizon).move(state, np.array([[speed / 2]]), np.random.default_rng(0))
        state = moved.state
        total += moved.reward[0], moved.cost[0, 0]
    assert moved.truncated.all()
    return total


def test_a_constant_speed_pays_what_the_formula_says():
    # v = 1.1: reward 1.1 − 0.55² = 0.7975 and cost 0.1 per step
    assert hold(1.1) == pytest.approx([79.75, 10.0])
    assert hold(2.0) == pytest.approx([100.0, 100.0])
    speed, value, price = best_speed(10.0, 100)
    assert (speed, value, price) == pytest.approx((1.1, 79.75, 0.45))
    assert best_speed(500.0, 100) == pytest.approx((2.0, 100.0, 0.0))


def test_no_constant_speed_within_the_budget_pays_more():
    speed, value, _ = best_speed(BUILT_IN[SPEED].limit[0], 100)
    runs = np.array([hold(v) for v in np.linspace(0, 2, 81)])
    feasible = runs[runs[:, 1] <= 10 + 1e-9, 0]
    assert feasible.max() <= value + 1e-9
    assert hold(speed)[0] == pytest.approx(value)


def test_the_price_is_the_slope_of_the_best_return_in_the_budget():
    slope = (best_speed(10.1, 100)[1] - best_speed(9.9, 100)[1]) / 0.2
    assert slope == pytest.approx(best_speed(10.0, 100)[2], abs=1e-9)


def test_the_throttle_is_cut_to_its_box_and_the_speed_follows_it():
    state = np.array([[1.0, 0.0], [1.0, 0.0]])
    moved = Cruise().move(state, np.array([[5.0], [-5.0]]), np.random.default_rng(0))
    # 1 + ½ (2 − 1) = 1.5 and 1 + ½ (−2 − 1) = −0.5; the effort is 1² in both
    assert moved.state[:, 0].tolist() == [1.5, -0.5]
    assert moved.reward.tolist() == [0.5, -1.5]
    assert moved.cost.tolist() == [[0.5], [0.0]]
    with pytest.raises(InputError, match="horizon is 0, expected at least 1"):
        Cruise(horizon=0)
