"""What the enumerable language is trained with, and the exact problem it makes."""

from __future__ import annotations

import numpy as np

from constrained_rl.advantages import KLStreams
from llm_env.enumerable.problem import Problem
from llm_env.enumerable.small_world import LONGEST, SmallWorld

STREAMS: tuple[KLStreams, ...] = ("reward", "both")
BETA, LIMIT = 0.3, -0.5
CONTROLLERS: dict[str, dict[str, object]] = {
    "scale_free": {"kind": "scale_free"},
    "pid": {"kind": "pid", "kp": 0.5, "ki": 0.05},
    "linear": {"kind": "gradient", "learning_rate": 0.05},
    "log": {"kind": "gradient", "learning_rate": 0.05, "initial": 1.0, "parameterization": "log"},
}
PPO: dict[str, object] = {
    "kl_coefficient": BETA,
    "epochs": 1,
    "minibatches": 4,
    "schedule": "linear",
    "learning_rate": 3e-3,
    "critic_learning_rate": 3e-3,
    "value_clip": None,
    "entropy": 0.3,
    "entropy_schedule": "linear",
}
TASK: dict[str, object] = {
    "prompts": 512,
    "max_new_tokens": LONGEST,
    "limit": LIMIT,
    "constraint": {"transform": "identity"},
}
EVERY = 5
"""iterations between two λ of the figure"""


def problem_of(world: SmallWorld, kl_streams: KLStreams, beta: float = BETA) -> Problem:
    """The language as an exact problem."""
    cost, limit = world.cost[None], np.array([LIMIT])
    return Problem(world.log_reference, world.reward, cost, limit, beta, kl_streams)
