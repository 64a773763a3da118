"""An agent: one algorithm on one environment, ready to train, act, save and load.

>>> agent = ppo_lagrangian("constrained_rl/Detour-v0", limit=4.0)   # doctest: +SKIP
>>> agent.train(100_000)                                            # doctest: +SKIP
>>> agent.predict(obs)                                              # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Never, Self

import gymnasium
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from constrained_rl.assembly import assemble, build_constraints
from constrained_rl.checkpoint import load_latest, load_state, save_state
from constrained_rl.cmdp import cost_names
from constrained_rl.collectors import VectorCollector, Windowing, probe_channels
from constrained_rl.config import RunConfig
from constrained_rl.devices import choose_device, device_here
from constrained_rl.environments import (
    GIVEN,
    Environment,
    VectorEnvironment,
    make_environments,
    resolve,
    storable,
)
from constrained_rl.errors import InputError
from constrained_rl.evaluation import Evaluation, evaluate
from constrained_rl.finite import FiniteCMDP, load_cmdp
from constrained_rl.networks import MLPPolicy, StackedCritic
from constrained_rl.ppo import train
from constrained_rl.presets import defaults
from constrained_rl.processes import close_envs
from constrained_rl.protocols import Metrics
from constrained_rl.registered import recipe_of
from constrained_rl.sections import Limit
from constrained_rl.seeds import evaluation_seed
from constrained_rl.settings import merge, read_run_config, validate
from constrained_rl.spaces import finite_numbers, observations_of, require_like
from constrained_rl.streams import stream_names
from constrained_rl.unfinished import warn_without_episodes
from constrained_rl.weight_average import WeightAverage

CALLBACKS = (
    "a callback is the body of a loop over iterations: for metrics in agent.iterate(steps): …"
)


class Agent:
    """One algorithm on one environment. Build it with the preset functions of this package."""

    def __init__(self, config: RunConfig, env: Environment | None = None) -> None:
        """Build networks, controller and collector.

        Args:
            config: the resolved run configuration.
            env: an id, a file or object of a finite CMDP, a vector environment, a factory of
                single environments, or a single environment that Gymnasium can make again; by
                default `config.env.id` or `config.env.file`.
        """
        self.config = config = resolve(config, env)
        by_config = isinstance(env, VectorEnv) and config.env.id != GIVEN
        self._source = None if by_config else env
        self.envs = make_environments(env, config)
        torch.set_num_threads(config.threads)
        device = choose_device(config.device)
        channels = probe_channels(
            self.envs,
            config.seed,
            required=config.constrained,
            corrected=config.constraint.corrected,
        )
        names = cost_names(self.envs) or tuple(str(k) for k in range(channels))
        constraints = build_constraints(config, names)
        spaces = (self.envs.single_observation_space, self.envs.single_action_space)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.policy = MLPPolicy(*spaces, config.network).to(device)
            streams = len(stream_names(constraints, config.ppo))
            critic = StackedCritic(spaces[0], streams, config.network).to(device)
        windowing = Windowing(config.ppo.horizon, config.env.burn_in)
        self.collector = collector = VectorCollector(
            self.envs, self.policy, windowing, names[:channels], config.seed, device
        )
        self.parts = assemble(
            collector, self.policy, critic, constraints, config.multiplier, config.ppo, config.seed
        )
        if config.average > 0:
            self.parts.average = WeightAverage(self.policy, config.average)

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one iteration."""
        return self.envs.num_envs * self.config.ppo.horizon

    def iterate(self, steps: int | None = None) -> Iterator[Metrics]:
        """Train for `steps` more decisions (default: the config's), yielding every iteration.

        Schedules and `average` end with them.
        """
        wanted = self.config.total_steps if steps is None else steps
        return self.iterate_until(
            self.parts.iteration + math.ceil(wanted / self.steps_per_iteration)
        )

    def iterate_until(self, iterations: int) -> Iterator[Metrics]:
        """Train until that many iterations are done, counted from the very first."""
        for metrics in train(self.parts, iterations):
            warn_without_episodes(self.parts, iterations)
            yield metrics

    def train(self, steps: int | None = None, **unknown: object) -> Metrics:
        """Train to the end and return the last iteration's metrics."""
        if unknown:
            raise InputError(
                f"train has no argument {', '.join(unknown)}; agent.train(steps) trains so many "
                f"decisions more, and {CALLBACKS}"
            )
        metrics: Metrics = {}
        for metrics in self.iterate(steps):  # noqa: B007
            pass
        return metrics

    def learn(self, *_: object, **__: object) -> Never:
        """Another library's name of `train`; says so."""
        raise InputError(f"it is agent.train(steps) here, and {CALLBACKS}")

    def predict(self, obs: NDArray[Any], deterministic: bool = True) -> NDArray[Any]:
        """Action for one observation, or actions [N, …] for a batch [N, …].

        Raises `InputError` for anything else than finite observations of the training's space.
        """
        batch, single = observations_of(obs, self.envs.single_observation_space)
        encoded = finite_numbers(self.policy.encode(batch), obs)
        action = self.policy.executed(self.policy.act(encoded, None, deterministic))
        return action[0] if single else action

    def evaluate(
        self,
        episodes: int = 100,
        deterministic: bool = False,
        seed: int | None = None,
        env: Environment | None = None,
    ) -> Evaluation:
        """Play episodes on environments of their own; training is not touched.

        Args:
            episodes: at least this many, the same number in each sub-environment.
            deterministic: take the most likely action instead of a sample.
            seed: of environments and actions; default: one that training does not use.
            env: what to play on; default: what the agent was built with.
        """
        envs = self.separate_environments(min(episodes, self.config.env.num_envs), env)
        try:
            return self.play(envs, episodes, deterministic, seed)
        finally:
            if env is not envs:
                close_envs(envs)

    def play(
        self,
        envs: VectorEnvironment,
        episodes: int,
        deterministic: bool = False,
        seed: int | None = None,
    ) -> Evaluation:
        """Play episodes on the given environments; `InputError` for those of training."""
        parts = self.parts
        if envs.unwrapped is self.envs.unwrapped:
            raise InputError(
                "these are the environments that the agent trains in; leave env out where it was "
                "built from an id or a factory, or give an id, a factory or another vector "
                "environment: evaluate(env=…)"
            )
        return evaluate(
            self.policy,
            envs,
            episodes,
            evaluation_seed(self.config.seed) if seed is None else seed,
            parts.constraints.constraints,
            parts.collector.cost_names,
            deterministic,
        )

    def separate_environments(
        self, num_envs: int, env: Environment | None = None
    ) -> VectorEnvironment:
        """Environments like those of training, or from `env`."""
        source = self._source if env is None else env
        if env is None and isinstance(source, VectorEnv):
            raise InputError(
                f"the agent was built on the vector environment {source}, of which no second one "
                "can be made; pass env=… to evaluate on, or build the agent from an id or a factory"
            )
        section = self.config.env.model_copy(update={"num_envs": num_envs})
        envs = make_environments(source, self.config.model_copy(update={"env": section}))
        require_like(envs, self.envs)
        return envs

    def save(self, folder: str | Path) -> None:
        """Write config and full training state to a new or existing folder, atomically."""
        config = storable(self.config).model_dump_json()
        save_state(Path(folder), {"config": config, "parts": self.parts.state_dict()})

    @classmethod
    def load(
        cls, folder: str | Path, env: Environment | None = None, device: str | None = None
    ) -> Self:
        """Restore `save`, the `best` of a run, or a run directory as it stands.

        Environments that cannot save their state play the episodes under way again; a notice says
        where they go another way.

        Args:
            folder: what was saved.
            env: what it was made on, where that was not an id.
            device: where it goes on; default: as it was made, or where that device is absent, on
                what there is, with a notice.
        """
        agent = cls.read(folder, env, device)
        agent.collector.under_way.come_back()
        return agent

    @classmethod
    def read(
        cls, folder: str | Path, env: Environment | None = None, device: str | None = None
    ) -> Self:
        """As `load`, to be evaluated: episodes under way are left alone until training goes on."""
        folder = Path(folder)
        if (folder / "config.toml").is_file():
            return cls._load_run(folder, env, device)
        state = load_state(folder)
        config, parts = state["config"], state["parts"]
        assert isinstance(config, str)
        assert isinstance(parts, Mapping)
        agent = cls(_placed(RunConfig.model_validate_json(config), device), env)
        agent.parts.load_state_dict(parts)
        return agent

    @classmethod
    def _load_run(cls, folder: Path, env: Environment | None, device: str | None) -> Self:
        agent = cls(_placed(read_run_config(folder), device), env)
        state, last = load_latest(folder / "checkpoints"), folder / "policy.safetensors"
        if state is not None:
            agent.parts.load_state_dict(state)
        if last.is_file():
            agent.policy.load_state_dict(_read_policy(last))
        elif state is None:
            raise InputError(f"{folder} has no checkpoint yet; let it run: crl resume {folder}")
        return agent

    def close(self) -> None:
        """Close the environments."""
        close_envs(self.envs)


