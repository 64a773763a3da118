"""Environments that are wrong in one way each, registered as `tests.bad_input.envs:bad/…-v0`."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from constrained_rl.costs import Cost

PLANE = spaces.Box(-1.0, 1.0, (2,), np.float32)


class Walk(gymnasium.Env):
    """Five steps; `cost` gives what info["cost"] is at each."""

    def __init__(self, cost=lambda time: 0.5, observations=PLANE, actions=None):
        self.cost, self.observation_space = cost, observations
        self.action_space = spaces.Discrete(2) if actions is None else actions
        self.time = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def observe(self):
        if isinstance(self.observation_space, spaces.Box):
            return np.zeros(self.observation_space.shape, self.observation_space.dtype)
        return self.observation_space.sample()

    def pay(self):
        return {"cost": self.cost(self.time)}

    def step(self, action):
        self.time += 1
        return self.observe(), 1.0, self.time >= 5, False, self.pay()


class Endless(Walk):
    """Only a time limit ends it."""

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, False, truncated, info


class Free(Walk):
    """No cost in its info."""

    def pay(self):
        return {"distance": 1.0}


class Forgetful(Walk):
    """A cost at some steps only."""

    def pay(self):
        return {"cost": 0.5} if self.time < 3 else {}


class Late(Walk):
    """No cost until the third step."""

    def pay(self):
        return {"cost": 0.5} if self.time >= 3 else {}


class Blind(Walk):
    """Observations become NaN."""

    def observe(self):
        return np.full(2, np.nan if self.time == 3 else 0.0, np.float32)


class Rich(Walk):
    """Rewards become infinite after 44 steps of all episodes."""

    steps = 0

    def step(self, action):
        self.steps += 1
        obs, _, *rest = super().step(action)
        return obs, float("inf") if self.steps > 10 else 1.0, *rest


class SixValues(Walk):
    """Step returns the cost in the middle."""

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, 0.5, terminated, truncated, info


class FourValues(Walk):
    """Step as in Gym before 0.26."""

    def step(self, action):
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, info


class Broken(Walk):
    """Step has a mistake in it."""

    def step(self, action):
        return {}["speed"]


class Unready(Walk):
    """Reset has a mistake in it."""

    def reset(self, *, seed=None, options=None):
        return {}["map"]


def unbuildable():
    raise ValueError("no map was given")


class NoSeed(Walk):
    """Reset takes no seed, as in old Gym."""

    def reset(self):
        self.time = 0
        return self.observe(), {}


class Alone(Walk):
    """Reset returns the observation alone, as in old Gym."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class TwoRewards(Walk):
    """Rewards are arrays of two."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, np.array([reward, reward]), *rest


class HalfEnded(Walk):
    """A flag is a probability."""

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, 0.5 * terminated, truncated, info


class Wider(Walk):
    """Observations hold three numbers where the space says two."""

    def observe(self):
        return np.zeros(3, np.float32)


class Misnamed(Walk):
    """Cost names that are a string."""

    cost_names = "speed"


def harm(obs, action, reward, info):
    """A cost function with a mistake in it."""
    return info["speed"]


def two_numbers(obs, action, reward, info):
    return [0.1, 0.2]


def a_text(obs, action, reward, info):
    return "high"


def an_infinity(obs, action, reward, info):
    return float("inf")


def register(name, entry):
    gymnasium.register(f"bad/{name}-v0", entry, disable_env_checker=True, order_enforce=False)


gymnasium.register("bad/Endless-v0", Endless, max_episode_steps=1000)
LARGEST = float(np.finfo(np.float32).max)
BROAD = spaces.Box(-np.inf, np.inf, (1,), np.float32)
for name, entry in {
    "Sound": Walk,
    "Free": Free,
    "Forgetful": Forgetful,
    "Late": Late,
    "Blind": Blind,
    "Rich": Rich,
    "SixValues": SixValues,
    "FourValues": FourValues,
    "Broken": Broken,
    "Unready": Unready,
    "Unbuildable": unbuildable,
    "Misnamed": Misnamed,
    "MoreChannels": lambda: Walk(lambda time: np.full(1 if time < 3 else 2, 0.5)),
    "NotANumber": lambda: Walk(lambda time: float("nan") if time == 3 else 0.5),
    "None": lambda: Walk(lambda time: None),
    "Text": lambda: Walk(lambda time: "high"),
    "Whole": lambda: Walk(lambda time: 1),
    "Matrix": lambda: Walk(lambda time: np.zeros((2, 2))),
    "Dict": lambda: Walk(observations=spaces.Dict({"speed": PLANE, "place": PLANE})),
    "Tuple": lambda: Walk(observations=spaces.Tuple((PLANE, PLANE))),
    "Image": lambda: Walk(observations=spaces.Box(0, 255, (8, 8, 3), np.uint8)),
    "Words": lambda: Walk(observations=spaces.Text(8)),
    "ManyChoices": lambda: Walk(actions=spaces.MultiDiscrete([2, 3])),
    "Switches": lambda: Walk(actions=spaces.MultiBinary(3)),
    "Unbounded": lambda: Walk(actions=BROAD),
    "Largest": lambda: Walk(actions=spaces.Box(-LARGEST, LARGEST, (1,), np.float32)),
    "NoSeed": NoSeed,
    "Alone": Alone,
    "TwoRewards": TwoRewards,
    "HalfEnded": HalfEnded,
    "Wider": Wider,
    "Tensor": lambda: Walk(lambda time: torch.tensor(0.5)),
    "Normalized": lambda: gymnasium.wrappers.NormalizeObservation(Walk()),
    "Rewarded": lambda: Cost(gymnasium.wrappers.NormalizeReward(Walk()), ("harm",)),
    "Integers": lambda: Walk(actions=spaces.Box(0, 5, (2,), np.int64)),
    "HarmRaises": lambda: Cost(Walk(), ("harm",), harm),
    "HarmTwice": lambda: Cost(Walk(), ("harm",), two_numbers),
    "HarmText": lambda: Cost(Walk(), ("harm",), a_text),
    "HarmInfinite": lambda: Cost(Walk(), ("harm",), an_infinity),
    "HarmUncallable": lambda: Cost(Walk(), cost={"harm": 0.5}),
    "OneName": lambda: Cost(Walk(), names="harm"),
    "TwoCosts": lambda: Cost(Walk(), ("speed", "effort"), two_numbers),
}.items():
    register(name, entry)
