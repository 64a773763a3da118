"""Intervals of a mean and of a share: what every table and bar of a report shows.

    mean:   x̄ ± t_{n−1, (1+level)/2} · s / √n     Student's t: exact for normal samples, close
                                                  for the hundreds of scores of a report
    share:  Wilson's score interval               stays in [0, 1] and has a width at 0 of n

Deliberately absent: tests of significance; a reader compares intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval."""

    value: float
    low: float
    high: float

    def excludes(self, number: float) -> bool:
        """Whether `number` lies outside the interval."""
        return number < self.low or number > self.high


def mean_interval(values: Sequence[float] | NDArray[np.float64], level: float = 0.95) -> Interval:
    """Mean with Student's t interval; one value alone has an unbounded one.

    >>> mean_interval([1.0, 2.0, 3.0]).value
    2.0
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("the mean of no values has no interval; leave the group out")
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, -math.inf, math.inf)
    from scipy import stats  # half a second, which not every command needs to wait for

    # x̄ ± t_{n−1, (1+level)/2} · s / √n
    quantile = float(stats.t.ppf((1 + level) / 2, sample.size - 1))
    half = quantile * float(sample.std(ddof=1)) / math.sqrt(sample.size)
    return Interval(mean, mean - half, mean + half)


def proportion_interval(count: int, n: int, level: float = 0.95) -> Interval:
    """Share `count / n` with Wilson's score interval.

    >>> proportion_interval(0, 10).low
    0.0
    """
    if not 0 <= count <= n or n == 0:
        raise ValueError(f"{count} of {n} is not a share; n must be at least 1 and hold count")
    from scipy import stats

    interval = stats.binomtest(count, n).proportion_ci(level, method="wilson")
    return Interval(count / n, float(interval.low), float(interval.high))
