"""Environments whose numbers, returns and signatures are unusual, found by id in the command line."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

EASTING = 5_400_000.0


class Walk(gymnasium.Env):
    """`length` steps of reward 1 and cost 0.5; `observe` may be overridden."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Discrete(2)
    cost_names = ("risk",)

    def __init__(self, length=5):
        self.length = length

    def observe(self):
        return np.zeros(2, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def step(self, action):
        self.time += 1
        return self.observe(), 1.0, False, self.time >= self.length, {"cost": 0.5}


class Survey(Walk):
    """Float64 metres: ±0.2 around a large offset, millionths around 0, and a constant."""

    observation_space = Box(-1e7, 1e7, (3,), np.float64)

    def observe(self):
        x, y = self.np_random.uniform(-0.2, 0.2, 2)
        return np.array([EASTING + x, 1e-6 * y, EASTING + 0.1])


def odd(name):
    """The id of one of these, for the command line."""
    return f"tests.constrained_rl.odd_envs:odd/{name}-v0"


for made in (Walk, Survey):
    gymnasium.register(f"odd/{made.__name__}-v0", made)
