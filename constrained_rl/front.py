"""What does every limit cost? The exact Pareto front of reward against one cost of a finite CMDP.

The best value as a function of limit k, the others held, is concave and piecewise linear; its slope
is the price λ*_k. Corners are found by pricing: between two known points the Lagrangian at their
chord's slope has an optimum above the chord, or the chord is an edge (Cohon 1978,
*Multiobjective Programming and Planning*, ch. 6.3). Absent: fronts of two costs or more at once.

Letters: K constraints, P corners.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from constrained_rl.errors import InputError
from constrained_rl.finite import DISCOUNTED, Criterion, FiniteCMDP, Floats
from constrained_rl.programs import Program, maximize, program

_CLOSE = 1e-8  # of the front's extent: corners closer than this are one, less height is none
_ROUNDING = 1e-10  # of a bound that an optimum has to reach: HiGHS' own tolerance


@dataclass(frozen=True, eq=False)
class Front:
    """Corners of the front, from the least cost to where the limit stops binding.

    Below the first limit no policy is feasible; beyond the last, the value no longer rises.
    """

    limit: Floats  # [P], rising
    value: Floats  # [P], rising
    price: Floats  # [P − 1], > 0 and falling: the slope between neighbours

    def value_at(self, limit: float) -> float:
        """The best value under a limit; NaN where no policy is feasible."""
        return float(np.interp(limit, self.limit, self.value, left=np.nan))


def pareto_front(cmdp: FiniteCMDP, k: int = 0, criterion: Criterion = DISCOUNTED) -> Front:
    """The exact front of reward against cost k; every other constraint keeps its limit.

    Raises:
        InputError: there is no constraint k, the others alone are infeasible, or as `solve`.
    """
    channels = len(cmdp.limit)
    if not 0 <= k < channels:
        raise InputError(
            f"constraint {k} does not exist: the problem has K = {channels}, counted from 0"
        )
    search = _Search(program(cmdp, criterion), k)
    first, last = search.cheapest(), search.richest()
    points = np.array(_simplified(search.between(first, last)))
    rise = np.diff(points[:, 1]) / np.diff(points[:, 0])
    return Front(points[:, 0], points[:, 1], rise)


Point = tuple[float, float]  # cost k, value


class _Search:
    """Linear programs of one front."""

    def __init__(self, task: Program, k: int) -> None:
        self._task, self._k = task, k
        others = np.arange(len(task.limit)) != k
        self._costs, self._limits = task.cost[others], task.limit[others]

    def cheapest(self) -> Point:
        """The least cost k, and the best value at it."""
        least = self._point(-self._task.cost[self._k])[0]
        return least, self._point(self._task.reward, (self._task.cost[self._k], least))[1]

    def richest(self) -> Point:
        """The best value, and the least cost k at it."""
        best = self._point(self._task.reward)[1]
        return self._point(-self._task.cost[self._k], (-self._task.reward, -best))[0], best

    def between(self, first: Point, last: Point) -> list[Point]:
        """Points of the front from first to last, every corner among them."""
        width, height = last[0] - first[0], last[1] - first[1]
        scale = max(1.0, abs(last[0]), abs(last[1]))
        if width <= _CLOSE * scale or height <= _CLOSE * scale:
            return [last]
        found, open_chords = [first, last], [(first, last)]
        while open_chords:
            left, right = open_chords.pop()
            slope = (right[1] - left[1]) / (right[0] - left[0])
            point = self._point(self._task.reward - slope * self._task.cost[self._k])
            above = point[1] - left[1] - slope * (point[0] - left[0])
            inside = left[0] + _CLOSE * width < point[0] < right[0] - _CLOSE * width
            if above > _CLOSE * height and inside:
                found.append(point)
                open_chords += [(left, point), (point, right)]
        return sorted(found)

    def _point(self, objective: Floats, more: tuple[Floats, float] | None = None) -> Point:
        """Cost k and value at the optimum of an objective; `more` is one further constraint."""
        costs, limits = self._costs, self._limits
        if more is not None:
            row, bound = more
            costs = np.vstack([costs, row])
            limits = np.append(limits, bound + _ROUNDING * max(1.0, abs(bound)))
        best = maximize(self._task, objective, costs, limits)
        if best is None:
            raise InputError(
                f"the constraints other than {self._k} are infeasible by themselves, so limit "
                f"{self._k} has no front; see least_cost of `solve` and raise their limits"
            )
        return float(self._task.cost[self._k] @ best.x), float(self._task.reward @ best.x)


def _simplified(points: list[Point]) -> list[Point]:
    """Without the points on the line between their neighbours."""
    kept = points[:1]
    for here, after in pairwise(points[1:]):
        before = kept[-1]
        chord = (after[1] - before[1]) / (after[0] - before[0])
        if here[1] - before[1] - chord * (here[0] - before[0]) > _CLOSE * (after[1] - before[1]):
            kept.append(here)
    return kept + points[1:][-1:]
