from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from constrained_rl.enumeration import from_gymnasium
from constrained_rl.errors import InputError
from constrained_rl.oracle import Horizon, evaluate_policy, solve, uniform_policy


class Ladder(gymnasium.Env):
    """Climb (2) at a cost of 1, or slip down (1); the third rung ends it and pays 1."""

    observation_space = Box(0, 3, (2,), np.float32)
    action_space = Discrete(2, start=1)
    cost_names = ("effort",)

    def __init__(self, hidden=False, noisy=False, limit=None):
        self.hidden, self.noisy, self.limit = hidden, noisy, limit

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.rung = self.time = 0
        return self.observe(), {}

    def observe(self):
        return np.array([self.rung, 0], np.float32)

    def step(self, action):
        if self.noisy:
            self.np_random.random()
        self.time += 1
        self.rung = max(0, self.rung + (1 if action == 2 else -1))
        top = self.rung == 3
        reward = float(top) + (self.time if self.hidden else 0)
        info = {"cost": np.array([float(action == 2)])}
        return self.observe(), reward, top, self.time == self.limit, info


def holes(env):
    """Cost of FrozenLake: 1 for falling into a hole."""
    cells = env.unwrapped.desc.ravel()
    return lambda state, action, next_state: float(cells[next_state] == b"H")


def test_frozen_lake_has_its_known_optimum_and_ends_in_one_absorbing_state():
    env = gymnasium.make("FrozenLake-v1")
    cmdp = from_gymnasium(env, limit=1.0, discount=1.0, cost=holes(env))
    assert cmdp.sizes == (17, 4, 1)
    assert cmdp.absorbing.tolist() == [False] * 16 + [True]
    # Without a time limit 14 of 17 games can be won; an episode that ends is won or falls.
    solution = solve(cmdp)
    assert solution.value == pytest.approx(14 / 17)
    assert solution.cost == pytest.approx([3 / 17])
    assert solve(cmdp, Horizon(100)).value < solution.value


def test_tighter_limits_on_falling_are_infeasible_below_the_least():
    env = gymnasium.make("FrozenLake-v1")
    cmdp = from_gymnasium(env, limit=0.1, discount=1.0, cost=holes(env))
    assert solve(cmdp).least_cost == pytest.approx([3 / 17])


def test_the_table_is_what_is_played():
    # Cliff walking: 13 steps along the cliff; the table itself never mentions the time limit.
    env = gymnasium.make("CliffWalking-v1")
    falls = from_gymnasium(env, 0.0, 1.0, lambda s, a, to: float(s != 36 and to == 36))
    assert solve(falls).value == pytest.approx(-13)


def test_a_deterministic_environment_is_walked_through_with_its_own_costs():
    cmdp = from_gymnasium(Ladder(), limit=3.0, discount=0.9)
    assert cmdp.sizes == (4, 2, 1)  # three rungs and the end
    assert cmdp.reward.tolist() == [[0, 0], [0, 0], [0, 1], [0, 0]]
    assert cmdp.cost[0].tolist() == [[0, 1], [0, 1], [0, 1], [0, 0]]
    assert cmdp.transition.argmax(axis=2).tolist() == [[0, 1], [0, 2], [1, 3], [3, 3]]
    assert solve(cmdp).value == pytest.approx(0.81)


def test_our_finite_environments_give_their_own_problem():
    cmdp = from_gymnasium(gymnasium.make("constrained_rl/Detour-v0"), limit=3.0, discount=0.97)
    assert cmdp.sizes == (11, 2, 1)
    known = replace(cmdp, limit=[4.0])
    assert evaluate_policy(known, uniform_policy(known))[0] == pytest.approx(4.744575637)


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (lambda: Ladder(noisy=True), {}, "step of .* draws random numbers and it has no table"),
        (lambda: Ladder(hidden=True), {}, "action 1 after the same observation gave state 0 with"),
        (lambda: Ladder(limit=2), {}, r"cut an episode short \(truncated\)"),
        (lambda: Ladder(), {"limit": [1.0, 2.0]}, r"costs \[0.0\], but limit \[1.0, 2.0\] has K"),
        (lambda: Ladder(), {"cost": lambda *_: 0.0}, "has no table P, so its costs are read from"),
        (lambda: gymnasium.make("CartPole-v1"), {}, "reset of .* draws random numbers"),
        (lambda: gymnasium.make("Pendulum-v1"), {}, "action space Box.*, expected Discrete"),
        (lambda: gymnasium.make("FrozenLake-v1"), {}, "no costs in it; give cost=lambda"),
    ],
)
def test_what_cannot_be_known_exactly_is_refused(env, options, message):
    with pytest.raises(InputError, match=message):
        from_gymnasium(env(), **{"limit": 1.0, "discount": 0.9, **options})