def _placed(config: RunConfig, device: str | None) -> RunConfig:
    """A saved config with the device that is asked for, or one that is here."""
    chosen = device_here(config.device) if device is None else str(device)
    return config.model_copy(update={"device": chosen})


def _read_policy(file: Path) -> dict[str, Tensor]:
    """A run's final policy; `InputError` when it is damaged."""
    try:
        tensors: dict[str, Tensor] = load_file(file)
        return tensors
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file} is damaged ({error}); delete it, then `crl resume {file.parent}` writes it "
            "again from the last checkpoint"
        ) from error


def build(name: str, env: Environment, limit: Limit | None, settings: dict[str, Any]) -> Agent:
    """Build a preset's agent; `settings` are nested config sections, e.g. `ppo={"epochs": 4}`."""
    recipe = recipe_of(env) if isinstance(env, gymnasium.Env) else None
    env_id = recipe.id if recipe is not None else env if isinstance(env, str) else None
    given = load_cmdp(env) if isinstance(env, Path) else env
    cmdp = given if isinstance(given, FiniteCMDP) else None
    tree = merge(defaults(name, env_id, cmdp), settings)
    if limit is not None:
        tree["limit"] = limit
    return Agent(validate(RunConfig, tree, "settings (a.b is written a={'b': …})"), env)


