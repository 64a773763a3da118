"""Statistics of a few seeds: means and shares with intervals, and how well a limit was kept.

    mean:    x̄ ± t_{n−1, (1+level)/2} · s / √n    Student's t: exact for normal samples, close
                                                  for the hundreds of scores of a report
    share:   Wilson's score interval, or the exact one (Clopper-Pearson) where a claim rests on it
    IQM:     the mean of the middle half, with a bootstrap interval stratified by problem
             (Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice")

Deliberately absent: tests of significance; a reader compares intervals. How well limits were kept
(violation regret, time to feasibility) is in `feasibility`, upper bounds that certify a policy in
`safety_test`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
RESAMPLES = 2000
"""bootstrap samples of an interval, as in rliable's examples"""


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


def proportion_interval(
    count: int, n: int, level: float = 0.95, method: Literal["wilson", "exact"] = "wilson"
) -> Interval:
    """Share `count / n` with Wilson's score interval, or the exact one (Clopper & Pearson 1934).

    >>> proportion_interval(0, 10).low
    0.0
    """
    if not 0 <= count <= n or n == 0:
        raise ValueError(f"{count} of {n} is not a share; n must be at least 1 and hold count")
    from scipy import stats

    interval = stats.binomtest(count, n).proportion_ci(level, method=method)
    return Interval(count / n, float(interval.low), float(interval.high))


def share_within(values: ArrayLike, bound: float, level: float = 0.95) -> Interval:
    """Share of values ≤ `bound`, of feasible seeds say, with the exact (Clopper-Pearson) interval.

    >>> share_within([0.0, 0.01, 0.2], 0.05).value
    0.6666666666666666
    """
    sample = _sample(values, "values")
    return proportion_interval(int((sample <= bound).sum()), sample.size, level, "exact")


def iqm(
    values: ArrayLike,  # [n]
    strata: Sequence[Hashable] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interquartile mean: a quarter of the values cut at either end (`scipy.stats.trim_mean`).

    The percentile bootstrap draws seeds anew within each stratum (problem), as Agarwal et al.
    2021 do, §4.2: problems are given, seeds are chance. Unbounded where a stratum has one value.

    Args:
        values: one per run; of several problems only in comparable units, as regret is.
        strata: the problem of each value; default: all of one.
        level: of the interval.
        seed: of the bootstrap.

    >>> iqm([0.0, 1.0, 2.0, 99.0]).value
    1.5
    """
    from scipy import stats

    def middle(*samples: Floats, axis: int = -1) -> Floats:
        together: Floats = stats.trim_mean(np.concatenate(samples, axis=-1), 0.25, axis=axis)
        return together

    groups = _grouped(values, strata, "values")
    return _bootstrap(tuple(groups.values()), middle, level, seed)


def probability_of_improvement(
    first: ArrayLike,  # [n]
    second: ArrayLike,  # [m]
    strata: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """P(X > Y) + P(X = Y) / 2 of a run of `first` against one of `second`, mean over problems.

    Per problem it is the Mann-Whitney statistic U / (n m) (Agarwal et al. 2021, §4.3); the
    interval is `iqm`'s bootstrap. For values of which less is better exchange the two.

    Args:
        first: one value per run.
        second: one value per run of what it is compared with; not paired.
        strata: the problems of both; each must occur in both.
        level: of the interval.
        seed: of the bootstrap.

    >>> probability_of_improvement([3.0, 4.0], [1.0, 3.5]).value
    0.75
    """
    from scipy import stats

    ours = _grouped(first, strata and strata[0], "first")
    theirs = _grouped(second, strata and strata[1], "second")
    if ours.keys() != theirs.keys():
        alone = sorted(map(str, ours.keys() ^ theirs.keys()))
        raise ValueError(f"problems that only one side has: {', '.join(alone)}; leave them out")
    pairs = len(ours)

    def improvement(*samples: Floats, axis: int = -1) -> Floats:
        shares = [
            stats.mannwhitneyu(x, y, axis=axis, method="asymptotic").statistic
            / (x.shape[axis] * y.shape[axis])
            for x, y in zip(samples[:pairs], samples[pairs:], strict=True)
        ]
        mean: Floats = np.mean(shares, axis=0)
        return mean

    samples = (*ours.values(), *(theirs[problem] for problem in ours))
    found = _bootstrap(samples, improvement, level, seed)
    return Interval(found.value, max(found.low, 0.0), min(found.high, 1.0))  # one run: all of it


def _sample(values: ArrayLike, name: str) -> Floats:
    """A vector of finite numbers; `ValueError` naming the first that is none."""
    sample = np.asarray(values, dtype=np.float64).ravel()
    bad = np.flatnonzero(~np.isfinite(sample))
    if sample.size == 0 or bad.size:
        found = f"{name}[{bad[0]}] is {sample[bad[0]]}" if bad.size else f"{name} is empty"
        raise ValueError(f"{found}; give finite numbers, at least one")
    return sample


def _grouped(
    values: ArrayLike, strata: Sequence[Hashable] | None, name: str
) -> dict[Hashable, Floats]:
    """Values by stratum, in the order in which the strata appear."""
    sample = _sample(values, name)
    labels = ["all"] * sample.size if strata is None else list(strata)
    if len(labels) != sample.size:
        raise ValueError(f"{name} has {sample.size} values, but {len(labels)} strata")
    places: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        places.setdefault(label, []).append(i)
    return {label: sample[found] for label, found in places.items()}


def _bootstrap(
    samples: tuple[Floats, ...], statistic: Callable[..., Floats], level: float, seed: int
) -> Interval:
    """Percentile bootstrap of a statistic of several samples, each drawn anew on its own."""
    value = float(statistic(*samples))
    if min(sample.size for sample in samples) == 1:
        return Interval(value, -math.inf, math.inf)
    from scipy import stats

    found = stats.bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        vectorized=True,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high))
