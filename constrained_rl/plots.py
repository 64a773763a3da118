"""Figures of a training run, one function each, from the rows of metrics.jsonl.

One style for every report: Okabe–Ito colours (told apart by colour-blind readers and in grey), a
light grid, dashed limits with the infeasible side shaded. `INK`, `GRID` and `MUTED` are stand-ins
that a page replaces by its own colours. Deliberately absent: pyplot, and with it any global state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from constrained_rl.errors import InputError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID, MUTED = "#1b1f24", "#dfe3e8", "#5b6470"
BLUE, VERMILLION, GREEN, ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
SKY, PURPLE, GREY = "#56b4e9", "#cc79a7", "#8a929c"

STYLE: dict[str, object] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.linewidth": 0.7,
    "grid.color": GRID,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "axes.unicode_minus": True,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "svg.hashsalt": "constrained-rl",  # the same figure gives the same bytes
    "savefig.dpi": 160,
    "figure.dpi": 100,
}

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class CostCurve:
    """One constrained quantity of a run: its metric, and the limit it is held against."""

    name: str
    key: str
    limit: float | None


def style() -> AbstractContextManager[object]:
    """The style as a context; `InputError` without matplotlib."""
    try:
        from matplotlib import rc_context
    except ImportError:
        raise InputError(
            "reports draw with matplotlib, which is not installed; "
            "run: pip install 'constrained-rl[plot]'"
        ) from None
    context: AbstractContextManager[object] = rc_context(STYLE)
    return context


def grid(
    rows: int, columns: int, size: tuple[float, float], sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of rows × columns axes of `size` inches each, as one list. Inside `style()`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    return figure, list(axes.flat)


def show_literally(figure: Figure) -> None:
    """Names are text, not mathematics: a $ in one stands for itself. Numbers on axes stay set."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    ticks: set[Artist] = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        if not isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter):
            ticks |= {*axis.findobj(Text)} - {axis.label}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in ticks:
            text.set_parse_math(False)


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.svg and `stem`.png, on white so that they read anywhere; atomically, undated."""
    paths = [stem.with_name(f"{stem.name}.{form}") for form in ("svg", "png")]
    with style():
        show_literally(figure)
        for path in paths:
            undated = {"Date": None} if path.suffix == ".svg" else {}
            temporary = path.with_name(f".{path.name}.tmp")
            form = path.suffix[1:]
            figure.savefig(temporary, facecolor="white", metadata=undated, format=form)
            temporary.replace(path)
    return paths


def limit_line(ax: Axes, limit: float, axis: Literal["x", "y"] = "y", label: str = "") -> None:
    """Dashed line at `limit`, the infeasible side beyond it lightly shaded to the edge."""
    low, high = ax.get_ylim() if axis == "y" else ax.get_xlim()
    margin = 0.06 * (max(high, limit) - min(low, limit))
    low, high = min(low, limit - margin), max(high, limit + margin)
    line, span = (ax.axhline, ax.axhspan) if axis == "y" else (ax.axvline, ax.axvspan)
    line(limit, color=VERMILLION, linestyle=(0, (5, 3)), linewidth=1.2, label=label or None)
    span(limit, high, color=VERMILLION, alpha=0.07, linewidth=0)
    (ax.set_ylim if axis == "y" else ax.set_xlim)(low, high)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over `window` neighbours, shorter at the ends; NaN is left out."""
    half, array = window // 2, np.asarray(values, dtype=np.float64)
    pieces = (array[max(0, i - half) : i + half + 1] for i in range(len(array)))
    return [float(np.nanmean(p)) if np.isfinite(p).any() else math.nan for p in pieces]


def column(rows: Sequence[Metrics], key: str) -> list[float]:
    """One metric over iterations, NaN where an iteration lacks it."""
    return [row.get(key, math.nan) for row in rows]


def draw_curve(
    ax: Axes,
    rows: Sequence[Metrics],
    key: str,
    color: str = BLUE,
    label: str = "",
    time: Literal["decisions", "iteration"] = "decisions",
) -> None:
    """One metric over thousands of decisions or over iterations; long ones with a running mean."""
    x = [row[time] / (1000 if time == "decisions" else 1) for row in rows]
    y = column(rows, key)
    window = len(rows) // 20 * 2 + 1
    many = window >= 5
    single = "o" if len(rows) == 1 else None
    if many:
        ax.plot(x, y, color=color, alpha=0.3, linewidth=0.8)
    ax.plot(x, smooth(y, window) if many else y, color=color, label=label or None, marker=single)


