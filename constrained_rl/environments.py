"""What environments does a user mean? An id, a factory, several, an object, or a finite CMDP.

A finite CMDP may be an object or an `.npz` file; a run remembers where the file is and what was in
it. Absent: how an id becomes a vector environment, see `cmdp.make_vec`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from constrained_rl.cmdp import require_next_step, vec_with, vectorize
from constrained_rl.config import EnvConfig, RunConfig
from constrained_rl.envs import BUILT_IN
from constrained_rl.envs.problems import PROBLEMS, cmdp_of
from constrained_rl.envs.tabular import tabular_vec
from constrained_rl.errors import InputError, short
from constrained_rl.factories import Factory
from constrained_rl.finite import FiniteCMDP, load_cmdp
from constrained_rl.normalizers import require_no_statistics
from constrained_rl.registered import Recipe, Remade, recipe_of
from constrained_rl.spaces import require_action_space, require_observation_space

VectorEnvironment = VectorEnv[Any, Any, Any]
SingleEnvironment = gymnasium.Env[Any, Any]
Environment = (
    str | Path | FiniteCMDP | VectorEnvironment | SingleEnvironment | Factory | Sequence[Factory]
)
GIVEN = "<given as an object>"
"""Id of an environment that no id can make again."""


def make_environments(env: Environment | None, config: RunConfig) -> VectorEnvironment:
    """A vector environment from what was given, by default from the config's id or file.

    Raises `InputError` where autoreset is not NEXT_STEP, a space is not supported, or a file cannot
    be read or is no longer what it was.
    """
    section = config.env
    if env is None:
        env = section.id if section.file is None else read_problem(section)
    _require_known_kind(env)
    if isinstance(env, gymnasium.Env):
        recipe = recipe_of(env)
        section = section if recipe is None else _of_recipe(recipe, section)
        env = Remade(env) if recipe is None else recipe.id
    if isinstance(env, VectorEnv):
        require_next_step(env)
        require_no_statistics(env)
        envs: VectorEnvironment = env
    elif isinstance(env, FiniteCMDP | Path):
        cmdp = env if isinstance(env, FiniteCMDP) else load_cmdp(env)
        envs = tabular_vec(cmdp, section.num_envs)
        envs.reset(seed=config.seed)
    elif env == GIVEN:
        raise InputError(
            "the agent was built on an environment given as an object, which no id can make again; "
            "pass it: Agent.load(folder, env=…); `crl` makes what has an id: register it in "
            "my_env.py (gymnasium.register) and train on env.id=my_env:Name-v0"
        )
    elif isinstance(env, str):
        kwargs = _own_kwargs(env, section)
        envs = vec_with(env, section.num_envs, config.seed, section.vectorization, kwargs)
    else:
        factories = [env] if callable(env) else list(env)
        repeated = islice(cycle(factories), section.num_envs)
        envs = vectorize(list(repeated), section.vectorization)
    require_observation_space(envs.single_observation_space)
    require_action_space(envs.single_action_space)
    return envs


def resolve(config: RunConfig, env: Environment | None) -> RunConfig:
    """Name the environment that was given, and fill in the default limit of a problem we know."""
    section = config.env if env is None else _section_of(env, config.env)
    cmdp = env if isinstance(env, FiniteCMDP) else None
    if section.file is not None:
        section = section.model_copy(update=_identity(section))
        cmdp = read_problem(section)
    limit = config.limit
    if limit is None and cmdp is not None:
        limit = tuple(cmdp.limit.tolist())
    elif limit is None and section.id in BUILT_IN:
        limit = default_limit(section)
    return config.model_copy(update={"env": section, "limit": limit})


def _section_of(env: Environment, section: EnvConfig) -> EnvConfig:
    """The section of an environment that was given in place of the config's."""
    _require_known_kind(env)
    named: dict[str, Any] = {"id": GIVEN, "file": None, "digest": None, "kwargs": {}}
    if isinstance(env, str):
        named |= {"id": env, "kwargs": _own_kwargs(env, section)}
        return section.model_copy(update=named)
    if section.kwargs and "id" not in section.model_fields_set:
        raise InputError(
            f"env.kwargs is {section.kwargs}, but the environment was given as an object, which "
            "has its arguments already; give an id, or a function such as lambda: Mine(…)"
        )
    if isinstance(env, VectorEnv | gymnasium.Env):
        recipe = recipe_of(env)
        if isinstance(env, VectorEnv):
            named["num_envs"] = env.num_envs
        section = section.model_copy(update=named)
        return section if recipe is None else _of_recipe(recipe, section)
    if isinstance(env, Path):
        named |= {"id": env.name, "file": str(env)}
    elif not isinstance(env, FiniteCMDP) and not callable(env):
        named["num_envs"] = max(1, len(env))
    return section.model_copy(update=named)


