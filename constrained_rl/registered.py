"""Which registered environment does an id mean, and how is an environment made again?

With near names for an id that there is not.
"""

import difflib
import importlib
import json
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
from gymnasium.vector import VectorEnv

from constrained_rl.errors import InputError
from constrained_rl.faults import where_raised
from constrained_rl.processes import LeavesSignals
from constrained_rl.returned import SubEnvironment

Vectorization = Literal["auto", "sync", "async"]


def find_spec(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """The registered spec; `module:Name-v0` imports the module first."""
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever stands in it
            raise InputError(
                f"{env_id}: module {module} cannot be imported: {where_raised(error)}"
            ) from error
    spec = gymnasium.registry.get(name)
    if spec is None:
        near = _near_names(name) or [env_id for env_id in gymnasium.registry if _is_ours(env_id)]
        raise InputError(
            f"no environment is registered as {name!r}; near names: {', '.join(near)}. For an "
            "environment of another package write `package:Name-v0`, which imports it first"
        )
    return spec


def _near_names(name: str) -> list[str]:
    """Registered ids that look like `name`, ours first; namespaces and case do not count."""
    theirs_first = sorted(gymnasium.registry, key=_is_ours)  # of two equal tails, ours remains
    by_tail = {env_id.split("/")[-1].lower(): env_id for env_id in theirs_first}
    tails = difflib.get_close_matches(name.split("/")[-1].lower(), by_tail, n=5, cutoff=0.6)
    return sorted((by_tail[tail] for tail in tails), key=lambda env_id: not _is_ours(env_id))


def _is_ours(env_id: str) -> bool:
    return env_id.startswith("constrained_rl/")


@dataclass(frozen=True)
class Recipe:
    """Everything that an environment was made of by `gymnasium.make` or `make_vec`."""

    id: str
    kwargs: dict[str, object]
    vectorization: Vectorization


def recipe_of(env: gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> Recipe | None:
    """How an id makes such an environment again; None where more belongs to it than a file holds.

    That is a wrapper, or a keyword argument that is no number, text, list or table of these.
    """
    spec = env.spec
    registered = gymnasium.registry.get(spec.id) if spec is not None else None
    if spec is None or registered is None:
        return None
    if spec.additional_wrappers != registered.additional_wrappers:
        return None
    given = {name: x for name, x in spec.kwargs.items() if name not in registered.kwargs}
    given |= {
        name: x
        for name, x in spec.kwargs.items()
        if name in registered.kwargs and not _equal(x, registered.kwargs[name])
    }
    if given.get("render_mode") in (None, "human"):
        given.pop("render_mode", None)  # training and evaluation open no windows
    mode = given.pop("vectorization_mode", "vector_entry_point")
    if isinstance(env, VectorEnv):
        if env is not env.unwrapped or _changes_sub_environments(given):
            return None
        if _equal(given.get("max_episode_steps"), registered.max_episode_steps):
            given.pop("max_episode_steps", None)
    elif spec.max_episode_steps != registered.max_episode_steps:
        given["max_episode_steps"] = spec.max_episode_steps
    if not is_plain(given):
        return None
    vectorization: Vectorization = mode if mode in ("sync", "async") else "auto"
    return Recipe(spec.id, given, vectorization)


def _changes_sub_environments(given: dict[str, Any]) -> bool:
    """Take what concerns the vector form alone out of `given`; whether there is more to it."""
    given.pop("num_envs", None)
    options = given.pop("vector_kwargs", {})
    wrappers = given.pop("wrappers", ())
    ours = [w is SubEnvironment or isinstance(w, LeavesSignals) for w in wrappers]
    return not all(ours) or "observation_mode" in options


def _equal(one: object, other: object) -> bool:
    """Whether two arguments are the same, arrays and functions included."""
    return one is other or (is_plain(one) and is_plain(other) and one == other)


def is_plain(value: object) -> bool:
    """Whether a value comes back from a file as what it was."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


class Remade:
    """Makes an environment like the one that it was given, by the spec that Gymnasium keeps of it.

    Raises `InputError` where there is none, or a wrapper does not record its arguments.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        name = type(env.unwrapped).__name__
        cure = (
            f"pass what makes it instead: its class {name}, a function such as lambda: {name}(…), "
            "or a registered id"
        )
        spec = env.spec
        if spec is None:
            raise InputError(
                f"the environment is the single object {env}, of which training needs several and "
                f"evaluation others, and it has no spec to make them from; {cure}"
            )
        unknown = [w.name for w in spec.additional_wrappers if w.kwargs is None]
        if unknown:
            raise InputError(
                f"the environment is the single object {env}, which cannot be made again: "
                f"{', '.join(unknown)} does not record its arguments (gymnasium.utils."
                f"RecordConstructorArgs); {cure}"
            )
        self.spec, self.cure = deepcopy(spec), cure
        if self.spec.kwargs.get("render_mode") == "human":
            del self.spec.kwargs["render_mode"]  # training and evaluation open no windows

    def __call__(self) -> gymnasium.Env[Any, Any]:
        """Another environment."""
        try:
            return gymnasium.make(self.spec)
        except InputError:
            raise
        except Exception as error:  # whatever a constructor raises
            raise InputError(
                f"the environment {self.spec.id}, given as an object, cannot be made again: "
                f"{where_raised(error)}; {self.cure}"
            ) from error
