"""At which price λ ≥ 0 does the best response to it meet the limits?

    "reward"          argmin g(λ): convex, ∂g/∂λ_k = limit_k − E_πλ[C_k]
    "both", "paper"   the smallest λ with E_πλ[C] ≤ limit, on the path u = λ / (1 + λ) ∈ [0, 1)

On the path the exponent is ((1 − u) R − u C) / β: dE[C]/du = −Cov(C, R + C) / β has any sign.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq, linprog, minimize
from scipy.special import softmax

from llm_env.enumerable.problem import Floats, Problem

MARCH = 1e-4
"""smallest step in u of the search for the first root: E[C] below the limit on a stretch shorter
than this may be passed over"""


def least_dual(problem: Problem) -> Floats | None:
    """Argmin g over λ ≥ 0 [K], L-BFGS-B in units in which λ and g are of order one.

    None where no policy is strictly below all limits: g then has no minimum.
    """
    if not _has_interior(problem):
        return None
    mass = np.exp(problem.log_reference) * problem.prompt_weight[:, None]
    spread = [float(np.sqrt((mass * (c - (mass * c).sum()) ** 2).sum())) for c in problem.cost]
    price = problem.beta / np.array([value or 1.0 for value in spread])

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


def _has_interior(problem: Problem) -> bool:
    """Whether some policy is strictly below all limits.

    One constraint: the cheapest response to each prompt. Several: the smallest s such that some
    mixture of responses has E[C_k] − limit_k ≤ s for all k, a linear program.
    """
    if len(problem.limit) < 2 or (problem.least_cost >= problem.limit).any():
        return bool((problem.least_cost < problem.limit).all())
    prompt, response = np.nonzero(np.isfinite(problem.log_reference))
    paid = problem.cost[:, prompt, response] * problem.prompt_weight[prompt]
    mass = (prompt == np.arange(len(problem.reward))[:, None]).astype(float)
    found = linprog(
        np.append(np.zeros(len(prompt)), 1.0),
        A_ub=np.hstack([paid, -np.ones((len(paid), 1))]),
        b_ub=problem.limit,
        A_eq=np.hstack([mass, np.zeros((len(mass), 1))]),
        b_eq=np.ones(len(mass)),
        bounds=[(0, None)] * len(prompt) + [(None, None)],
    )
    return bool(found.fun < 0)


def cost_on_path(problem: Problem, u: float) -> float:
    """E[C] at u = λ / (1 + λ), the end u = 1 included."""
    score = ((1 - u) * problem.reward - u * problem.cost[0]) / _own_beta(problem)
    policy = softmax(problem.log_reference + score, axis=1)
    return float(problem.prompt_weight @ (policy * problem.cost[0]).sum(1))


def first_root(problem: Problem) -> Floats | None:
    """The smallest λ ≥ 0 [1] with E_πλ[C] ≤ limit; None if there is none.

    A function of slope at most s that is f above its limit cannot meet it within f / s: steps of
    that length skip no root, and steps of at least `MARCH` come to an end.
    """
    steepest = _steepest(problem)

    def excess(u: float) -> float:
        return cost_on_path(problem, u) - float(problem.limit[0])

    u, f = 0.0, excess(0.0)
    if f <= 0:
        return np.zeros(1)
    while u < 1:
        before = u
        u = min(1.0, u + max(MARCH, f / steepest))
        f = excess(u)
        if f <= 0:
            root = float(brentq(excess, before, u, xtol=1e-15, rtol=1e-14))
            return np.array([root / (1 - root)]) if root < 1 else None
    return None


def least_on_path(problem: Problem) -> Floats:
    """The lowest E[C] [1] that any λ reaches, on a grid of u."""
    return np.array([min(cost_on_path(problem, u) for u in np.linspace(0, 1, 1001))])


def _steepest(problem: Problem) -> float:
    """A bound on |dE[C]/du| = |Cov(C, R + C)| / β ≤ E_x[range C · range (R + C)] / 4β."""
    cost = problem.cost[0]
    product = _ranges(problem, cost) * _ranges(problem, problem.reward + cost)
    return float(problem.prompt_weight @ product) / (4 * _own_beta(problem)) or 1.0


def _ranges(problem: Problem, table: Floats) -> Floats:  # [X, Y] -> [X]
    possible = np.isfinite(problem.log_reference)
    high = table.max(-1, where=possible, initial=-np.inf)
    low = table.min(-1, where=possible, initial=np.inf)
    width: Floats = high - low
    return width


def _own_beta(problem: Problem) -> float:
    """β′ / (1 + λ)."""
    return problem.kl_weight(np.zeros(1))
