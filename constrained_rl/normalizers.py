"""Refuses environments with a normaliser of their own, whose statistics move while a policy trains.

Such a wrapper lives in the environment, not in the policy: evaluation, loading, `best/` and
certificates would build new ones with other statistics, that is, play another policy. Statistics
that are frozen are constants, and pass. Absent: statistics that are no object with a mean and a
count; of those `check_cmdp` notices that observations do not repeat.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, VectorEnv, VectorWrapper

from constrained_rl.errors import InputError

Thing = Any  # an environment, a wrapper, or an attribute of one, of whatever package
_INNER = ("env", "venv", "envs")
"""attributes in which wrappers of all packages keep what they wrap"""
_STATISTICS = {"obs_rms": "NormalizeObservation", "return_rms": "NormalizeReward"}
"""what Gymnasium's wrappers keep, by attribute"""


def require_no_statistics(env: Thing) -> None:
    """Raise `InputError` if a wrapper of a single or a vector environment, at any depth, has some.

    Of sub-environments in processes only Gymnasium's wrappers are known.
    """
    for found in _nested(env):
        if _normalizes(found):
            kind = type(found)
            raise _refusal(f"{kind.__module__}.{kind.__qualname__}")
        if isinstance(found, AsyncVectorEnv):
            _ask_processes(found)


def _ask_processes(envs: AsyncVectorEnv) -> None:
    for attribute, name in _STATISTICS.items():
        # Asked first, because a process ends when it lacks an attribute.
        known = all(envs.call("has_wrapper_attr", attribute))
        if known and any(envs.call("get_wrapper_attr", "update_running_mean")):
            raise _refusal(f"gymnasium.wrappers.{name}")


def _refusal(name: str) -> InputError:
    return InputError(
        f"the environment contains {name}, which keeps running statistics of its own: evaluation, "
        "loading, best/ and certificates would start it afresh, and so judge another policy. Leave "
        "it out: observations are standardised by statistics that are saved with the policy "
        "(network.normalize_observations, on by default), and critics of any reward's scale learn "
        "with ppo.normalize_values=true. A wrapper whose statistics are fixed may stay: set "
        "update_running_mean = False where it is made, or hold mean and variance as plain arrays"
    )


def _nested(env: Thing) -> Iterator[Thing]:
    """An environment, what it wraps, and what that wraps."""
    waiting, seen = [env], set()
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        for name, value in _attributes(found).items():
            several = value if isinstance(value, list | tuple) else (value,)
            waiting += [x for x in several if name in _INNER or _is_environment(x)]


def _attributes(thing: Thing) -> dict[str, Thing]:
    try:
        return dict(vars(thing))
    except TypeError:  # numbers, and classes with slots
        return {}


def _is_environment(value: Thing) -> bool:
    return isinstance(value, gymnasium.Env | VectorEnv)


def _normalizes(wrapper: Thing) -> bool:
    """Whether a wrapper or one of its attributes keeps moving statistics."""
    attributes = _attributes(wrapper)
    frozen = (attributes.get("_update_running_mean"), attributes.get("training"))
    if False in frozen:  # Gymnasium's switch and Stable-Baselines3's
        return False
    values = [x for x in attributes.values() if not _is_environment(x)]
    values += [x for value in values for x in _within(value)]
    if isinstance(wrapper, gymnasium.Wrapper | VectorWrapper):
        values.append(wrapper)  # an environment's own mean may be that of a bandit's arm
    return any(_are_statistics(_attributes(value)) for value in values)


def _within(value: Thing) -> list[Thing]:
    """What a table, a method or a function holds: `TransformObservation` is given a function."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, FunctionType):
        with suppress(ValueError):  # a name that has no value yet
            return [cell.cell_contents for cell in value.__closure__ or ()]
    return []


def _are_statistics(attributes: dict[str, Thing]) -> bool:
    """Whether these are a mean and a spread of counted numbers, as in everybody's RunningMeanStd.

    Fixed statistics need no count.
    """
    names = {name.strip("_") for name in attributes}
    counted = {"mean", "count"} <= names and not names.isdisjoint({"var", "std", "m2", "M2"})
    return counted or "running_mean" in names
