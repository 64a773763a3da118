"""What do several seeds of each setting come to? One line per setting, beside `crl plot`'s curves.

    return       interquartile mean over seeds of each run's last iterations, bootstrap interval
    kept         seeds whose costs there are within 5 % of their limits, Clopper-Pearson interval
    excess       violation regret of each run, mean over seeds
    kept from    median over seeds of the time to feasibility; `never` where half of them or more
                 never got there
    P(better)    probability that a run of this setting has more return than one of the first

Agarwal et al. 2021; `statistics` and `feasibility` have the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.markup import escape
from rich.table import Table

from constrained_rl.curves import Curves
from constrained_rl.feasibility import TOLERANCE, time_to_feasibility, violation, violation_regret
from constrained_rl.plots import Metrics, column
from constrained_rl.report import LAST
from constrained_rl.statistics import Interval, iqm, probability_of_improvement, share_within


@dataclass(frozen=True)
class Outcome:
    """One run."""

    value: float
    """mean return over the last iterations"""
    violation: float
    """relative, of the mean costs over the last iterations"""
    regret: float
    kept_from: float | None


@dataclass(frozen=True)
class SeedSummary:
    """One setting over its seeds; the constraints' entries are None where nothing is limited."""

    label: str
    seeds: int
    value: Interval
    kept: Interval | None
    regret: float | None
    kept_from: float | None
    better: Interval | None
    """than the first setting, None for the first itself"""


def outcome(rows: Sequence[Metrics]) -> Outcome | None:
    """What one run comes to; None where no episode finished in its last iterations."""
    names = [key.removeprefix("limit/") for key in rows[-1] if key.startswith("limit/")]
    value = float(np.mean(_known(column(rows[-LAST:], "return/mean"))))
    if math.isnan(value):
        return None
    if not names:
        return Outcome(value, 0.0, 0.0, None)
    limits = [rows[-1][f"limit/{name}"] for name in names]
    cost = np.array([column(rows, f"estimate/{name}") for name in names]).T  # [T, K]
    last = [float(np.mean(_known(values))) for values in cost[-LAST:].T]
    return Outcome(
        value,
        violation(last, limits),
        violation_regret(cost, limits),
        time_to_feasibility(cost, limits, column(rows, "iteration")),
    )


def _known(values: Sequence[float]) -> list[float]:
    """The numbers among them, or one NaN."""
    return [v for v in values if math.isfinite(v)] or [math.nan]


def summarize_seeds(curves: Sequence[Curves]) -> list[SeedSummary]:
    """One summary per setting; settings of which no run has a return are left out."""
    found = {group.label: [o for rows in group.runs if (o := outcome(rows))] for group in curves}
    limited = {group.label: any("limit/" in key for key in group.runs[0][-1]) for group in curves}
    first: list[float] | None = None
    summaries = []
    for label, runs in found.items():
        if not runs:
            continue
        values = [run.value for run in runs]
        better = None if first is None else probability_of_improvement(values, first)
        first = values if first is None else first
        times = [math.inf if run.kept_from is None else run.kept_from for run in runs]
        middle = float(np.median(times))
        constrained = limited[label]
        summaries.append(
            SeedSummary(
                label=label,
                seeds=len(runs),
                value=iqm(values),
                kept=share_within([r.violation for r in runs], TOLERANCE) if constrained else None,
                regret=float(np.mean([r.regret for r in runs])) if constrained else None,
                kept_from=middle if constrained and math.isfinite(middle) else None,
                better=better,
            )
        )
    return summaries


def seed_table(summaries: Sequence[SeedSummary]) -> Table:
    """The summaries on a terminal."""
    table = Table(title=f"last {LAST} iterations, over seeds", title_justify="left")
    table.add_column("setting", overflow="fold", min_width=14)
    for name in ("seeds", "return, IQM", "limits kept", "excess %", "kept from", "P(better)"):
        table.add_column(name, justify="right")
    for s in summaries:
        kept = "–" if s.kept is None else f"{round(s.kept.value * s.seeds)} of {s.seeds}"
        table.add_row(
            escape(s.label),
            str(s.seeds),
            interval_text(s.value),
            kept if s.kept is None else f"{kept} {ends(s.kept)}",
            "–" if s.regret is None else f"{100 * s.regret:.3g}",
            "–" if s.kept is None else "never" if s.kept_from is None else f"{s.kept_from:g}",
            "–" if s.better is None else interval_text(s.better),
        )
    return table


def interval_text(found: Interval) -> str:
    """`1.23 [1.1, 1.4]`; the value alone where one run has no interval."""
    return f"{found.value:.3g} {ends(found)}" if math.isfinite(found.low) else f"{found.value:.3g}"


def ends(found: Interval) -> str:
    """`[low, high]`."""
    return escape(f"[{found.low:.2g}, {found.high:.2g}]")
