"""From configuration to the loop's parts: controllers, estimators, constraints, learners.

A config union's tag chooses an implementation in one `match`. Control tasks and language models are
assembled by the same function.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import torch

from constrained_rl.config import PPOConfig, RunConfig
from constrained_rl.constraint_config import (
    ConstraintConfig,
    EMAConfig,
    EstimatorConfig,
    MeanConfig,
    TrackingConfig,
    UpperConfig,
    WindowConfig,
)
from constrained_rl.constraints import Constraint, Constraints
from constrained_rl.engines import Engine, Engines, Optimization
from constrained_rl.errors import InputError
from constrained_rl.estimators import EMA, Estimator, Mean, Tracking, Upper, Window
from constrained_rl.learner import Learner, PolicyObjective, ValueObjective
from constrained_rl.multiplier_config import (
    FixedConfig,
    GradientConfig,
    MultiplierConfig,
    PIDConfig,
    ScaleFreeConfig,
)
from constrained_rl.multipliers import PID, Fixed, Gradient, Multiplier, one_each
from constrained_rl.ppo import Parts
from constrained_rl.protocols import Collector, Critic, Policy
from constrained_rl.scale_free import ScaleFree
from constrained_rl.sections import Limit
from constrained_rl.streams import stream_names
from constrained_rl.value_norm import ValueNorm


def build_estimator(config: EstimatorConfig) -> Estimator:
    """Build the estimator that the config's tag names."""
    match config:
        case MeanConfig():
            return Mean()
        case WindowConfig():
            return Window(config.size)
        case EMAConfig():
            return EMA(config.decay)
        case TrackingConfig():
            return Tracking(config.gain)
        case UpperConfig():
            return Upper(config.confidence, config.size)


def build_multiplier(config: MultiplierConfig, count: int) -> Multiplier:
    """Build the controller of `count` multipliers that the config's tag names."""
    match config:
        case FixedConfig():
            return Fixed(one_each(config.weight, count, "weight").tolist())
        case GradientConfig():
            return Gradient(count, **config.model_dump(exclude={"kind"}))
        case PIDConfig():
            return PID(count, **config.model_dump(exclude={"kind"}))
        case ScaleFreeConfig():
            return ScaleFree(count, **config.model_dump(exclude={"kind"}))


def assemble(
    collector: Collector,
    policy: Policy,
    critic: Critic | None,
    constraints: Constraints,
    multiplier: MultiplierConfig,
    config: PPOConfig,
    seed: int,
    engines: Engines | None = None,
) -> Parts:
    """Put the loop's parts together; learners are made here, for control and for language.

    `critic` is None exactly where `config.advantage` needs no values. `engines` train the modules;
    by default plain torch in this one process.
    """
    assert isinstance(policy, torch.nn.Module)
    assert (critic is None) == (config.advantage != "gae")
    constraints.check_channels(len(collector.cost_names))
    controller = build_multiplier(multiplier, len(constraints))
    if isinstance(controller, PID):
        controller.check_limits([constraint.limit for constraint in constraints.constraints])
    _check_streams(controller, constraints, config)
    engines = engines or Engines()
    actor = _engine(engines, policy, config.learning_rate, config)
    objective = PolicyObjective(actor.forward, config.clip, config.entropy, config.dual_clip)
    names = stream_names(constraints, config)
    value_norm = ValueNorm(len(names)) if config.normalize_values else None
    critic_learner = None
    if critic is not None:
        assert isinstance(critic, torch.nn.Module)
        rate = config.critic_learning_rate or config.learning_rate
        engine = _engine(engines, critic, rate, config)
        regression = ValueObjective(engine.forward, names, config.value_clip, value_norm)
        critic_learner = Learner(engine, regression, config.micro_batch)
    return Parts(
        collector=collector,
        policy=policy,
        critic=critic,
        policy_learner=Learner(actor, objective, config.micro_batch),
        policy_objective=objective,
        critic_learner=critic_learner,
        constraints=constraints,
        multiplier=controller,
        config=config,
        generator=torch.Generator().manual_seed(seed),
        shaping=(
            controller.lam if config.streams == "single" and isinstance(controller, Fixed) else None
        ),
        value_norm=value_norm,
        world=engines.world,
    )


