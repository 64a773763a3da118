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

from constrained_rl.checkpoint import load_state, save_state
from constrained_rl.cmdp import cost_names, make_vec, require_next_step
from constrained_rl.collectors import VectorCollector, probe_channels
from constrained_rl.config import (
    EMAConfig,
    EstimatorConfig,
    FixedConfig,
    GradientConfig,
    MeanConfig,
    MultiplierConfig,
    PIDConfig,
    PPOConfig,
    RunConfig,
    WindowConfig,
)
from constrained_rl.constraints import EMA, Constraint, Constraints, Estimator, Mean, Window
from constrained_rl.envs import BUILT_IN
from constrained_rl.errors import InputError
from constrained_rl.learner import Learner, PolicyObjective, ValueObjective
from constrained_rl.multipliers import PID, Fixed, Gradient, Multiplier
from constrained_rl.networks import MLPPolicy, StackedCritic
from constrained_rl.ppo import Parts, stream_names, train
from constrained_rl.presets import defaults
from constrained_rl.protocols import Collector, Critic, Metrics, Policy
from constrained_rl.settings import merge, validate

VectorEnvironment = VectorEnv[Any, Any, Any]
Environment = str | VectorEnvironment | Callable[[], gymnasium.Env[Any, Any]]


def choose_device(name: str) -> torch.device:
    """Resolve the one device setting; `InputError` for cuda without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no GPU; use device=cpu or device=auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def build_estimator(config: EstimatorConfig) -> Estimator:
    """Build the estimator that the config's tag names."""
    match config:
        case MeanConfig():
            return Mean()
        case WindowConfig():
            return Window(config.size)
        case EMAConfig():
            return EMA(config.decay)


def build_multiplier(config: MultiplierConfig, count: int) -> Multiplier:
    """Build the controller of `count` multipliers that the config's tag names."""
    match config:
        case FixedConfig():
            return Fixed(static_weights(config, count))
        case GradientConfig():
            return Gradient(count, **config.model_dump(exclude={"kind"}))
        case PIDConfig():
            return PID(count, **config.model_dump(exclude={"kind"}))


def static_weights(config: FixedConfig, count: int) -> list[float]:
    """One ν per constraint."""
    weight = config.weight
    weights = list(weight) if isinstance(weight, tuple) else [weight] * count
    if len(weights) != count:
        raise InputError(
            f"multiplier.weight has {len(weights)} entries for {count} constraint(s); "
            "give one number, or one per constraint"
        )
    return weights


def assemble(
    collector: Collector,
    policy: Policy,
    critic: Critic,
    constraints: Constraints,
    multiplier: MultiplierConfig,
    config: PPOConfig,
    seed: int,
) -> Parts:
    """Put the loop's parts together; learners are made here, for control and for language."""
    assert isinstance(policy, torch.nn.Module)
    assert isinstance(critic, torch.nn.Module)
    controller = build_multiplier(multiplier, len(constraints))
    if config.streams == "single" and not isinstance(controller, Fixed):
        raise InputError(
            "ppo.streams='single' is the shaped stream R − νC and needs fixed weights; set "
            "multiplier.kind='fixed', or ppo.streams='separate' for a dynamic λ"
        )
    objective = PolicyObjective(policy, config.clip, config.entropy)
    names = stream_names(constraints, config)
    common = (config.betas, config.max_grad_norm, config.micro_batch)
    return Parts(
        collector=collector,
        policy=policy,
        critic=critic,
        policy_learner=Learner(policy, objective, config.learning_rate, *common),
        policy_objective=objective,
        critic_learner=Learner(
            critic,
            ValueObjective(critic, names, config.value_clip),
            config.critic_learning_rate or config.learning_rate,
            *common,
        ),
        constraints=constraints,
        multiplier=controller,
        config=config,
        generator=torch.Generator().manual_seed(seed),
        shaping=(
            controller.lam if config.streams == "single" and isinstance(controller, Fixed) else None
        ),
    )


def build_constraints(
    config: RunConfig, channels: int, names: tuple[str, ...] | None
) -> Constraints:
    """One constraint per cost channel, with the run's limits or the built-in environment's."""
    if not config.constrained:
        return Constraints((), ())
    limit = config.limit
    if limit is None:
        if config.env.id not in BUILT_IN:
            raise InputError(
                f"no limit given and environment '{config.env.id}' has no default; "
                "set limit=…, the upper bound on the expected episode cost"
            )
        limit = BUILT_IN[config.env.id].limit
    limits = list(limit) if isinstance(limit, tuple) else [limit] * channels
    if len(limits) != channels:
        raise InputError(
            f"limit has {len(limits)} entries, but the environment reports {channels} cost(s); "
            "give one number for all, or one per cost"
        )
    labels = names or tuple(f"{k}" for k in range(channels))
    return Constraints(
        [Constraint(labels[k], limits[k], k, config.constraint.transform) for k in range(channels)],
        [build_estimator(config.constraint.estimator) for _ in range(channels)],
    )


def make_environments(env: Environment, config: RunConfig) -> VectorEnvironment:
    """A vector environment from an id, a factory of single environments, or one given as it is."""
    if isinstance(env, VectorEnv):
        require_next_step(env)
        return env
    if isinstance(env, str):
        return make_vec(env, config.env.num_envs, config.seed, **config.env.kwargs)
    return SyncVectorEnv([env] * config.env.num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


def name_environment(config: RunConfig, env: Environment) -> RunConfig:
    """Make the config name the environment it was given: the default id has a default limit."""
    known: dict[str, object] = {"id": "<given as an object>"}
    if isinstance(env, str):
        known = {"id": env}
    elif isinstance(env, VectorEnv):
        known = {"id": env.spec.id if env.spec else known["id"], "num_envs": env.num_envs}
    return config.model_copy(update={"env": config.env.model_copy(update=known)})


class Agent:
    """One algorithm on one environment. Build it with the preset functions of this package."""

    def __init__(self, config: RunConfig, env: Environment | None = None) -> None:
        """Build networks, controller and collector.

        Args:
            config: the resolved run configuration.
            env: an id, a vector environment, or a factory of single environments; by default
                `config.env.id`.
        """
        config = config if env is None else name_environment(config, env)
        self.config = config
        self.envs = make_environments(config.env.id if env is None else env, config)
        torch.set_num_threads(config.threads)
        device = choose_device(config.device)
        channels = probe_channels(self.envs, config.seed, required=config.constrained)
        constraints = build_constraints(config, channels, cost_names(self.envs))
        spaces = (self.envs.single_observation_space, self.envs.single_action_space)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.policy = MLPPolicy(*spaces, config.network).to(device)
            streams = len(stream_names(constraints, config.ppo))
            critic = StackedCritic(spaces[0], streams, config.network).to(device)
        collector = VectorCollector(
            self.envs, self.policy, config.ppo.horizon, channels, config.seed, device
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
    if env_id is not None:
        tree = merge(tree, {"env": {"id": env_id}})
    elif isinstance(env, VectorEnv) and env.spec is not None:
        tree = merge(tree, {"env": {"id": env.spec.id, "num_envs": env.num_envs}})
    return Agent(validate(RunConfig, tree, "settings"), env)


def ppo(env: Environment, /, **settings: Any) -> Agent:  # noqa: ANN401
    """Unconstrained PPO; costs are reported when the environment has them."""
    return build("ppo", env, None, settings)


def static_shaping(
    env: Environment,
    /,
    weight: float | tuple[float, ...] = 1.0,
    limit: float | tuple[float, ...] | None = 0.0,
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
