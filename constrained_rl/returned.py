"""What `reset` and `step` of an environment return: taken for what it is, or refused by name.

A number may come as an array or a tensor of one element, a flag also as 0 or 1. `SubEnvironment`
holds a single environment to that before a vector environment puts several together, the functions
on arrays do it afterwards. Absent: costs, see `costs` and `cmdp`.

Letters: N sub-environments.
"""

import re
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from constrained_rl.errors import InputError, short
from constrained_rl.normalizers import require_no_statistics

Array = NDArray[Any]
AnyEnv = gymnasium.Env[Any, Any]

FIVE = (
    "Six, with the cost in the middle: wrap it in constrained_rl.FromSixTuple(env). Four: it is a "
    "Gym environment from before 0.26"
)
SIGNATURE = "def reset(self, *, seed=None, options=None), which returns (observation, info)"


class SubEnvironment(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A single environment whose observations, numbers and flags a vector environment can stack.

    Infos keep what training reads, "cost" and "termination": Gymnasium can put others together only
    if they have one type and shape in all sub-environments. A reset pays nothing.
    """

    def __init__(self, env: AnyEnv) -> None:
        super().__init__(env)
        self._shape = env.observation_space.shape  # None where there are several parts
        self._begun = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; seed and options are passed on where they are given.

        Gymnasium hands empty options to a sub-environment that is reset alone: none.
        """
        if not self._begun:  # not when it is made: a process that ends then says nothing
            require_no_statistics(self.env)
            self._begun = True
        given = {"seed": seed, "options": options or None}
        obs, _ = reset_pair(self.env, {key: x for key, x in given.items() if x is not None})
        self._require_shape(obs)
        return obs, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401
        """Play one action."""
        # Types are looked at before anything is called: this is done for every sub-environment.
        found: Any = self.env.step(action)
        if type(found) is not tuple or len(found) != 5:
            found = five_values(self.env, found)
        obs, reward, terminated, truncated, info = found
        self._require_shape(obs)
        if type(reward) is not float:
            reward = number("reward", reward)
        if type(terminated) is not bool or type(truncated) is not bool:
            terminated, truncated = flag("terminated", terminated), flag("truncated", truncated)
        return obs, reward, terminated, truncated, self._read(info)

    def _read(self, info: Any) -> dict[str, Any]:  # noqa: ANN401
        """The part of an info that training reads."""
        if type(info) is not dict:
            require_info(info, self.env)
        kept = {}
        if "cost" in info:
            kept["cost"] = cost = info["cost"]
            if type(cost) is not np.ndarray and type(cost) is not float:
                _require_packable(cost)
        if "termination" in info:
            kept["termination"] = info["termination"]
        return kept

    def _require_shape(self, obs: Any) -> None:  # noqa: ANN401
        shape = obs.shape if type(obs) is np.ndarray else np.shape(obs)
        if shape != self._shape and self._shape is not None:
            raise InputError(
                f"an observation of {self.env} has shape {shape}, but its observation "
                f"space {self.env.observation_space} has {self._shape}: {short(obs)}. Return what "
                "the space says, or correct observation_space"
            )


def five_values(env: object, found: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """What a step returned, if it is as many values as in Gymnasium."""
    if isinstance(found, tuple | list) and len(found) == 5:
        return tuple(found)
    count = len(found) if isinstance(found, tuple | list) else type(found).__name__
    raise InputError(
        f"step of {env} returned another number of values ({count}) than Gymnasium's five: "
        "observation, reward, terminated, truncated, info"
        + ("" if isinstance(env, VectorEnv) else f". {FIVE}")
    )


def require_info(info: object, env: object) -> None:
    """Refuse an info that is no dict."""
    if not isinstance(info, Mapping):
        raise InputError(f"step of {env} returned the info {short(info)}, expected a dict")


def reset_pair(env: Any, given: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:  # noqa: ANN401
    """Reset a single or vector environment; `InputError` unless it returns (obs, info)."""
    try:
        found = env.reset(**given)
    except TypeError as error:
        require_known_arguments(error, str(env))
        raise
    if isinstance(found, tuple | list) and len(found) == 2 and isinstance(found[1], Mapping):
        return found[0], found[1]
    raise InputError(
        f"reset of {env} returned {short(found)}, expected the pair (observation, info) with a "
        f"dict as info, as Gymnasium since 0.26: {SIGNATURE}"
    )


def require_known_arguments(error: Exception, subject: str) -> None:
    """Explain a `reset` that does not take `seed` or `options`, or cannot do without."""
    said = str(error)
    unknown = re.search(r"got an unexpected keyword argument '(seed|options)'", said)
    needed = re.search(r"reset\(\) missing \d+ required .*argument", said)
    if unknown or needed:
        wrong = f"takes no {unknown[1]}" if unknown else "cannot be called without arguments"
        raise InputError(
            f"reset of {subject} {wrong} ({error}); write it as {SIGNATURE} and draws its random "
            "numbers from self.np_random after super().reset(seed=seed)"
        ) from error


def number(name: str, value: object) -> float:
    """A number, also as an array or tensor of one element."""
    if isinstance(value, float | int | np.floating | np.integer):
        return float(value)
    array = as_array(value)
    if array.size != 1 or array.dtype.kind not in "bifu":
        raise InputError(
            f"the {name} is {short(value)} of shape {array.shape}, expected one number: return "
            f"float({name})"
        )
    return float(array.item())


def flag(name: str, value: object) -> bool:
    """A truth value, also as 0 or 1, or as an array or tensor of one element."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    array = as_array(value)
    if array.size != 1 or array.dtype.kind not in "bifu" or array.item() not in (0, 1):
        raise InputError(
            f"the flag {name} is {short(value)} of shape {array.shape}, expected True or False: "
            f"return bool({name})"
        )
    return bool(array.item())


def numbers(name: str, value: object, count: int) -> Array:  # [N]
    """One number of each of `count` sub-environments, also as a column [N, 1]."""
    array = as_array(value)
    if array.dtype.kind in "bifu":
        if array.shape == (count,):
            return array
        if array.shape[:1] == (count,) and array.size == count:
            return array.reshape(count)
    raise InputError(
        f"the vector environment returned {name} of shape {array.shape} and dtype {array.dtype}, "
        f"expected ({count},): one number for each sub-environment"
    )


def flags(name: str, value: object, count: int) -> NDArray[np.bool_]:  # [N]
    """One truth value of each of `count` sub-environments, also as 0 or 1."""
    array = numbers(name, value, count)
    if array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
        raise InputError(
            f"the vector environment returned {name} = {short(array)}, expected truth values, or 0 "
            "and 1, as in Gymnasium"
        )
    return array.astype(np.bool_, copy=False)


def as_array(value: Any) -> Array:  # noqa: ANN401  an array or a tensor
    """As NumPy's, wherever it lies."""
    return value.numpy(force=True) if isinstance(value, Tensor) else np.asarray(value)


def require_in_space(
    obs: Any,  # noqa: ANN401  [N, …], arrays or tensors
    envs: VectorEnv[Any, Any, Any],
) -> None:
    """Refuse a batch of another shape than `envs` declares, and categories that do not exist."""
    space = envs.single_observation_space
    if space.shape is None:
        return
    expected = (envs.num_envs, *space.shape)
    if np.shape(obs) != expected:
        raise InputError(
            f"{envs} returned observations of shape {np.shape(obs)}, expected {expected}: one "
            f"of {space} for each sub-environment. Correct what it returns, or its spaces"
        )
    require_categories(obs, space)


def require_categories(obs: object, space: gymnasium.Space[Any]) -> None:
    """Refuse numbers that stand for no category of a Discrete or MultiDiscrete space."""
    if not isinstance(obs, np.ndarray):
        return
    if isinstance(space, gymnasium.spaces.Discrete):
        low, high = space.start, space.start + space.n
    elif isinstance(space, gymnasium.spaces.MultiDiscrete):
        low, high = space.start, space.start + space.nvec
    else:
        return
    outside = (obs < low) | (obs >= high)
    if outside.any():
        raise InputError(
            f"observations hold {obs[outside][0]}, which is no category of {space}; correct the "
            "environment's observations or its observation_space"
        )


def _require_packable(cost: object) -> None:
    """Refuse a cost that Gymnasium would store as an object, or could not store."""
    if not isinstance(cost, float | int | np.generic | np.ndarray):
        raise InputError(
            f'info["cost"] is {short(cost)}, of type {type(cost).__name__}, expected a float or a '
            "float64 array [K]: return float(cost) or np.asarray(cost, dtype=np.float64), or wrap "
            "the environment in Cost(env), which casts"
        )