def _own_kwargs(env_id: str, section: EnvConfig) -> dict[str, object]:
    """The section's arguments where they are those of this id; another one has its defaults."""
    of_another = "id" in section.model_fields_set and section.id != env_id
    return {} if of_another else section.kwargs


def _of_recipe(recipe: Recipe, section: EnvConfig) -> EnvConfig:
    """The section of an environment that an id makes again."""
    made = {"id": recipe.id, "kwargs": recipe.kwargs, "file": None, "digest": None}
    if recipe.vectorization != "auto":
        made["vectorization"] = recipe.vectorization
    return section.model_copy(update=made)


def storable(config: RunConfig) -> RunConfig:
    """The config as a file can hold it: an argument that is an object cannot be made again."""
    try:
        json.dumps(config.env.kwargs)
    except (TypeError, ValueError):
        section = config.env.model_copy(update={"id": GIVEN, "kwargs": {}})
        return config.model_copy(update={"env": section})
    return config


def _require_known_kind(env: object) -> None:
    """Refuse what is no environment, and those of another interface."""
    if isinstance(env, str | Path | FiniteCMDP | VectorEnv | gymnasium.Env | Sequence):
        return
    kinds = {kind.__name__ for kind in type(env).__mro__}
    if "VecEnv" in kinds:
        kept = ", whose running statistics evaluation would not have" * ("VecNormalize" in kinds)
        raise InputError(
            f"the environment is a {type(env).__name__} of Stable-Baselines3{kept}; its steps have "
            "another form than Gymnasium's. Pass the functions that make its environments; "
            "observations are standardised here (network.normalize_observations, on by default)"
        )
    if not callable(env):
        raise InputError(
            f"the environment is {short(env)}, of type {type(env).__name__}; expected an id, a "
            "function that makes a gymnasium.Env (a class is one), several in a list, a "
            "gymnasium.vector.VectorEnv, or a finite CMDP or its .npz file as a Path"
        )


def _identity(section: EnvConfig) -> dict[str, str]:
    """Where the file is, whatever folder one works in, and its content."""
    assert section.file is not None
    path = Path(section.file).absolute()
    return {"file": str(path), "digest": section.digest or _digest(path)}


def read_problem(section: EnvConfig) -> FiniteCMDP:
    """The finite CMDP of `section.file`; `InputError` if it is not what the run began with."""
    assert section.file is not None
    found = _digest(Path(section.file))
    if section.digest is not None and found != section.digest:
        raise InputError(
            f"{section.file} has changed: its SHA-256 is {found[:12]}…, the run began with "
            f"{section.digest[:12]}…; restore the file, or start a new run on the changed one"
        )
    return load_cmdp(section.file)


def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(
            f"env.file {path} cannot be read ({error.strerror}); give the .npz file of a finite "
            "CMDP, or put back the one that the run began with"
        ) from error


def default_limit(section: EnvConfig) -> tuple[float, ...]:
    """The limits of a built-in environment, those of its finite CMDP where it plays one."""
    if section.id in PROBLEMS:
        return tuple(cmdp_of(section.id, **section.kwargs).limit.tolist())
    return BUILT_IN[section.id].limit
