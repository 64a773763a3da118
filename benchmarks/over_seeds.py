"""Seeds as text, for the tables of benchmarks: means, interquartile means, shares, Markdown.

Interquartile means have bootstrap intervals over seeds (Agarwal et al. 2021), shares exact ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from constrained_rl.feasibility import time_to_feasibility, violation_regret
from constrained_rl.plots import column
from constrained_rl.statistics import Interval, iqm, mean_interval, share_within

Rows = tuple[list[str], list[list[str]]]
"""heads and cells of a table"""


def interval(values: list[float], digits: int) -> str:
    """Mean over seeds with its 95 % interval; one seed alone has none."""
    return as_text(mean_interval(values), digits)


def middle(values: list[float], digits: int) -> str:
    """Interquartile mean over seeds with its 95 % bootstrap interval."""
    return as_text(iqm(values), digits)


def as_text(found: Interval, digits: int) -> str:
    """`value [low, high]`, or the value alone where it has no interval."""
    if not math.isfinite(found.low):
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def keeping(values: list[float], bound: float) -> str:
    """How many seeds lie within a bound, with the exact interval of their share in per cent."""
    found = share_within(values, bound)
    count = round(found.value * len(values))
    return f"{count} of {len(values)} [{100 * found.low:.0f}, {100 * found.high:.0f}] %"


def percent(shares: list[float]) -> str:
    """Mean and 95 % interval of shares in per cent; Student's t knows no bounds, a share does."""
    found = mean_interval([100 * share for share in shares])
    return f"{found.value:.1f} [{max(found.low, 0.0):.1f}, {min(found.high, 100.0):.1f}]"


def markdown(rows: Rows) -> str:
    """A table of a page."""
    heads, cells = rows
    lines = [
        "| " + " | ".join(head.replace("\n", " ") for head in heads) + " |",
        "|" + "---|" * len(heads),
    ]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)])


def over_training(
    rows: Sequence[Mapping[str, float]], limit: float | None
) -> dict[str, float | None]:
    """Violation regret and the iteration from which the limit is kept, of one run's metrics."""
    costs = column(rows, "estimate/cost")
    if limit is None or not any(map(math.isfinite, costs)):
        return {}
    return {
        "violation_regret": violation_regret(costs, limit),
        "feasible_from": time_to_feasibility(costs, limit, column(rows, "iteration")),
    }
