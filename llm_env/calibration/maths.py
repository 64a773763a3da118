"""Is a cost model right about harm, and what does a limit on it mean? The formulas.

    calibration       P(label unsafe | C) = σ(a C + b)                 Platt 1999; Lin et al. 2007
    label noise       A = (1 − ε)² + ε²                 A: two annotators agree; ε: one is wrong
    tilting           π ∝ π_ref exp(−λ t(C))    with λ such that       E_π[t(C)] = limit
    Rogan–Gladen      s = p · sensitivity + (1 − p)(1 − specificity)   1978, p the true share

Label noise is Rogan–Gladen again, with sensitivity and specificity 1 − ε, for every C by itself.
Of all policies that meet E[t(C)] = limit the tilted one is closest in KL to π_ref; for samples of
π_ref it is a set of weights. It keeps P(unsafe | C), as a policy does that reacts to C alone;
Rogan–Gladen keeps P(C | unsafe) instead. Absent: any reward. A policy that is paid by a reward also
looks for the places where the cost model is wrong, and no formula here knows them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit
from scipy.stats import rankdata

from constrained_rl.statistics import Interval, proportion_interval

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Form = Literal["identity", "probability", "indicator"]
"""what is bounded, at threshold 0; limits on other quantities are not proposed"""

STEEPEST = 1e4
"""largest |λ|, in units of 1 / (max t − min t): beyond it all weight lies on one end"""


@dataclass(frozen=True)
class Platt:
    """P(label unsafe | C) = σ(slope · C + intercept), and how often a label is wrong."""

    slope: float
    intercept: float
    noise: float = 0.0  # ε in [0, ½): chance that a label contradicts what most annotators say

    def labelled(self, cost: Floats) -> Floats:
        """Chance [n] that a response of that cost is labelled unsafe."""
        found: Floats = expit(self.slope * cost + self.intercept)
        return found

    def harmful(self, cost: Floats) -> Floats:
        """Chance [n] that most annotators call it unsafe: (p − ε) / (1 − 2ε), held in [0, 1]."""
        found: Floats = np.clip((self.labelled(cost) - self.noise) / (1 - 2 * self.noise), 0, 1)
        return found

    @property
    def boundary(self) -> float:
        """Cost at which unsafe is as likely as safe: −b / a; 0 where the sign is right."""
        return -self.intercept / self.slope


@dataclass(frozen=True)
class Bin:
    """Responses of similar predicted probability."""

    n: int
    predicted: float  # mean predicted probability
    cost: float  # mean C
    unsafe: Interval  # share that is unsafe


def fit_platt(cost: Floats, unsafe: Bools) -> Platt:
    """Maximum likelihood of σ(aC + b) against Platt's smoothed labels.

    A response labelled unsafe counts as (N₊ + 1)/(N₊ + 2), a safe one as 1/(N₋ + 2): the
    fit stays finite where a threshold separates the labels.
    """
    positives = int(unsafe.sum())
    negatives = len(unsafe) - positives
    target = np.where(unsafe, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    center, scale = cost.mean(), cost.std() or 1.0
    z = (cost - center) / scale

    def loss(w: Floats) -> tuple[float, Floats]:
        # −Σ [t log σ(f) + (1 − t) log (1 − σ(f))] / n = Σ [log(1 + e^f) − t f] / n
        f = w[0] * z + w[1]
        gap = (expit(f) - target) / len(z)
        return float(np.mean(np.logaddexp(0, f) - target * f)), np.array([gap @ z, gap.sum()])

    start = np.array([1.0, logit(target.mean())])
    a, b = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return Platt(float(a / scale), float(b - a * center / scale))


def label_noise(agreement: float) -> float:
    """ε from the share of responses on which two annotators agree: (1 − √(2A − 1)) / 2.

    Raises:
        ValueError: unless ½ < A ≤ 1; labels that agree by chance say nothing.
    """
    if not 0.5 < agreement <= 1:
        raise ValueError(
            f"agreement {agreement} leaves no information; expected above ½, at most 1"
        )
    return (1 - math.sqrt(2 * agreement - 1)) / 2


def reliability(predicted: Floats, cost: Floats, unsafe: Bools, bins: int = 10) -> list[Bin]:
    """Bins of equal count by predicted probability, each with the share that is unsafe (Wilson)."""
    order = np.argsort(predicted, kind="stable")
    return [
        Bin(
            n=len(part),
            predicted=float(predicted[part].mean()),
            cost=float(cost[part].mean()),
            unsafe=proportion_interval(int(unsafe[part].sum()), len(part)),
        )
        for part in np.array_split(order, min(bins, len(order)))
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: Σ_b n_b |predicted_b − unsafe_b| / Σ_b n_b (Naeini 2015)."""
    total = sum(b.n for b in bins)
    return sum(b.n * abs(b.predicted - b.unsafe.value) for b in bins) / total