def ppo(env: Environment, /, **settings: Any) -> Agent:  # noqa: ANN401
    """Unconstrained PPO; costs are reported when the environment has them."""
    return build("ppo", env, None, settings)


def static_shaping(
    env: Environment,
    /,
    weight: float | tuple[float, ...] = 1.0,
    limit: Limit | None = None,
    **settings: Any,  # noqa: ANN401
) -> Agent:
    """PPO on reward − ν · cost at a fixed `weight` ν; `limit` is only reported against."""
    multiplier = {"kind": "fixed", "weight": weight}
    return build("static_shaping", env, limit, {"multiplier": multiplier, **settings})


def ppo_lagrangian(
    env: Environment,
    /,
    limit: Limit | None = None,
    **settings: Any,  # noqa: ANN401
) -> Agent:
    """PPO with λ by dual gradient ascent: maximise return s.t. E[episode cost] ≤ `limit`."""
    return build("ppo_lagrangian", env, limit, settings)


def pid_lagrangian(
    env: Environment,
    /,
    limit: Limit | None = None,
    **settings: Any,  # noqa: ANN401
) -> Agent:
    """PPO with λ by PID control (Stooke et al. 2020)."""
    return build("pid_lagrangian", env, limit, settings)


def scale_free(
    env: Environment,
    /,
    limit: Limit | None = None,
    **settings: Any,  # noqa: ANN401
) -> Agent:
    """PPO with λ by PI control in units of the problem, see `scale_free.ScaleFree`."""
    return build("scale_free", env, limit, settings)
