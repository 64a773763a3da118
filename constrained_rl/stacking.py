"""Why can Gymnasium not stack what sub-environments returned? An error of it becomes advice.

An error of an environment's own code is left as it is.
"""

import functools
import re
import traceback
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from constrained_rl.errors import InputError
from constrained_rl.returned import FIVE, require_known_arguments

VALUES = (ValueError, TypeError, AttributeError, AssertionError, IndexError)
_GYMNASIUM, _NUMPY, _OURS = (
    str(Path(file).parent) + "/" for file in (gymnasium.__file__, np.__file__, __file__)
)
_DISPATCH = functools.__file__  # Gymnasium's functions on spaces are called by it


def explained(error: Exception, envs: VectorEnv[Any, Any, Any]) -> InputError | None:
    """What is wrong with what sub-environments returned, where Gymnasium could not use it.

    None for an error of the environment's own code, and for everything else.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    packing = [frame for frame, _ in frames if frame.f_code.co_name == "_add_info"]
    if packing and "key" in packing[-1].f_locals:
        return _of_infos(packing[-1].f_locals["key"], error)
    if is_other_length(error):
        return InputError(
            "step of a sub-environment returned another number of values than Gymnasium's five "
            f"({error}). {FIVE}"
        )
    if isinstance(error, TypeError):
        require_known_arguments(error, f"a sub-environment of {envs}")
    said = f"{type(error).__name__}: {str(error).rstrip('.')}"
    files = [frame.f_code.co_filename for frame, _ in frames]
    for note in getattr(error, "__notes__", ()):  # of a process that stepped an environment
        files += re.findall(r'File "(.+?)", line', note)
    if isinstance(error, VALUES) and all(map(_is_machinery, files)):
        return InputError(
            f"Gymnasium cannot use what the sub-environments of {envs} returned: {said}. Expected: "
            "reset returns (observation, info), step (observation, reward, terminated, truncated, "
            f"info), with observations of {envs.single_observation_space}, a float, two bools and "
            "a dict. Given functions that make one environment each, instead of a vector "
            "environment, more can be said"
        )
    return None


def _is_machinery(file: str) -> bool:
    """Whether code stacks or passes on values, unlike that of an environment."""
    environments = (f"{_GYMNASIUM}envs/", f"{_OURS}envs/")
    return file.startswith((_GYMNASIUM, _NUMPY, _OURS, _DISPATCH)) and not file.startswith(
        environments
    )


def _of_infos(key: object, error: Exception) -> InputError:
    if key == "cost":
        return InputError(
            f"the infos of the sub-environments do not fit into one array: {error}. Each of "
            'them has to return info["cost"] with the same number of channels at every step; '
            "wrap each in Cost(env, names=…), which checks that"
        )
    return InputError(
        f'info["{key}"] of the sub-environments does not fit into one array: {error}. Gymnasium '
        "stacks every info, so it needs one type and shape at every step of each; training reads "
        'only info["cost"]. Leave it out, pad it, or give functions that make one environment each '
        "instead of a vector environment: other infos are then left out"
    )


def is_other_length(error: Exception) -> bool:
    """Whether Gymnasium refused a step because it returned another number of values than five."""
    text = str(error)
    return "to unpack (expected 5" in text or "five element tuple" in text
