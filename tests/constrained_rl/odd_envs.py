"""Environments whose numbers and returns are unusual, found by id in the command line."""

from typing import ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

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


class Column(Walk):
    """Rewards and flags as arrays and tensors of one element, 0 and 1 among them."""

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        flags = np.array([int(terminated)]), torch.tensor(truncated)
        return obs, np.array([reward], np.float32), *flags, info


class Path(Walk):
    """Infos besides the cost whose shape and type vary between sub-environments and steps."""

    def step(self, action):
        *rest, info = super().step(action)
        way = np.zeros(self.np_random.integers(1, 5))
        best = None if len(way) > 2 else 0.5
        return *rest, {**info, "path": way, "best": best, "map": {"seen": way}}


class Unbounded(Walk):
    """Actions from the least to the largest float."""

    action_space = Box(*(sign * float(np.finfo(np.float32).max) for sign in (-1, 1)), (2,))


class Normed(gymnasium.Wrapper):
    """Standardises observations by Welford's running statistics, of somebody's own making."""

    def __init__(self, env):
        super().__init__(env)
        self._mean, self._m2, self._count = 0.0, 1.0, 0

    def _standardized(self, obs):
        self._count += 1
        step = obs - self._mean
        self._mean = self._mean + step / self._count
        self._m2 = self._m2 + step * (obs - self._mean)
        return ((obs - self._mean) / np.sqrt(self._m2 / self._count)).astype(np.float32)

    def reset(self, **given):
        obs, info = self.env.reset(**given)
        return self._standardized(obs), info

    def step(self, action):
        obs, *rest = self.env.step(action)
        return self._standardized(obs), *rest


class NativeWalk(gymnasium.vector.VectorEnv):
    """`Walk` in vector form, with rewards and flags of another dtype and shape."""

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    single_observation_space, single_action_space = Walk.observation_space, Walk.action_space

    def __init__(self, convert=lambda x: x, observe=lambda: np.zeros((2, 2), np.float32)):
        self.num_envs, self.convert, self.observe = 2, convert, observe
        self.observation_space = batch_space(self.single_observation_space, 2)
        self.action_space = batch_space(self.single_action_space, 2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.ended = np.zeros(2, int), np.zeros(2, bool)
        return np.zeros((2, 2), np.float32), {}

    def step(self, actions):
        idle, self.time = self.ended, np.where(self.ended, 0, self.time + 1)
        self.ended = self.time >= 5
        reward, flags = np.where(idle, 0.0, 1.0), (self.ended, np.zeros(2, bool))
        cost = {"cost": np.where(idle, 0.0, 0.5)}
        return self.observe(), self.convert(reward), *map(self.convert, flags), cost


def odd(name):
    """The id of one of these, for the command line."""
    return f"tests.constrained_rl.odd_envs:odd/{name}-v0"


for made in (Walk, Survey, Column, Path, Unbounded):
    gymnasium.register(f"odd/{made.__name__}-v0", made, disable_env_checker=True)
gymnasium.register(
    "odd/Normalized-v0",
    Walk,
    disable_env_checker=True,
    additional_wrappers=(gymnasium.wrappers.NormalizeObservation.wrapper_spec(),),
)
