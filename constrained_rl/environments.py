"""What environments does a user mean? An id, a factory, several, a vector one, or a finite CMDP.

A finite CMDP may be an object or an `.npz` file; a run remembers where the file is and what was in
it. Absent: how an id becomes a vector environment, see `cmdp.make_vec`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv

from constrained_rl.cmdp import Factory, require_next_step, vec_with, vectorize
from constrained_rl.config import EnvConfig, RunConfig
from constrained_rl.envs import BUILT_IN
from constrained_rl.envs.problems import PROBLEMS, cmdp_of
from constrained_rl.envs.tabular import tabular_vec
from constrained_rl.errors import InputError
from constrained_rl.finite import FiniteCMDP, load_cmdp
from constrained_rl.spaces import require_action_space, require_observation_space

VectorEnvironment = VectorEnv[Any, Any, Any]
Environment = str | Path | FiniteCMDP | VectorEnvironment | Factory | Sequence[Factory]
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
    if isinstance(env, VectorEnv):
        require_next_step(env)
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
        envs = vec_with(env, section.num_envs, config.seed, section.vectorization, section.kwargs)
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
    named: dict[str, Any] = {"id": GIVEN, "file": None, "digest": None}
    if isinstance(env, str):
        named["id"] = env
    elif isinstance(env, Path):
        named |= {"id": env.name, "file": str(env)}
    elif isinstance(env, VectorEnv):
        named |= {"id": env.spec.id if env.spec else GIVEN, "num_envs": env.num_envs}
    elif not isinstance(env, FiniteCMDP) and not callable(env):
        named["num_envs"] = max(1, len(env))
    return section.model_copy(update=named)


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
