"""Which λ* will a constraint have? One estimate from samples of the reference, and may it be used?

n responses of π_ref to each of X prompts are an enumerable problem of mass 1/n each, whose optimum
(enumerable/optimum.py) estimates λ*: the one-shot dual of Huang et al. 2024 (arXiv 2405.19544),
with the expectation over prompts outside the logarithm, and its analogue for kl_streams="both".

    w_i ∝ exp((R_i − Σ λ_k C_ki) / β′)   within a prompt;     ESS = 1 / Σ w_i²   (Kish)

Reweighting cannot show what was never sampled: where β′ is small against the spread of the scores,
a few responses carry all weight, the best ones are missing, and λ̂ is wrong. The prompts' harmonic
mean of ESS says so, because the error of E_w[C] goes with Σ_x 1/ESS_x: below `LEAST_EFFECTIVE` the
estimate is refused. Absent: CVaR and constraints per prompt, no means of a fixed function.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp

from constrained_rl.advantages import KLStreams
from constrained_rl.errors import InputError
from llm_env.enumerable.optimum import Infeasible, solve
from llm_env.enumerable.problem import Floats, Problem

LEAST_EFFECTIVE = 7.0
"""smallest usable harmonic mean of the prompts' effective sample sizes; see
docs/enumerable_language.md for how wrong estimates are below and above it"""
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Samples:
    """Scores of n responses of the reference to each of X prompts."""

    reward: Floats  # [X, n] as training learns from it
    cost: Floats  # [K, X, n] transformed

    def problem(self, limit: Floats, beta: float, kl_streams: KLStreams) -> Problem:
        """The empirical problem: every sample has mass 1/n."""
        mass = np.full(self.reward.shape, -np.log(self.reward.shape[1]))
        return Problem(mass, self.reward, self.cost, limit, beta, kl_streams)


@dataclass(frozen=True, eq=False)
class OneShot:
    """An estimate of λ* and how far it can be trusted."""

    multipliers: Floats  # [K] λ̂ ≥ 0
    low: Floats  # [K] ends of the interval over prompts; inf where a resample is infeasible
    high: Floats  # [K]
    effective: Floats  # [X] ESS of each prompt's n samples at λ̂
    reward: float  # E_w[R], expected of the optimum
    cost: Floats  # [K] E_w[t(C)]
    kl: float  # KL(π̂* ‖ π_ref), nats
    start_cost: Floats  # [K] mean of t(C) over the samples as they are

    @property
    def per_prompt(self) -> float:
        """Harmonic mean of the prompts' effective sample sizes."""
        return float(1 / np.mean(1 / self.effective))

    @property
    def total(self) -> float:
        """Effective sample size of all prompts together: X² / Σ 1/ESS_x."""
        return len(self.effective) * self.per_prompt


def effective_sizes(log_weight: Floats) -> Floats:  # [X, n] -> [X]
    """1 / Σ w² of weights that sum to 1 in each row (Kish)."""
    sizes: Floats = np.exp(-logsumexp(2 * log_weight, axis=1))
    return sizes


def estimate(problem: Problem, resamples: int = 200, seed: int = 0) -> OneShot:
    """λ̂ of an empirical problem, with an interval over resampled prompts. It may be untrustworthy.

    Raises:
        InputError: fewer than two prompts, or no reweighting of the samples meets the limits.
    """
    prompts = len(problem.reward)
    if prompts < 2:
        raise InputError(f"found {prompts} prompt; the interval is over prompts, give at least 2")
    found = solve(problem)
    if isinstance(found, Infeasible):
        raise InputError(_infeasible(problem, found))
    rng = np.random.default_rng(seed)
    drawn = [_resampled(problem, rng) for _ in range(resamples)]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0, method="nearest")
    return OneShot(
        multipliers=found.multipliers,
        low=low,
        high=high,
        effective=effective_sizes(found.log_policy),
        reward=found.reward,
        cost=found.cost,
        kl=found.kl,
        start_cost=problem.mean_cost(problem.log_reference),
    )


def require_trust(found: OneShot, samples: int, least: float = LEAST_EFFECTIVE) -> None:
    """`InputError` where too few samples carry the weight, saying what would help."""
    if found.per_prompt >= least:
        return
    worst = int(np.argmin(found.effective))
    raise InputError(
        f"the effective sample size is {found.per_prompt:.1f} of {samples} responses per prompt "
        f"(the least, of prompt {worst}: {found.effective[worst]:.1f}), expected at least "
        f"{least:g}: a few responses carry all weight, so λ = "
        f"{_numbers(found.multipliers)} cannot be trusted. The optimum is {found.kl:.1f} nats from "
        "the reference; take more samples (--samples, it grows slowly), a larger "
        "align.ppo.kl_coefficient, or start λ at 0"
    )


def _resampled(problem: Problem, rng: np.random.Generator) -> Floats:
    """λ̂ [K] of prompts drawn with replacement; inf where they are infeasible."""
    prompts = len(problem.reward)
    count = np.bincount(rng.integers(prompts, size=prompts), minlength=prompts)
    kept = np.flatnonzero(count)
    part = replace(
        problem,
        log_reference=problem.log_reference[kept],
        reward=problem.reward[kept],
        cost=problem.cost[:, kept],
        weight=count[kept].astype(np.float64),
    )
    found = solve(part)
    if isinstance(found, Infeasible):
        return np.full(len(problem.limit), np.inf)
    return found.multipliers


def _infeasible(problem: Problem, found: Infeasible) -> str:
    start = problem.mean_cost(problem.log_reference)
    means = ", ".join(
        f"{float(least):.4g} (the samples' mean is {float(mean):.4g}, the limit {float(limit):g})"
        for least, mean, limit in zip(found.least_cost, start, problem.limit, strict=True)
    )
    return (
        f"no reweighting of the samples meets the limit under kl_streams={problem.kl_streams!r}: "
        f"the least E[t(C)] is {means}; raise the limit, or draw more samples, among which cheaper "
        "responses may be"
    )


def _numbers(values: Floats) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
