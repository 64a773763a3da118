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
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq, linprog, minimize

from llm_env.enumerable.problem import Floats, Problem

MARCH = 1e-4
"""smallest step in u ∈ [0, 1] of the search for the first root: two roots closer than this may be
taken for none"""


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
        lam = _least_dual(problem) if _has_interior(problem) else None
        if lam is None:
            return Infeasible(problem.cost.min(-1, where=_possible(problem), initial=np.inf)
                              @ problem.prompt_weight)  # fmt: skip
    else:
        lam = _first_root(problem)
        if lam is None:
            return Infeasible(_least_on_path(problem))
    return _optimum(problem, lam)


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
    points = []
    for lam in multipliers:
        log_policy, _ = problem.tilt(lam)
        points.append(
            Point(
                lam,
                problem.mean_reward(log_policy),
                problem.mean_cost(log_policy),
                problem.kl(log_policy, problem.log_reference),
            )
        )
    return points


def _optimum(problem: Problem, lam: Floats) -> Optimum:
    (point,) = frontier(problem, [lam])
    log_policy, _ = problem.tilt(lam)
    return Optimum(
        multipliers=lam,
        log_policy=log_policy,
        reward=point.reward,
        cost=point.cost,
        kl=point.kl,
        objective=problem.lagrangian(log_policy, lam),
        reference_objective=problem.lagrangian(problem.log_reference, lam),
    )


def _possible(problem: Problem) -> np.ndarray:
    return np.isfinite(problem.log_reference)


def _has_interior(problem: Problem) -> bool:
    """Whether some policy is strictly below all limits: else no finite λ* exists.

    One constraint: the cheapest response to each prompt. Several: the smallest s such that a
    mixture of responses has E[C_k] − limit_k ≤ s for all k, a linear program.
    """
    possible = _possible(problem)
    cheapest = problem.cost.min(-1, where=possible, initial=np.inf) @ problem.prompt_weight
    if len(problem.limit) < 2 or (cheapest >= problem.limit).any():
        return bool((cheapest < problem.limit).all())
    prompt, _ = np.nonzero(possible)
    paid = problem.cost[:, possible] * problem.prompt_weight[prompt]
    ones = np.ones((len(problem.limit), 1))
    mass = (prompt == np.arange(len(problem.reward))[:, None]).astype(float)
    found = linprog(
        np.append(np.zeros(len(prompt)), 1.0),
        A_ub=np.hstack([paid, -ones]),
        b_ub=problem.limit,
        A_eq=np.hstack([mass, np.zeros((len(mass), 1))]),
        b_eq=np.ones(len(mass)),
        bounds=[(0, None)] * len(prompt) + [(None, None)],
    )
    return bool(found.fun < 0)


def _least_dual(problem: Problem) -> Floats:
    """argmin g over λ ≥ 0: L-BFGS-B in units in which λ and g are of order one."""
    weights = np.exp(problem.log_reference) * problem.prompt_weight[:, None]
    price = problem.beta / np.sqrt([_variance(weights, cost) or 1.0 for cost in problem.cost])

    def scaled(z: Floats) -> tuple[float, Floats]:
        value, gradient = problem.dual(z * price)
        return value / problem.beta, gradient * price / problem.beta

    found = minimize(
        scaled,
        np.zeros(len(price)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * len(price),
        options={"ftol": 0.0, "gtol": 1e-10, "maxiter": 10_000, "maxfun": 100_000},
    )
    lam: Floats = found.x * price
    return lam


def _variance(weights: Floats, values: Floats) -> float:
    return float((weights * (values - (weights * values).sum()) ** 2).sum())


def _on_path(problem: Problem, u: float) -> Floats:
    """E[C] [1] at u = λ / (1 + λ), the end u = 1 included."""
    beta = problem.beta / (2 if problem.kl_streams == "paper" else 1)
    blend = replace(
        problem, reward=(1 - u) * problem.reward - u * problem.cost[0], beta=beta,
        kl_streams="reward",
    )  # fmt: skip
    log_policy, _ = blend.tilt(np.zeros(1))
    return problem.mean_cost(log_policy)


def _steepest(problem: Problem) -> float:
    """A bound on |dE[C]/du| = |Cov(C, R + C)| / β ≤ E_x[range C · range (R + C)] / 4β."""
    possible = _possible(problem)

    def span(table: Floats) -> Floats:
        high = table.max(-1, where=possible, initial=-np.inf)
        low = table.min(-1, where=possible, initial=np.inf)
        width: Floats = high - low
        return width

    cost = problem.cost[0]
    product = span(cost) * span(problem.reward + cost)
    beta = problem.beta / (2 if problem.kl_streams == "paper" else 1)
    return float(problem.prompt_weight @ product) / (4 * beta)


def _first_root(problem: Problem) -> Floats | None:
    """The smallest λ ≥ 0 with E_πλ[C] ≤ limit; None if there is none.

    A function of slope at most s that is f > 0 above its limit cannot meet it within f / s: steps
    of that length skip no root, and steps of at least `MARCH` come to an end.
    """
    steepest = _steepest(problem)

    def excess(u: float) -> float:
        return float(_on_path(problem, u)[0] - problem.limit[0])

    u, f = 0.0, excess(0.0)
    if f <= 0:
        return np.zeros(1)
    while u < 1:
        before = u
        u = min(1.0, u + max(MARCH, f / steepest))
        f = excess(u)
        if f <= 0:
            root = brentq(excess, before, u, xtol=1e-15, rtol=1e-14)
            return np.array([root / (1 - root)]) if root < 1 else None
    return None


def _least_on_path(problem: Problem) -> Floats:
    """The lowest E[C] [1] that any λ reaches, on a grid of u."""
    grid = np.linspace(0, 1, 1001)
    return np.array([min(float(_on_path(problem, u)[0]) for u in grid)])
