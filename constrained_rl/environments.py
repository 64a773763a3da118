"""What environments does a user mean? An id, a factory, several of them, or a vector environment.

Absent: how an id becomes a vector environment, see `cmdp.make_vec`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

from gymnasium.vector import VectorEnv

from constrained_rl.cmdp import Factory, make_vec, require_next_step, vectorize
from constrained_rl.config import RunConfig
from constrained_rl.envs import BUILT_IN
from constrained_rl.errors import InputError
from constrained_rl.spaces import require_action_space, require_observation_space

VectorEnvironment = VectorEnv[Any, Any, Any]
Environment = str | VectorEnvironment | Factory | Sequence[Factory]
GIVEN = "<given as an object>"
"""Id of an environment that no id can make again."""


def make_environments(env: Environment, config: RunConfig) -> VectorEnvironment:
    """A vector environment from an id, a factory or a list of them, or one given as it is.

    Raises `InputError` where autoreset is not NEXT_STEP or a space is not supported.
    """
    section = config.env
    if isinstance(env, VectorEnv):
        require_next_step(env)
        envs: VectorEnvironment = env
    elif env == GIVEN:
        raise InputError(
            "the agent was built on an environment given as an object, which no id can make again; "
            "pass it: Agent.load(folder, env=…)"
        )
    elif isinstance(env, str):
        envs = make_vec(env, section.num_envs, config.seed, section.vectorization, **section.kwargs)
    else:
        factories = [env] if callable(env) else list(env)
        repeated = islice(cycle(factories), section.num_envs)
        envs = vectorize(list(repeated), section.vectorization)
    require_observation_space(envs.single_observation_space)
    require_action_space(envs.single_action_space)
    return envs


def resolve(config: RunConfig, env: Environment | None) -> RunConfig:
    """Name the environment that was given, and fill in a built-in environment's default limit."""
    section = config.env
    if isinstance(env, str):
        section = section.model_copy(update={"id": env})
    elif isinstance(env, VectorEnv):
        name = env.spec.id if env.spec else GIVEN
        section = section.model_copy(update={"id": name, "num_envs": env.num_envs})
    elif callable(env):
        section = section.model_copy(update={"id": GIVEN})
    elif env is not None:
        section = section.model_copy(update={"id": GIVEN, "num_envs": max(1, len(env))})
    limit = config.limit
    if limit is None and section.id in BUILT_IN:
        limit = BUILT_IN[section.id].limit
    return config.model_copy(update={"env": section, "limit": limit})