def plot_return_and_costs(rows: Sequence[Metrics], costs: Sequence[CostCurve]) -> Figure:
    """Mean return beside each constrained cost with its limit."""
    with style():
        figure, axes = grid(1, 1 + len(costs), (4.6, 2.9))
        draw_curve(axes[0], rows, "return/mean")
        axes[0].set_title("return")
        for ax, cost in zip(axes[1:], costs, strict=True):
            draw_curve(ax, rows, cost.key, ORANGE)
            ax.set_title(f"cost: {cost.name}")
            known = [v for v in column(rows, cost.key) if math.isfinite(v)]
            if not known or min(known) >= 0:
                ax.set_ylim(bottom=0)
            if cost.limit is not None:
                limit_line(ax, cost.limit, label=f"limit {cost.limit:g}")
                ax.legend(loc="best")
        for ax in axes:
            ax.set_xlabel("decisions (thousands)")
    return figure


def plot_multipliers(rows: Sequence[Metrics], costs: Sequence[CostCurve]) -> Figure:
    """λ of each constraint above its violation J_C − limit, sharing the time axis."""
    with style():
        figure, axes = grid(2, max(1, len(costs)), (6.0, 1.9), sharex=True)
        for k, cost in enumerate(costs):
            above, below = axes[k], axes[len(costs) + k]
            draw_curve(above, rows, f"lambda/{cost.name}", PURPLE)
            above.set_title(f"λ: {cost.name}")
            above.set_ylim(bottom=0)
            gap = [
                {"decisions": row["decisions"], "gap": row.get(cost.key, math.nan) - cost.limit}
                for row in rows
                if cost.limit is not None
            ]
            draw_curve(below, gap, "gap", ORANGE)
            limit_line(below, 0.0)
            below.set_title("violation: cost − limit")
            below.set_xlabel("decisions (thousands)")
    return figure


def plot_evaluations(rows: Sequence[Metrics], costs: Sequence[CostCurve], best: float) -> Figure:
    """Return and constrained costs of every evaluation with intervals; the best one is marked."""
    modes = {"sampled": (BLUE, -0.15), "deterministic": (ORANGE, 0.15)}
    names = [(None, "return")] + [(cost, f"estimate/{cost.name}") for cost in costs]
    width = min((b - a for a, b in pairwise(column(rows, "iteration"))), default=1.0)
    with style():
        figure, axes = grid(1, len(names), (4.6, 2.9))
        for ax, (cost, key) in zip(axes, names, strict=True):
            for mode, (color, offset) in modes.items():
                _draw_intervals(ax, rows, f"evaluation/{mode}/{key}", color, mode, offset * width)
            ax.set_title("return" if cost is None else f"cost: {cost.name}")
            ax.set_xlabel("iteration")
            if cost is not None and cost.limit is not None:
                limit_line(ax, cost.limit)
            ax.axvline(best, color=GREEN, linewidth=1.0, linestyle=":", label="best")
        axes[0].legend(loc="best")
    return figure


def _draw_intervals(
    ax: Axes, rows: Sequence[Metrics], key: str, color: str, label: str, shift: float
) -> None:
    """Means with their intervals as error bars."""
    x, y = np.asarray(column(rows, "iteration")) + shift, np.asarray(column(rows, key))
    low, high = (np.asarray(column(rows, f"{key}/{end}")) for end in ("low", "high"))
    ax.errorbar(x, y, [y - low, high - y], color=color, fmt="o-", markersize=3, label=label)


def plot_diagnostics(rows: Sequence[Metrics]) -> Figure:
    """Entropy, KL of each update, clipped share and explained variance of every critic."""
    with style():
        figure, axes = grid(2, 2, (4.6, 2.3), sharex=True)
        panels = {"entropy": "entropy (nats per decision)", "kl/approx": "KL of an update"}
        panels["clip_fraction"] = "share of clipped ratios"
        for ax, (key, title) in zip(axes, panels.items(), strict=False):
            draw_curve(ax, rows, key)
            ax.set_title(title)
            ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
        prefix = "explained_variance/"
        names = [key for key in rows[-1] if key.startswith(prefix)]
        for key, color in zip(names, (BLUE, ORANGE, GREEN, PURPLE, SKY), strict=False):
            draw_curve(axes[3], rows, key, color, key.removeprefix(prefix))
        axes[3].set_title("explained variance of the critics")
        axes[3].set_ylim(-0.5, 1.02)  # a critic below −0.5 is useless, however far
        axes[3].legend(loc="lower right", ncols=2)
        for ax in axes[2:]:
            ax.set_xlabel("decisions (thousands)")
    return figure


def plot_time(seconds: Mapping[str, float]) -> Figure:
    """Where the time went: one bar per phase, longest first."""
    with style():
        figure, (ax,) = grid(1, 1, (7.2, 0.55 + 0.28 * max(1, len(seconds))))
        ordered = sorted(seconds.items(), key=lambda item: item[1])
        total = sum(seconds.values()) or 1.0
        bars = ax.barh([name for name, _ in ordered], [s for _, s in ordered], color=SKY)
        texts = [f"{s:.1f} s · {s / total:.0%}" for _, s in ordered]
        ax.bar_label(bars, texts, padding=4, fontsize=8.5, color=INK)
        ax.margins(x=0.2, y=0.02)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("seconds")
    return figure
