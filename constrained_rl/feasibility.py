"""How well were limits kept? Violation, its regret over training, time to feasibility, regret.

A violation is relative, (J − limit)⁺ / |limit|, the worst over the constraints: costs of different
units can be compared and averaged. Pure functions of arrays.

Letters: T iterations, K constraints.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
TOLERANCE = 0.05
"""relative violation up to which a noisy cost at its limit counts as kept"""
ROUNDING = 1e-6
"""share of |limit| by which a cost may miss its limit and meets it all the same: sums of float32
costs are exact to 6e-8 of themselves, and three times 0.1 is above 0.3 in float64 too"""

CANCELLED = 1e-13
"""share of the costs themselves that rounding may leave where they add up to a limit of 0"""


def kept(cost: float, limit: float) -> bool:
    """Whether cost ≤ limit, up to what rounding makes of a cost that meets it exactly.

    >>> 0.1 + 0.1 + 0.1 <= 0.3, kept(0.1 + 0.1 + 0.1, 0.3)
    (False, True)
    """
    return bool(cost - limit <= ROUNDING * abs(limit))


def violation(cost: ArrayLike, limit: ArrayLike) -> float:
    """Relative violation max_k (J_k − limit_k)⁺ / |limit_k|; a limit of 0 counts in units of cost.

    >>> violation([6.0, 1.0], [4.0, 2.0])
    0.5
    """
    return float(_relative(np.asarray(cost)[None], limit).max(initial=0.0))


def violation_regret(cost: ArrayLike, limit: ArrayLike) -> float:
    """Mean `violation` over training, 1/T Σ_t max_k (J_tk − limit_k)⁺ / |limit_k|.

    Iterations in which no episode finished (NaN) are left out.

    Args:
        cost: estimates over training, [T] or [T, K].
        limit: one, or [K].

    >>> violation_regret([6.0, 4.0, 2.0], 4.0)    # (.5 + 0 + 0) / 3
    0.16666666666666666
    """
    worst = _worst(cost, limit)
    return float(worst[np.isfinite(worst)].mean())


def time_to_feasibility(
    cost: ArrayLike,  # [T] or [T, K]
    limit: ArrayLike,
    times: ArrayLike | None = None,  # [T]
    window: int | None = None,
    tolerance: float = TOLERANCE,
) -> float | None:
    """First time from which every limit is kept for the rest, or for `window` iterations on end.

    Kept means `violation` ≤ `tolerance`. None: never, as far as the run went (censored). A cost
    of NaN says nothing and keeps the state it is found in.

    Args:
        cost: estimates over training.
        limit: one, or [K].
        times: iterations or steps of the rows; default: 1 … T.
        window: rows for which the limits must be kept; default: all that are left.
        tolerance: in units of |limit|.

    >>> time_to_feasibility([9.0, 4.0, 6.0, 4.1, 3.0], limit=4.0)
    4.0
    >>> time_to_feasibility([9.0, 4.0, 6.0, 4.1, 3.0], limit=4.0, window=1)
    2.0
    """
    worst = _worst(cost, limit)
    known = np.flatnonzero(np.isfinite(worst))
    kept = worst[known] <= tolerance
    clock = np.arange(1.0, len(worst) + 1) if times is None else np.asarray(times, np.float64)
    if len(clock) != len(worst):
        raise ValueError(f"{len(clock)} times for {len(worst)} rows; give one for each")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; give at least 1")
    if window is None:
        first = 0 if kept.all() else len(kept) - int(np.argmin(kept[::-1]))
    else:
        runs = np.convolve(kept, np.ones(window, dtype=np.int64))[window - 1 : len(kept)]
        first = int(np.argmax(runs == window)) if (runs == window).any() else len(kept)
    return float(clock[known[first]]) if first < len(kept) else None


def regret(
    value: float,
    cost: ArrayLike,  # [K]
    limit: ArrayLike,  # [K]
    optimal_value: float,
    multipliers: ArrayLike,  # [K]
    baseline: float,
) -> float:
    """[(J_R* − J_R)⁺ + Σ_k λ*_k (J_Ck − limit_k)⁺] / |J_R* − J_R(baseline)|.

    λ* prices a violation at what it gains, so neither side of the constraint is a free lunch.

    >>> regret(9.0, [5.0], [4.0], optimal_value=10.0, multipliers=[0.5], baseline=4.0)
    0.25
    """
    span = abs(optimal_value - baseline)
    if span == 0:
        raise ValueError(f"the baseline is as good as the optimum, {optimal_value}: no regret")
    excess = np.maximum(np.asarray(cost, np.float64) - np.asarray(limit, np.float64), 0.0)
    return float((max(optimal_value - value, 0.0) + np.asarray(multipliers) @ excess) / span)


def _relative(cost: ArrayLike, limit: ArrayLike) -> Floats:
    """(J − limit)⁺ / |limit|, [T, K]."""
    costs, limits = np.asarray(cost, np.float64), np.atleast_1d(np.asarray(limit, np.float64))
    rows = costs.reshape(len(costs), -1)
    if rows.shape[1] != len(limits):
        raise ValueError(f"{rows.shape[1]} costs against {len(limits)} limits; give one for each")
    unit = np.where(limits == 0, 1.0, np.abs(limits))
    relative: Floats = np.maximum(rows - limits, 0.0) / unit
    return relative


def _worst(cost: ArrayLike, limit: ArrayLike) -> Floats:
    """The largest relative violation of each iteration [T]; NaN where a cost is."""
    worst: Floats = _relative(cost, limit).max(axis=1)
    if not np.isfinite(worst).any():
        raise ValueError("no iteration has a cost; no episode finished")
    return worst
