"""The best policy of a constrained RLHF problem and its price λ*, the frontier, and a policy's gap.

    "reward"  π* ∝ π_ref exp((R − Σ λ*_k C_k) / β),   λ* = argmin_{λ ≥ 0} g(λ), the convex dual
    "both"    π_λ ∝ π_ref exp((R − λC) / (β (1 + λ))),  λ* = smallest root of E_πλ[C] = limit
    "paper"   the same with β/2

"reward" is the problem as written; its dual is that of Huang et al. 2024 (one-shot safety
alignment, arXiv 2405.19544), with E over prompts outside the logarithm. "both" (Safe RLHF's
reference implementation) and "paper" (Dai et al. 2024, appendix) have no such problem: λ multiplies
the KL too while it is moved by the raw cost, so λ* is the fixed point of the training rule. With
u = λ / (1 + λ) their exponent is ((1 − u) R − u C) / β, so u ∈ [0, 1) holds all of it: at u → 1 the
reward counts nothing, E[C] need not fall monotonically, and limits below all of it are infeasible.

For every π:  L(π) = L(π*) − β′ KL(π ‖ π*),  which is how far a policy is from the optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_env.enumerable.prices import first_root, least_dual, least_on_path
from llm_env.enumerable.problem import Floats, Problem


@dataclass(frozen=True, eq=False)
class Optimum:
    """What is best."""

    multipliers: Floats  # [K] λ* ≥ 0
    log_policy: Floats  # [X, Y] log π*
    reward: float  # E[R]
    cost: Floats  # [K] E[C_k]
    kl: float  # KL(π* ‖ π_ref), nats
    objective: float  # L(π*)
    reference_objective: float  # L(π_ref)


@dataclass(frozen=True, eq=False)
class Infeasible:
    """No policy meets the limits; under "both" and "paper" no price makes π_λ meet them."""

    least_cost: Floats  # [K] the lowest E[C_k], each alone


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A policy, exactly."""

    reward: float  # E[R]
    cost: Floats  # [K] E[C_k]
    kl: float  # KL(π ‖ π_ref), nats
    kl_optimum: float  # KL(π ‖ π*), nats
    share: float  # of what the optimum gains over the reference, 1 at the optimum


@dataclass(frozen=True, eq=False)
class Point:
    """The best policy at a price."""

    multipliers: Floats  # [K]
    reward: float
    cost: Floats  # [K]
    kl: float


def solve(problem: Problem) -> Optimum | Infeasible:
    """The optimum, or what keeps it from existing."""
    if problem.kl_streams == "reward":
        lam = least_dual(problem)
        return Infeasible(problem.least_cost) if lam is None else _optimum(problem, lam)
    lam = first_root(problem)
    return Infeasible(least_on_path(problem)) if lam is None else _optimum(problem, lam)


def evaluate(problem: Problem, optimum: Optimum, log_policy: Floats) -> Evaluation:
    """Hold a policy log π [X, Y] against the optimum.

    share = 1 − β′ KL(π ‖ π*) / (L(π*) − L(π_ref))
    """
    distance = problem.kl(log_policy, optimum.log_policy)
    gain = optimum.objective - optimum.reference_objective
    return Evaluation(
        reward=problem.mean_reward(log_policy),
        cost=problem.mean_cost(log_policy),
        kl=problem.kl(log_policy, problem.log_reference),
        kl_optimum=distance,
        share=1 - problem.kl_weight(optimum.multipliers) * distance / gain,
    )


def frontier(problem: Problem, multipliers: Sequence[Floats]) -> list[Point]:
    """The best policies at given prices λ [K]: under "reward", the frontier of E[R] − β KL."""
    return [_point(problem, lam, problem.tilt(lam)[0]) for lam in multipliers]


def _point(problem: Problem, lam: Floats, log_policy: Floats) -> Point:
    return Point(
        lam,
        problem.mean_reward(log_policy),
        problem.mean_cost(log_policy),
        problem.kl(log_policy, problem.log_reference),
    )


def _optimum(problem: Problem, lam: Floats) -> Optimum:
    log_policy, _ = problem.tilt(lam)
    point = _point(problem, lam, log_policy)
    return Optimum(
        multipliers=lam,
        log_policy=log_policy,
        reward=point.reward,
        cost=point.cost,
        kl=point.kl,
        objective=problem.lagrangian(log_policy, lam),
        reference_objective=problem.lagrangian(problem.log_reference, lam),
    )
