"""One-sided upper confidence bounds of a mean: P(E[C] ≤ U) ≥ 1 − δ, from independent samples.

Pure functions over the last axis, [..., n] → [...], so that a simulation can try thousands of
samples at once. What a sample must be like, and several constraints at once: `safety_test`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def student_t_bound(costs: Floats, delta: float) -> Floats:
    """U = x̄ + t_{1−δ, n−1} s / √n over the last axis, [..., n] → [...].

    Student 1908; the test of HC-RLHF (Chittepu et al. 2025, arXiv 2506.08266) and of Seldonian
    algorithms (Thomas et al. 2019). Exact for normal costs, asymptotic for others: it is too low
    where rare large costs are missing from the sample.

    >>> student_t_bound(np.array([1.0, 2.0, 3.0]), 0.05).round(4)    # 2 + 2.91999 / √3
    np.float64(3.6859)
    """
    from scipy import stats  # half a second, which not every command needs to wait for

    n = costs.shape[-1]
    quantile = float(stats.t.ppf(1 - delta, n - 1))
    upper: Floats = costs.mean(-1) + quantile * costs.std(-1, ddof=1) / math.sqrt(n)
    return upper


def hoeffding_bound(costs: Floats, delta: float, low: float, high: float) -> Floats:
    """U = x̄ + (b − a) √(ln(1/δ) / 2n) over the last axis, for costs in [a, b].

    Hoeffding 1963, theorem 2; never above b.

    >>> hoeffding_bound(np.zeros(50), 0.05, 0.0, 1.0).round(4)    # √(2.99573 / 100)
    np.float64(0.1731)
    """
    n = costs.shape[-1]
    upper: Floats = costs.mean(-1) + (high - low) * math.sqrt(math.log(1 / delta) / (2 * n))
    bound: Floats = np.minimum(upper, high)
    return bound


def bernstein_bound(costs: Floats, delta: float, low: float, high: float) -> Floats:
    """U = x̄ + √(2 s² ln(2/δ) / n) + 7 (b − a) ln(2/δ) / (3 (n − 1)), for costs in [a, b].

    The empirical Bernstein bound of Maurer & Pontil 2009, theorem 4, over the last axis; never
    above b. Tighter than Hoeffding's where the spread is small against b − a and n is large.

    >>> bernstein_bound(np.zeros(101), 0.05, 0.0, 1.0).round(4)    # 7 · 3.68888 / 300
    np.float64(0.0861)
    """
    n, log = costs.shape[-1], math.log(2 / delta)
    spread = np.sqrt(2 * costs.var(-1, ddof=1) * log / n)
    upper: Floats = costs.mean(-1) + spread + 7 * (high - low) * log / (3 * (n - 1))
    bound: Floats = np.minimum(upper, high)
    return bound


def clopper_pearson_bound(costs: Floats, delta: float) -> Floats:
    """U of P(C > 0): the 1 − δ quantile of Beta(k + 1, n − k), k = #{C > 0}; 1 where k = n.

    Clopper & Pearson 1934, one-sided, over the last axis. At k = 0 it is 1 − δ^{1/n} ≈ 3/n.

    >>> clopper_pearson_bound(np.zeros(59), 0.05).round(4)    # 1 − .05^(1/59)
    np.float64(0.0495)
    """
    from scipy import stats

    n, k = costs.shape[-1], (costs > 0).sum(-1)
    counts, place = np.unique(k, return_inverse=True)  # few, where many samples are tried
    bounds = stats.beta.ppf(1 - delta, counts + 1, np.maximum(n - counts, 1))
    upper: Floats = np.where(counts == n, 1.0, bounds)[place.reshape(k.shape)]
    return upper
