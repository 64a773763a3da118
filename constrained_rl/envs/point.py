"""A point steers to a goal behind a round hazard: fast and risky, or around and a little slower.

The point starts near (−1, 0), the goal lies near (1, 0), the hazard in between and a little below
the axis, so that the upper way around is the shorter one. An action is a velocity; its length is
at most 1.

    p' = clip(p + 0.1 a, ±1.5)      reward = 10 (|p − goal| − |p' − goal|) − 0.5
    cost = 1 if |p' − hazard| < 0.6, else 0

An episode is `terminated` at the goal and `truncated` after `horizon` steps. Absent: inertia, noise
in the motion, rendering. Letters: N sub-environments.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box

from constrained_rl.envs import BUILT_IN
from constrained_rl.envs.native import Array, Floats, NativeEnv, NativeVectorEnv, Transition
from constrained_rl.errors import InputError

SPEED = 0.1  # length of a full step
ARENA = 1.5  # half the side of the square
HAZARD_RADIUS = 0.6
GOAL_RADIUS = 0.1
PROGRESS_REWARD = 10.0  # per unit of distance: 1 for a full step straight at the goal
TIME_PRICE = 0.5  # per step: the only thing the way around costs in reward
CENTERS = np.array([-1.0, 0.0, 1.0, 0.0, 0.0, -0.15])  # of start, goal, hazard
SPREAD = 0.1  # each of them is drawn uniformly this far around its center

# Columns of the state, [N, 7].
POSITION, GOAL, HAZARD, TIME = slice(0, 2), slice(2, 4), slice(4, 6), 6


def distance(a: Floats, b: Floats) -> Floats:  # [N, 2], [N, 2] → [N]
    """Euclidean distance, row by row."""
    return np.hypot(a[:, 0] - b[:, 0], a[:, 1] - b[:, 1])


def advance(position: Floats, action: Floats) -> Floats:  # [N, 2], [N, 2] → [N, 2]
    """Move by p' = clip(p + SPEED · a / max(1, |a|), ±ARENA): no faster along the diagonal."""
    length = np.hypot(action[:, 0], action[:, 1])[:, None]
    moved: Floats = position + SPEED * action / np.maximum(1.0, length)
    return np.clip(moved, -ARENA, ARENA)


@dataclass(frozen=True)
class PointHazard:
    """Dynamics of the point; the observation is 7 numbers, all within ±4.

    Position (2), goal − position (2), hazard − position (2), distance to the hazard's edge (1).
    """

    horizon: int = 60  # steps until `truncated`

    def __post_init__(self) -> None:
        """Require an episode of at least one step."""
        if self.horizon < 1:
            raise InputError(f"PointHazard horizon is {self.horizon}, expected at least 1 step")

    @property
    def observation_space(self) -> Space[Any]:
        """Seven numbers within ±4."""
        return Box(-4, 4, (7,), np.float32)

    @property
    def action_space(self) -> Space[Any]:
        """A velocity in the plane."""
        return Box(-1, 1, (2,), np.float32)

    @property
    def cost_names(self) -> tuple[str, ...]:
        """One channel: steps inside the hazard."""
        return BUILT_IN["constrained_rl/PointHazard-v0"].cost_names

    def start(self, count: int, random: np.random.Generator) -> Array:
        """Draw start, goal and hazard around their centers; the clock starts at 0."""
        places = CENTERS + random.uniform(-SPREAD, SPREAD, (count, 6))
        return np.concatenate([places, np.zeros((count, 1))], axis=1)

    def move(self, state: Array, action: Array, random: np.random.Generator) -> Transition:
        """Advance every point by one action."""
        before, goal = state[:, POSITION], state[:, GOAL]
        after = advance(before, action.astype(np.float64))
        remaining = distance(after, goal)
        progress = distance(before, goal) - remaining
        inside = distance(after, state[:, HAZARD]) < HAZARD_RADIUS
        arrived = remaining < GOAL_RADIUS
        time = state[:, TIME] + 1
        return Transition(
            state=np.concatenate([after, state[:, 2:6], time[:, None]], axis=1),
            reward=PROGRESS_REWARD * progress - TIME_PRICE,
            cost=inside[:, None].astype(np.float64),
            terminated=arrived,
            truncated=(time >= self.horizon) & ~arrived,
        )

    def observe(self, state: Array) -> Array:
        """Position, goal, hazard and clearance as seen from the point, [N, 7] float32."""
        position, hazard = state[:, POSITION], state[:, HAZARD]
        clearance = distance(position, hazard)[:, None] - HAZARD_RADIUS
        parts = [position, state[:, GOAL] - position, hazard - position, clearance]
        return np.concatenate(parts, axis=1).astype(np.float32)


def point_hazard(horizon: int = 60) -> NativeEnv:
    """Entry point of `constrained_rl/PointHazard-v0`."""
    return NativeEnv(PointHazard(horizon))


def point_hazard_vec(num_envs: int, horizon: int = 60) -> NativeVectorEnv:
    """Vector entry point of `constrained_rl/PointHazard-v0`."""
    return NativeVectorEnv(PointHazard(horizon), num_envs)
