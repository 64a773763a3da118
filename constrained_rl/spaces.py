"""Which observation and action spaces the built-in networks take, and advice for the others.

Observations: Box with at most two dimensions, Discrete, MultiBinary, MultiDiscrete. Actions: Box of
floats with finite bounds, Discrete. Absent: images (an MLP on flattened pixels learns badly without
saying so) and spaces of several parts.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from constrained_rl.errors import InputError, short
from constrained_rl.returned import as_array, require_categories

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
    if not space.is_bounded() or _stand_for_none(space):
        raise InputError(
            f"the action box {space} is unbounded (bounds near the largest float stand for none), "
            "but the policy spreads its actions over the box; give the bounds that matter in the "
            "environment's action_space, or gymnasium.wrappers.TransformAction(env, lambda action: "
            f"2 * action, gymnasium.spaces.Box(-1, 1, {space.shape})), where 2 is the largest"
        )


def _stand_for_none(box: spaces.Box) -> bool:
    """Whether bounds are but the largest numbers of their dtype, or of float32."""
    largest = min(float(np.finfo(kind).max) for kind in (box.low.dtype.name, "float32"))
    bounds = np.abs(np.stack([box.low, box.high]).astype(np.float64))
    return bool((bounds >= largest / 2).any())


def observations_of(
    obs: object, space: gymnasium.Space[Any]
) -> tuple[NDArray[Any], bool]:  # [N, …], whether it was a single one
    """One observation or a batch as a batch; `InputError` unless they have the space's form."""
    if isinstance(obs, tuple) and len(obs) == 2 and isinstance(obs[1], Mapping):
        raise InputError(
            "predict got the pair (observation, info) that reset returns, expected the "
            "observation alone: obs, info = env.reset(); agent.predict(obs)"
        )
    try:
        found = as_array(obs)
        array = np.ascontiguousarray(found).reshape(found.shape)
    except (TypeError, ValueError) as error:  # lists of different lengths
        raise InputError(
            f"predict got {short(obs)}, expected observations of {space}: {error}"
        ) from error
    if array.dtype.kind not in "bifu":
        raise InputError(
            f"predict got {short(obs)} of dtype {array.dtype}, expected numbers: an observation of "
            f"{space}, or a batch of them"
        )
    shape = space.shape or ()
    if array.shape != shape and array.shape[1:] != shape:
        raise InputError(
            f"predict got an array of shape {array.shape}, expected one observation of shape "
            f"{shape} or a batch of shape {('N', *shape)}, as in {space}"
        )
    require_categories(array, space)
    single = array.shape == shape
    return (array[None] if single else array), single


def finite_numbers(encoded: Tensor, obs: object) -> Tensor:
    """Observations as encoded for the network, if they are finite there."""
    if not bool(encoded.isfinite().all()):
        raise InputError(
            f"predict got observations that are NaN or infinite in {encoded.dtype}: {short(obs)}; "
            "a policy cannot read them"
        )
    return encoded


def require_like(envs: VectorEnv[Any, Any, Any], trained: VectorEnv[Any, Any, Any]) -> None:
    """Refuse environments whose observations or actions a policy of `trained` cannot read or do."""
    pairs = {
        "observations": (envs.single_observation_space, trained.single_observation_space),
        "actions": (envs.single_action_space, trained.single_action_space),
    }
    for name, (found, expected) in pairs.items():
        boxes = isinstance(found, spaces.Box) and isinstance(expected, spaces.Box)
        if found.shape != expected.shape if boxes else found != expected:
            raise InputError(
                f"the {name} of {envs} are {found}, but the policy was trained on {expected}; "
                "give an environment of the same spaces, with the same wrappers"
            )
