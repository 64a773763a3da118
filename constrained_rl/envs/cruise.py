"""A mass on a straight track with drag and a speed limit: how fast may it go on average?

    v' = v + ½ (2 a − v)      reward = v' − a²      cost = max(0, v' − 1)

The throttle a lies in [−1, 1], so the top speed is 2. Holding a speed v takes a = v / 2 and pays
v − v² / 4 per step, best at v = 2, where the cost is 1 per step. Reward is concave and cost linear
in the speed, so of all constant speeds the best one under Σ cost ≤ d over T steps is

    v° = min(2, 1 + d / T)      with the price      λ° = dr/dv = 1 − v° / 2

(`best_speed`). Episodes are `truncated` after T = `horizon` steps; they start near the speed limit.
Absent: positions, slopes, noise. Letters: N sub-environments.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box

from constrained_rl.envs import BUILT_IN
from constrained_rl.envs.native import Array, NativeEnv, NativeVectorEnv, Transition
from constrained_rl.errors import InputError

STEP = 0.5  # seconds
FORCE = 2.0  # acceleration of the full throttle; drag is 1 per second, so also the top speed
SPEED_LIMIT = 1.0
EFFORT_PRICE = 1.0  # of a²
START_SPREAD = 0.1  # first speeds are uniform this far around the speed limit

# Columns of the state, [N, 2].
SPEED, TIME = 0, 1


def best_speed(budget: float, horizon: int) -> tuple[float, float, float]:
    """Best constant speed under Σ max(0, v − 1) ≤ budget, its return over T steps, and its price.

    v° = min(2, 1 + budget / T), return T (v° − v°² / 4), price λ° = 1 − v° / 2 of one unit of cost.
    """
    speed = min(FORCE, SPEED_LIMIT + budget / horizon)
    return speed, horizon * (speed - EFFORT_PRICE * (speed / FORCE) ** 2), 1 - speed / FORCE


@dataclass(frozen=True)
class Cruise:
    """Dynamics of the mass; the observation is its speed."""

    horizon: int = 100  # steps until `truncated`

    def __post_init__(self) -> None:
        """Require an episode of at least one step."""
        if self.horizon < 1:
            raise InputError(f"SpeedLimit horizon is {self.horizon}, expected at least 1 step")

    @property
    def observation_space(self) -> Space[Any]:
        """The speed; its fixed points are ±2."""
        return Box(-FORCE, FORCE, (1,), np.float32)

    @property
    def action_space(self) -> Space[Any]:
        """The throttle; negative brakes, then reverses."""
        return Box(-1, 1, (1,), np.float32)

    @property
    def cost_names(self) -> tuple[str, ...]:
        """One channel: speed above the limit."""
        return BUILT_IN["constrained_rl/SpeedLimit-v0"].cost_names

    def start(self, count: int, random: np.random.Generator) -> Array:
        """Draw first speeds; the clock starts at 0."""
        speed = SPEED_LIMIT + random.uniform(-START_SPREAD, START_SPREAD, count)
        return np.stack([speed, np.zeros(count)], axis=1)

    def move(self, state: Array, action: Array, random: np.random.Generator) -> Transition:
        """Apply the throttle for one step."""
        throttle = np.clip(action[:, 0].astype(np.float64), -1.0, 1.0)
        before, time = state[:, SPEED], state[:, TIME] + 1
        speed = before + STEP * (FORCE * throttle - before)
        return Transition(
            state=np.stack([speed, time], axis=1),
            reward=speed - EFFORT_PRICE * throttle**2,
            cost=np.maximum(0.0, speed - SPEED_LIMIT)[:, None],
            terminated=np.zeros(len(state), dtype=np.bool_),
            truncated=time >= self.horizon,
        )

    def observe(self, state: Array) -> Array:
        """The speed, [N, 1] float32."""
        return state[:, :1].astype(np.float32)


def cruise(horizon: int = 100) -> NativeEnv:
    """Entry point of `constrained_rl/SpeedLimit-v0`."""
    return NativeEnv(Cruise(horizon))


def cruise_vec(num_envs: int, horizon: int = 100) -> NativeVectorEnv:
    """Vector entry point of `constrained_rl/SpeedLimit-v0`."""
    return NativeVectorEnv(Cruise(horizon), num_envs)
