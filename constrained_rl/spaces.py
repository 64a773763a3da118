"""Which observation and action spaces the built-in networks take, and advice for the others.

Observations: Box with at most two dimensions, Discrete, MultiBinary, MultiDiscrete. Actions: Box of
floats with finite bounds, Discrete. Absent: images (an MLP on flattened pixels learns badly without
saying so) and spaces of several parts.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from constrained_rl.errors import InputError

_ADVICE = {
    "Dict": "flatten each sub-environment: gymnasium.wrappers.FlattenObservation(env)",
    "Tuple": "flatten each sub-environment: gymnasium.wrappers.FlattenObservation(env)",
    "Text": "turn the text into numbers: gymnasium.wrappers.TransformObservation(env, …); for "
    "language models see `crl llm`",
    "Graph": "turn the graph into a fixed-size vector: gymnasium.wrappers.TransformObservation",
    "Sequence": "pad it to a fixed size: gymnasium.wrappers.TransformObservation(env, …)",
}
_ACTION_ADVICE = {
    "MultiDiscrete": "number the combinations as one Discrete space in a gymnasium.ActionWrapper",
    "MultiBinary": "number the combinations as one Discrete space in a gymnasium.ActionWrapper",
}


def require_observation_space(space: gymnasium.Space[Any]) -> None:
    """Raise `InputError` with advice unless the built-in networks read such observations."""
    if isinstance(space, spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
        return
    if not isinstance(space, spaces.Box):
        name = type(space).__name__
        raise InputError(
            f"observations are {name} ({space}); supported are Box, Discrete, MultiBinary and "
            f"MultiDiscrete: {_ADVICE.get(name, _ADVICE['Dict'])}"
        )
    pixels = space.dtype == np.uint8 and len(space.shape) == 2
    if pixels or len(space.shape) > 2:
        raise InputError(
            f"observations are images (Box{space.shape} of {space.dtype}), which the built-in "
            "MLPs do not read well; shrink them and flatten them yourself: gymnasium.wrappers."
            "ResizeObservation, then FlattenObservation. Or use an encoder of your own with "
            "constrained_rl.collectors.VectorCollector"
        )


def require_action_space(space: gymnasium.Space[Any]) -> None:
    """Raise `InputError` with advice unless the built-in policy draws such actions."""
    if isinstance(space, spaces.Discrete):
        return
    if not isinstance(space, spaces.Box):
        name = type(space).__name__
        advice = _ACTION_ADVICE.get(name, "translate one Box or Discrete in an ActionWrapper")
        raise InputError(f"actions are {name} ({space}); Discrete and Box are supported: {advice}")
    if not np.issubdtype(space.dtype, np.floating):
        raise InputError(
            f"actions are a Box of {space.dtype} ({space}); a Box of floats is supported: "
            "translate it in a gymnasium.ActionWrapper, or use Discrete"
        )
    if not space.is_bounded():
        raise InputError(
            f"the action box {space} is unbounded; give finite bounds, e.g. by "
            "gymnasium.wrappers.RescaleAction or in the environment's action_space"
        )
