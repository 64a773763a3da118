"""What the study of λ varies: one rule, one change at a time, everything else as in `exact_cases`.

Gains and starting values are those of the rules' authors; a condition changes one thing. A rule
whose authors do not start it at 0 (where some parameters would be −∞) starts at 0.001 instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from exact_cases import OURS, PUBLISHED, Algorithm, Problem, scaled

from constrained_rl.config import RunConfig
from constrained_rl.envs.problems import cmdp_of
from constrained_rl.multiplier_config import FixedConfig, GradientConfig, PIDConfig, ScaleFreeConfig
from constrained_rl.presets import defaults
from constrained_rl.settings import merge, validate

Tree = dict[str, Any]
RULES = (OURS, *PUBLISHED)
ON = ("Detour", "Garnet")
"""problems of one and of two active constraints"""
STALE = 10
"""iterations in the long window of finished episodes"""
STEP_AT, LOOSE = 0.25, 1.5
"""share of training after which the limit falls to the problem's own, from this multiple of it"""
LEAST_START = 1e-3
"""λ₀ in place of 0 for a rule whose authors start above it"""


@dataclass(frozen=True)
class Condition:
    """One change: of the settings (given the resolved ones and the prices) and of the problem."""

    name: str
    change: Callable[[RunConfig, Problem], Tree] = lambda config, problem: {}
    problem: Callable[[Problem], Problem] = lambda problem: problem
    step: bool = False  # whether the limit moves during training


@dataclass(frozen=True, eq=False)
class Study:
    """One training run, as it is handed to another process."""

    problem: Problem
    rule: str
    condition: str
    seed: int
    config: RunConfig
    step: bool


def _gain(factor: float) -> Callable[[RunConfig, Problem], Tree]:
    """λ's learning rate: the step of ascent, all three gains of PID, the integral gain of ours."""

    def change(config: RunConfig, problem: Problem) -> Tree:
        match config.multiplier:
            case GradientConfig() as rule:
                return {"multiplier": {"learning_rate": factor * rule.learning_rate}}
            case PIDConfig() as rule:
                gains = {"kp": rule.kp, "ki": rule.ki, "kd": rule.kd}
                return {"multiplier": {name: factor * gain for name, gain in gains.items()}}
            case ScaleFreeConfig() as rule:
                return {"multiplier": {"ki": factor * rule.ki}}
            case FixedConfig():
                raise AssertionError("a fixed λ has no gain")

    return change


def _start(factor: float) -> Callable[[RunConfig, Problem], Tree]:
    """λ₀ = factor · mean of the active prices, for all constraints alike."""

    def change(config: RunConfig, problem: Problem) -> Tree:
        prices = [price for price in problem.yardstick.solution.multipliers if price > 0]
        start = factor * sum(prices) / len(prices)
        rule = config.multiplier
        assert not isinstance(rule, FixedConfig)
        return {"multiplier": {"initial": max(start, min(rule.initial, LEAST_START))}}

    return change


def _envs(factor: float) -> Callable[[RunConfig, Problem], Tree]:
    """Another batch, for the same number of iterations."""
    return lambda config, problem: {
        "env": {"num_envs": int(config.env.num_envs * factor)},
        "total_steps": int(config.total_steps * factor),
    }


def _stale(config: RunConfig, problem: Problem) -> Tree:
    """J_C is the mean of the episodes that finished in the last ten iterations."""
    decisions = config.env.num_envs * config.ppo.horizon
    episodes = decisions * (1 - problem.yardstick.cmdp.discount)
    window = {"kind": "window", "size": math.ceil(STALE * episodes)}
    return {"constraint": {"corrected": False, "estimator": window}}


def _loose(config: RunConfig, problem: Problem) -> Tree:
    return {"limit": tuple((LOOSE * problem.yardstick.cmdp.limit).tolist())}


def _in_units(index: int) -> Callable[[Problem], Problem]:
    return lambda problem: list(scaled(problem))[index]


CONDITIONS = (
    Condition("as it is"),
    Condition("λ₀ = 0", _start(0.0)),
    Condition("λ₀ = λ*", _start(1.0)),
    Condition("λ₀ = 10 λ*", _start(10.0)),
    Condition("gain × 10", _gain(10.0)),
    Condition("gain ÷ 10", _gain(0.1)),
    Condition("rewards × 100", problem=_in_units(0)),
    Condition("costs × .01", problem=_in_units(1)),
    Condition("batch ÷ 4", _envs(0.25)),
    Condition("stale window", _stale),
    Condition("limit steps down", _loose, step=True),
)


def study_of(
    problem: Problem,
    rule: Algorithm,
    condition: Condition,
    seed: int,
    iterations: int | None = None,
) -> Study:
    """A run with its settings resolved; `iterations` shortens it."""
    changed = condition.problem(problem)
    cmdp = changed.yardstick.cmdp
    base = defaults("scale_free", None, cmdp)
    base |= {"seed": seed, "limit": tuple(cmdp.limit.tolist())}
    default = validate(RunConfig, base, "settings")
    if iterations is not None:
        base["total_steps"] = iterations * default.env.num_envs * default.ppo.horizon
    base = merge(base, rule.settings(changed.yardstick.solution.multipliers.tolist(), default))
    config = validate(RunConfig, base, "settings")
    # Prices for λ₀ are those of the problem as it is played.
    config = validate(RunConfig, merge(base, condition.change(config, changed)), "settings")
    # A scaled problem keeps its name: the condition says in which units it is played.
    named = replace(changed, name=problem.name)
    return Study(named, rule.name, condition.name, seed, config, condition.step)


def studies(
    seeds: int,
    ours: int,
    names: Sequence[str] = ON,
    quick: bool = False,
    iterations: int | None = None,
) -> list[Study]:
    """Every run: `ours` seeds of the default rule, `seeds` of the published ones; seeds first.

    `quick` keeps three conditions.
    """
    problems = [
        Problem.of(name, "built-in", cmdp_of(f"constrained_rl/{name}-v0")) for name in names
    ]
    chosen: Sequence[Condition] = CONDITIONS
    if quick:
        chosen = [c for c in CONDITIONS if c.name in ("as it is", "λ₀ = 10 λ*", "rewards × 100")]
    return [
        study_of(problem, rule, condition, seed, iterations)
        for seed in range(max(seeds, ours))
        for problem in problems
        for condition in chosen
        for rule in RULES
        if seed < (ours if rule is OURS else seeds)
    ]
