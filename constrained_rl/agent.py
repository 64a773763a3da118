"""An agent: one algorithm on one environment, ready to train, act, save and load.

>>> agent = ppo_lagrangian("constrained_rl/Detour-v0", limit=4.0)   # doctest: +SKIP
>>> agent.train(100_000)                                            # doctest: +SKIP
>>> agent.predict(obs)                                              # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from constrained_rl.assembly import assemble, build_constraints, choose_device
from constrained_rl.checkpoint import load_state, save_state
from constrained_rl.cmdp import cost_names, make_vec, require_next_step
from constrained_rl.collectors import VectorCollector, probe_channels
from constrained_rl.config import RunConfig
from constrained_rl.envs import BUILT_IN
from constrained_rl.networks import MLPPolicy, StackedCritic
from constrained_rl.ppo import stream_names, train
from constrained_rl.presets import defaults
from constrained_rl.protocols import Metrics
from constrained_rl.settings import merge, validate

VectorEnvironment = VectorEnv[Any, Any, Any]
Environment = str | VectorEnvironment | Callable[[], gymnasium.Env[Any, Any]]
GIVEN = "<given as an object>"
"""Id of an environment that no id can make again."""


def make_environments(env: Environment, config: RunConfig) -> VectorEnvironment:
    """A vector environment from an id, a factory of single environments, or one given as it is."""
    if isinstance(env, VectorEnv):
        require_next_step(env)
        return env
    if isinstance(env, str):
        return make_vec(env, config.env.num_envs, config.seed, **config.env.kwargs)
    return SyncVectorEnv([env] * config.env.num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


def resolve(config: RunConfig, env: Environment | None) -> RunConfig:
    """Name the environment that was given, and fill in a built-in environment's default limit."""
    section = config.env
    if isinstance(env, str):
        section = section.model_copy(update={"id": env})
    elif isinstance(env, VectorEnv):
        name = env.spec.id if env.spec else GIVEN
        section = section.model_copy(update={"id": name, "num_envs": env.num_envs})
    elif env is not None:
        section = section.model_copy(update={"id": GIVEN})
    limit = config.limit
    if limit is None and section.id in BUILT_IN:
        limit = BUILT_IN[section.id].limit
    return config.model_copy(update={"env": section, "limit": limit})


class Agent:
    """One algorithm on one environment. Build it with the preset functions of this package."""

    def __init__(self, config: RunConfig, env: Environment | None = None) -> None:
        """Build networks, controller and collector.

        Args:
            config: the resolved run configuration.
            env: an id, a vector environment, or a factory of single environments; by default
                `config.env.id`.
        """
        self.config = config = resolve(config, env)
        self.envs = make_environments(config.env.id if env is None else env, config)
        torch.set_num_threads(config.threads)
        device = choose_device(config.device)
        channels = probe_channels(self.envs, config.seed, required=config.constrained)
        names = cost_names(self.envs) or tuple(str(k) for k in range(channels))
        constraints = build_constraints(config, names)
        spaces = (self.envs.single_observation_space, self.envs.single_action_space)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.policy = MLPPolicy(*spaces, config.network).to(device)
            streams = len(stream_names(constraints, config.ppo))
            critic = StackedCritic(spaces[0], streams, config.network).to(device)
        collector = VectorCollector(
            self.envs, self.policy, config.ppo.horizon, names[:channels], config.seed, device
        )
        self.parts = assemble(
            collector, self.policy, critic, constraints, config.multiplier, config.ppo, config.seed
        )

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one iteration."""
        return self.envs.num_envs * self.config.ppo.horizon

    def iterate(self, steps: int | None = None) -> Iterator[Metrics]:
        """Train for `steps` more decisions (default: the config's), yielding every iteration."""
        wanted = self.config.total_steps if steps is None else steps
        return self.iterate_until(
            self.parts.iteration + math.ceil(wanted / self.steps_per_iteration)
        )

    def iterate_until(self, iterations: int) -> Iterator[Metrics]:
        """Train until that many iterations are done, counted from the very first."""
        return train(self.parts, iterations)

    def train(self, steps: int | None = None) -> Metrics:
        """Train to the end and return the last iteration's metrics."""
        metrics: Metrics = {}
        for metrics in self.iterate(steps):  # noqa: B007
            pass
        return metrics

    def predict(self, obs: NDArray[Any], deterministic: bool = True) -> NDArray[Any]:
        """Action for one observation, or actions [N, …] for a batch [N, …]."""
        space = self.envs.single_observation_space
        assert space.shape is not None
        single = np.ndim(obs) == len(space.shape)
        batch = self.policy.encode(np.asarray(obs)[None] if single else np.asarray(obs))
        action = self.policy.executed(self.policy.act(batch, None, deterministic))
        return action[0] if single else action

    def save(self, folder: str | Path) -> None:
        """Write config and full training state to a new or existing folder, atomically."""
        config = self.config.model_dump_json()
        save_state(Path(folder), {"config": config, "parts": self.parts.state_dict()})

    @classmethod
    def load(cls, folder: str | Path, env: Environment | None = None) -> Self:
        """Restore `save`; pass `env` when it was not made from an id."""
        state = load_state(Path(folder))
        config, parts = state["config"], state["parts"]
        assert isinstance(config, str)
        assert isinstance(parts, Mapping)
        agent = cls(RunConfig.model_validate_json(config), env)
        agent.parts.load_state_dict(parts)
        return agent

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()


def build(
    name: str, env: Environment, limit: float | tuple[float, ...] | None, settings: dict[str, Any]
) -> Agent:
    """Build a preset's agent; `settings` are nested config sections, e.g. `ppo={"epochs": 4}`."""
    env_id = env if isinstance(env, str) else None
    tree = merge(defaults(name, env_id), settings)
    if limit is not None:
        tree["limit"] = limit
    return Agent(validate(RunConfig, tree, "settings"), env)


def ppo(env: Environment, /, **settings: Any) -> Agent:  # noqa: ANN401
    """Unconstrained PPO; costs are reported when the environment has them."""
    return build("ppo", env, None, settings)


def static_shaping(
    env: Environment,
    /,
    weight: float | tuple[float, ...] = 1.0,
    limit: float | tuple[float, ...] | None = None,
    **settings: Any,  # noqa: ANN401
) -> Agent:
    """PPO on reward − ν · cost at a fixed `weight` ν; `limit` is only reported against."""
    multiplier = {"kind": "fixed", "weight": weight}
    return build("static_shaping", env, limit, {"multiplier": multiplier, **settings})


def ppo_lagrangian(
    env: Environment,
    /,
    limit: float | tuple[float, ...] | None = None,
    **settings: Any,  # noqa: ANN401
) -> Agent:
    """PPO with λ by dual gradient ascent: maximise return s.t. E[episode cost] ≤ `limit`."""
    return build("ppo_lagrangian", env, limit, settings)


def pid_lagrangian(
    env: Environment,
    /,
    limit: float | tuple[float, ...] | None = None,
    **settings: Any,  # noqa: ANN401
) -> Agent:
    """PPO with λ by PID control (Stooke et al. 2020)."""
    return build("pid_lagrangian", env, limit, settings)