def _check_streams(controller: Multiplier, constraints: Constraints, config: PPOConfig) -> None:
    """Refuse what asks for streams or critics that `config` does not have."""
    if config.streams == "single" and not isinstance(controller, Fixed):
        raise InputError(
            "ppo.streams='single' is the shaped stream R − νC and needs fixed weights; set "
            "multiplier.kind='fixed', or ppo.streams='separate' for a dynamic λ"
        )
    if config.streams == "single" and constraints.tracking:
        raise InputError(
            "constraint.estimator.kind='tracking' follows the advantages of each cost, but "
            "ppo.streams='single' has those of R − νC only; choose another estimator, or "
            "ppo.streams='separate'"
        )
    if constraints.corrected and (config.streams == "single" or config.advantage != "gae"):
        raise InputError(
            "constraint.corrected needs a critic of each cost, but ppo.streams is "
            f"{config.streams!r} and ppo.advantage is {config.advantage!r}; set "
            "constraint.corrected=false, or 'separate' and 'gae'"
        )


def _engine(
    engines: Engines, module: torch.nn.Module, learning_rate: float, config: PPOConfig
) -> Engine:
    optimization = Optimization(learning_rate, config.betas, config.max_grad_norm)
    return engines.make(module, optimization, engines.world)


def build_constraints(config: RunConfig, names: tuple[str, ...]) -> Constraints:
    """One constraint per cost channel, with the run's limits."""
    if not config.constrained:
        return Constraints((), ())
    limit = config.limit
    if limit is None and isinstance(config.multiplier, FixedConfig):
        limit = 0.0  # a fixed price needs no limit, only something to be reported against
    if limit is None:
        raise InputError(
            f"no limit given and environment '{config.env.id}' has no default; "
            "set limit=…, the upper bound on the expected episode cost"
        )
    return constrain(names, limit, config.constraint)


def constrain(names: tuple[str, ...], limit: Limit, config: ConstraintConfig) -> Constraints:
    """One constraint per named cost channel; one limit serves all, or there is one each."""
    limits = one_of_each("limit", limit, names)
    thresholds = one_of_each("constraint.threshold", config.threshold, names)
    return Constraints(
        [
            Constraint(
                name, limits[k], k, config.transform, thresholds[k], config.alpha, config.per
            )
            for k, name in enumerate(names)
        ],
        [build_estimator(config.estimator) for _ in names],
        config.corrected,
    )


def one_of_each(setting: str, value: Limit, names: Sequence[str]) -> tuple[float, ...]:
    """One number per cost from one for all, one each, or one each by name.

    Raises:
        InputError: a number is missing or too many, or there is no cost of a name.
    """
    if isinstance(value, dict):
        return _by_name(setting, value, names)
    values = value if isinstance(value, tuple) else (value,) * len(names)
    if len(values) != len(names):
        raise InputError(
            f"{setting} has {len(values)} entries for the costs {tuple(names)}; "
            f"give one number for all {len(names)} cost(s), or one per cost"
        )
    return values


def _by_name(setting: str, value: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    costs = ", ".join(names)
    for name in value:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise InputError(
                f"{setting} names {name!r}, but the costs are {costs}"
                + (f"; did you mean {setting}.{near[0]}?" if near else "; give one for each")
            )
    missing = [name for name in names if name not in value]
    if missing:
        given = ", ".join(value) or "none"
        raise InputError(
            f"{setting} names {given}, but the costs are {costs}; give one for each: "
            + " ".join(f"{setting}.{name}=…" for name in missing)
        )
    return tuple(float(value[name]) for name in names)