def area_under_curve(cost: Floats, unsafe: Bools) -> float:
    """Chance that an unsafe response costs more than a safe one, ties half (Mann–Whitney)."""
    positives = int(unsafe.sum())
    negatives = len(unsafe) - positives
    # AUC = (R₊ − N₊ (N₊ + 1) / 2) / (N₊ N₋), R₊ the sum of the unsafe responses' mid-ranks
    ranks = float(rankdata(cost)[unsafe].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def transform(cost: Floats, kind: Form) -> Floats:
    """What is bounded, t(C) [n]: C, σ(C) or 1[C > 0]; `transforms.transform_cost` in NumPy."""
    match kind:
        case "identity":
            return cost
        case "probability":
            found: Floats = expit(cost)
            return found
        case "indicator":
            return (cost > 0).astype(np.float64)


def tilt(t: Floats, lam: float) -> Floats:
    """Weights [n] ∝ exp(−λ t), summing to 1."""
    exponent = -lam * t
    weight = np.exp(exponent - exponent.max())
    tilted: Floats = weight / weight.sum()
    return tilted


def tilt_to(t: Floats, limit: float) -> Floats:
    """Tilted weights [n] under which the mean of t is `limit`.

    λ < 0 where the samples' own mean is below the limit: the policy has moved up to it.

    Raises:
        ValueError: where the limit lies outside the values of t.
    """
    low, high = float(t.min()), float(t.max())
    if not low <= limit <= high:
        raise ValueError(f"no weights give a mean of {limit}: the values span {low} … {high}")
    if limit in (low, high):
        at: Floats = (t == limit) / np.count_nonzero(t == limit)
        return at
    return tilt(t, _solve(t, lambda weight: float(weight @ t), limit))


def effective_size(weight: Floats) -> float:
    """Number of equally weighted samples that would say as much: 1 / Σ w² (Kish)."""
    return float(1 / np.square(weight).sum())


def limit_by_tilting(t: Floats, probability: Floats, target: float) -> float | None:
    """Limit on E[t] at which the tilted policy's expected unsafe share is `target`.

    Args:
        t: transformed costs [n] of the starting model.
        probability: that each of its responses is unsafe [n]; rises with t.
        target: share of unsafe responses, in (0, 1).

    Returns:
        The limit; None where no tilting reaches the target.
    """
    low, high = float(probability[t == t.min()].mean()), float(probability[t == t.max()].mean())
    if not low < target < high:
        return None
    lam = _solve(t, lambda weight: float(weight @ probability), target)
    return float(tilt(t, lam) @ t)


def shift_to(cost: Floats, platt: Platt, target: float) -> float:
    """δ by which all costs must fall alike for the expected unsafe share to be `target`.

    E[P(harmful | C − δ)] = target; the limit on E[t(C)] is then the mean of t(C − δ).
    """

    def excess(shift: float) -> float:
        return float(platt.harmful(cost - shift).mean()) - target

    # at both ends every response is on the same side of the cost that is as bad as the target
    labelled = apparent_share(target, 1 - platt.noise, 1 - platt.noise)
    edge = float((logit(labelled) - platt.intercept) / platt.slope)
    low, high = float(cost.min()) - edge - 1, float(cost.max()) - edge + 1
    return float(brentq(excess, low, high, xtol=1e-12))


def apparent_share(true: float, sensitivity: float, specificity: float) -> float:
    """Share called unsafe when a share `true` is: p · sens + (1 − p)(1 − spec)."""
    return true * sensitivity + (1 - true) * (1 - specificity)


def rogan_gladen(apparent: float, sensitivity: float, specificity: float) -> float:
    """True share behind an apparent one: (s + spec − 1) / (sens + spec − 1), held in [0, 1].

    Raises:
        ValueError: where the test says nothing (sens + spec ≤ 1).
    """
    informed = sensitivity + specificity - 1
    if informed <= 0:
        raise ValueError(
            f"sensitivity {sensitivity:g} + specificity {specificity:g} ≤ 1: no true share follows"
        )
    return min(1.0, max(0.0, (apparent + specificity - 1) / informed))


def _solve(t: Floats, value: Callable[[Floats], float], goal: float) -> float:
    """λ at which `value` of the tilted weights, falling in λ, is `goal`; |λ| is bounded."""
    unit = 1 / float(t.max() - t.min())

    def excess(lam: float) -> float:
        return value(tilt(t, lam)) - goal

    sign = 1.0 if excess(0.0) > 0 else -1.0
    inner, outer = 0.0, 4 * unit
    while sign * excess(sign * outer) > 0:
        inner, outer = outer, 2 * outer
        if outer > STEEPEST * unit:
            return sign * outer
    return float(brentq(excess, sign * inner, sign * outer, xtol=1e-10 * unit))
