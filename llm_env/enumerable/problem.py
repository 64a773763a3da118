"""Constrained, KL-regularised RLHF on a finite set of responses, and how good a policy is at it.

    max_π E[R] − β KL(π ‖ π_ref)   s.t.   E[C_k] ≤ limit_k,      E over prompts x and y ~ π(·|x)

The set is a whole enumerable language, or n samples of the reference with mass 1/n each (then all
that follows is importance weighting). Letters: X prompts, Y responses, K constraints. Absent:
constraints on each prompt alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from constrained_rl.advantages import KLStreams
from constrained_rl.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Problem:
    """What is maximised, what is bounded, and the reference."""

    log_reference: Floats  # [X, Y] log π_ref(y|x), each row sums to 1 in probability
    reward: Floats  # [X, Y]
    cost: Floats  # [K, X, Y], transformed where the constraint is on a transform
    limit: Floats  # [K], any sign
    beta: float  # β > 0
    kl_streams: KLStreams = "reward"  # which streams pay β·KL, see `advantages.charge_kl`
    weight: Floats | None = None  # [X] how often a prompt is asked; default: all alike

    def __post_init__(self) -> None:
        """Check everything once; the formulas trust it."""
        shape, constraints = self.log_reference.shape, len(self.limit)
        expected = {"reward": shape, "cost": (constraints, *shape), "weight": shape[:1]}
        object.__setattr__(self, "weight", self.prompt_weight)
        for name, wanted in expected.items():
            found = getattr(self, name)
            if found.shape != wanted:
                raise InputError(f"{name} has shape {found.shape}, expected {wanted}")
        for name in ("reward", "cost", "limit", "weight"):
            _require_finite(name, getattr(self, name))
        if not 0 < self.beta < float("inf"):
            raise InputError(f"beta is {self.beta}; the optimum needs a finite KL weight above 0")
        total = np.exp(logsumexp(self.log_reference, axis=1))
        if not np.allclose(total, 1, atol=1e-6):
            row = int(np.argmax(abs(total - 1)))
            raise InputError(
                f"the reference's probabilities of prompt {row} sum to {total[row]:.6f}, expected "
                "1: list every response, or give samples the mass 1/n"
            )
        if self.kl_streams != "reward" and constraints != 1:
            raise InputError(
                f"kl_streams is {self.kl_streams!r} and there are {constraints} constraints: the "
                "multipliers are the solution of an equation that one constraint determines; use "
                "kl_streams='reward', or one constraint"
            )

    @property
    def prompt_weight(self) -> Floats:
        """How often each prompt is asked [X], summing to 1."""
        prompts = len(self.log_reference)
        given = np.ones(prompts) if self.weight is None else self.weight
        weight: Floats = given / given.sum()
        return weight

    @property
    def least_cost(self) -> Floats:
        """The lowest E[C_k] of any policy, each alone [K]: the cheapest response to each prompt."""
        possible = np.isfinite(self.log_reference)
        least: Floats = self.cost.min(-1, where=possible, initial=np.inf) @ self.prompt_weight
        return least

    def kl_weight(self, lam: Floats) -> float:
        """β′, what the Lagrangian at λ charges for a nat of KL.

        "reward": β.  "both": each stream pays β·KL, (R − βKL) − λ (C + βKL): β (1 + Σλ).
        "paper": both at β/2: β/2 (1 + Σλ).
        """
        match self.kl_streams:
            case "reward":
                return self.beta
            case "both":
                return self.beta * (1 + float(lam.sum()))
            case "paper":
                return self.beta / 2 * (1 + float(lam.sum()))

    def tilt(self, lam: Floats) -> tuple[Floats, Floats]:
        """The best policy at prices λ, log π_λ [X, Y], and log Z_λ [X].

        π_λ ∝ π_ref exp((R − Σ λ_k C_k) / β′)
        """
        score = self.log_reference + self._lagrangian(lam) / self.kl_weight(lam)
        log_partition: Floats = logsumexp(score, axis=1)
        return score - log_partition[:, None], log_partition

    def dual(self, lam: Floats) -> tuple[float, Floats]:
        """g(λ) = E_x β log E_ref exp((R − Σ λ_k C_k)/β) + Σ λ_k limit_k, and its gradient [K].

        Convex, and ∂g/∂λ_k = limit_k − E_πλ[C_k]. Of kl_streams="reward" alone.
        """
        log_policy, log_partition = self.tilt(lam)
        value = self.beta * float(self.prompt_weight @ log_partition) + float(lam @ self.limit)
        return value, self.limit - self.mean_cost(log_policy)

    def mean_reward(self, log_policy: Floats) -> float:
        """E[R]."""
        return float(self._mean(log_policy, self.reward))

    def mean_cost(self, log_policy: Floats) -> Floats:  # [K]
        """E[C_k]."""
        return self._mean(log_policy, self.cost)

    def kl(self, log_policy: Floats, log_other: Floats) -> float:
        """E_x KL(π ‖ other) in nats."""
        possible = log_policy > -np.inf  # 0 log 0 = 0
        difference = np.where(possible, log_policy, 0) - np.where(possible, log_other, 0)
        return float(self._mean(log_policy, difference))

    def lagrangian(self, log_policy: Floats, lam: Floats) -> float:
        """L = E[R] − Σ λ_k (E[C_k] − limit_k) − β′ KL(π ‖ π_ref)."""
        paid = self._mean(log_policy, self._lagrangian(lam)) + lam @ self.limit
        return float(paid - self.kl_weight(lam) * self.kl(log_policy, self.log_reference))

    def _lagrangian(self, lam: Floats) -> Floats:  # [X, Y]
        priced: Floats = self.reward - np.tensordot(lam, self.cost, 1)
        return priced

    def _mean(self, log_policy: Floats, table: Floats) -> Floats:  # [..., X, Y] -> [...]
        mean: Floats = (np.exp(log_policy) * table).sum(-1) @ self.prompt_weight
        return mean


def _require_finite(name: str, values: Floats) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(f"{name}{list(place)} is {values[place]}, expected finite numbers")
