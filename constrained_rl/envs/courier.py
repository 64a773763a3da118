"""A point with three budgets: around a hazard to a goal, slowly at the end, with little energy.

The motion, reward and places are those of `PointHazard`. With s = min(1, |a|), the speed of a step:

    hazard = 1 if the point is inside the hazard, else 0
    speed  = 1 if s > 0.5 within 0.6 of the goal, else 0
    energy = ½ m s², m = 10

Each budget bends another part of the way: hazard its shape, speed its end, energy all of it (a way
of ℓ full steps takes ℓ / s steps and the energy 5 ℓ s). Absent: inertia, noise.

Letters: N sub-environments.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from gymnasium import Space

from constrained_rl.envs import BUILT_IN
from constrained_rl.envs.native import Array, NativeEnv, NativeVectorEnv, Transition
from constrained_rl.envs.point import GOAL, POSITION, PointHazard, distance

ZONE_RADIUS = 0.6  # around the goal
MASS = 10.0
ZONE_SPEED = 0.5  # of a full step; above it a step in the zone is counted


@dataclass(frozen=True)
class Courier:
    """Dynamics of the courier; the observation is PointHazard's seven numbers."""

    point: PointHazard = field(default_factory=lambda: PointHazard(horizon=80))

    @property
    def observation_space(self) -> Space[Any]:
        """Seven numbers within ±4."""
        return self.point.observation_space

    @property
    def action_space(self) -> Space[Any]:
        """A velocity in the plane."""
        return self.point.action_space

    @property
    def cost_names(self) -> tuple[str, ...]:
        """Three channels: steps in the hazard, fast steps near the goal, energy."""
        return BUILT_IN["constrained_rl/PointCourier-v0"].cost_names

    def start(self, count: int, random: np.random.Generator) -> Array:
        """As `PointHazard.start`."""
        return self.point.start(count, random)

    def move(self, state: Array, action: Array, random: np.random.Generator) -> Transition:
        """Advance every point by one action and charge the three budgets."""
        moved = self.point.move(state, action, random)
        action = action.astype(np.float64)
        speed = np.minimum(1.0, np.hypot(action[:, 0], action[:, 1]))
        near = distance(moved.state[:, POSITION], state[:, GOAL]) < ZONE_RADIUS
        fast = near & (speed > ZONE_SPEED)
        energy = 0.5 * MASS * speed**2
        cost = np.stack([moved.cost[:, 0], fast.astype(np.float64), energy], axis=1)
        return replace(moved, cost=cost)

    def observe(self, state: Array) -> Array:
        """As `PointHazard.observe`, [N, 7] float32."""
        return self.point.observe(state)


def courier(horizon: int = 80) -> NativeEnv:
    """Entry point of `constrained_rl/PointCourier-v0`."""
    return NativeEnv(Courier(PointHazard(horizon)))


def courier_vec(num_envs: int, horizon: int = 80) -> NativeVectorEnv:
    """Vector entry point of `constrained_rl/PointCourier-v0`."""
    return NativeVectorEnv(Courier(PointHazard(horizon)), num_envs)
