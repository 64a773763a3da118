"""Figures on the zero of cost models, by the terms of their loss, and on the choice of a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from constrained_rl.plots import BLUE, GREEN, INK, MUTED, VERMILLION, grid, style
from constrained_rl.statistics import Interval
from llm_env.comparison.plots import share_axis
from llm_env.comparison.plots_detail import draw_costs
from llm_env.comparison.summaries import MethodResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {
    "cost": "ranking + sign",
    "ranking": "ranking only",
    "free": "ranking only, μ = 0",
    "classifier": "sign only: a classifier",
}
"""score models by what their loss holds"""
SWEEP_TICKS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)


def plot_zero(accuracy: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Histograms of C by gold, one panel per loss, with the sign accuracy. `accuracy` by model."""
    with style():
        figure, axes = grid(1, len(PANELS), (2.7, 3.0))
        for ax, (name, title) in zip(axes, PANELS.items(), strict=True):
            found = accuracy[name]
            draw_costs(ax, found["score"], found["unsafe"])
            ax.set_title(f"{title}\nsign accuracy {found['gold_sign']:.1%}")
        axes[0].set_ylabel("held-out responses")
        handles, _ = axes[0].get_legend_handles_labels()
        names = ["safe by gold", "unsafe by gold"]
        figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure


def plot_sweep(runs: Sequence[MethodResult], start: MethodResult, recommended: float) -> Figure:
    """Limit asked for against unsafe shares and gold helpfulness; `runs` in the order of limits."""
    limits = [run.limit for run in runs if run.limit is not None]
    overall = [run.sampled.overall for run in runs]
    with style():
        figure, (shares, helped) = grid(1, 2, (4.8, 3.5))
        draw_points(shares, limits, [s.model_unsafe for s in overall], BLUE, "s", "by C > 0")
        beside = [1.03 * limit for limit in limits]  # so that intervals stay apart
        draw_points(shares, beside, [s.unsafe for s in overall], VERMILLION, "o", "by gold")
        shares.plot(limits, limits, color=MUTED, linestyle="--", linewidth=1.1, label="the limit")
        shares.set_ylabel("unsafe responses (square-root scale)")
        shares.set_title("is the limit kept?")
        highest = max(*limits, *(max(s.unsafe.high, s.model_unsafe.high) for s in overall))
        share_axis(shares, "y", SWEEP_TICKS)
        shares.set_ylim(0, 1.05 * highest)
        shares.legend(loc="upper left")
        draw_points(helped, limits, [s.helpfulness for s in overall], GREEN, "o", "at this limit")
        level = start.sampled.overall.helpfulness.value
        helped.axhline(level, color=MUTED, linestyle=":", linewidth=1.1, label="SFT")
        helped.set_ylabel("gold helpfulness")
        helped.set_title("what does it cost?")
        helped.legend(loc="best")
        for ax in (shares, helped):
            limit_axis(ax, limits, recommended)
    return figure


def draw_points(
    ax: Axes, x: Sequence[float], y: Sequence[Interval], color: str, marker: str, label: str
) -> None:
    """Estimates with their intervals, joined."""
    values = [one.value for one in y]
    errors = [[one.value - one.low for one in y], [one.high - one.value for one in y]]
    ax.errorbar(
        x,
        values,
        yerr=errors,
        color=color,
        marker=marker,
        markersize=5.5,
        linewidth=1.3,
        elinewidth=1.2,
        label=label,
    )


def percent_text(limit: float | None) -> str:
    """A limit on a share, with the digits that it has."""
    return "–" if limit is None else f"{100 * limit:g}%"


def limit_axis(ax: Axes, limits: Sequence[float], recommended: float) -> None:
    """Limits in per cent where they are, on a square-root scale; the recommended one is bold."""
    from matplotlib.ticker import FuncFormatter

    share_axis(ax, "x", limits)
    ax.set_xlim(0, 1.12 * max(limits))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: percent_text(x)))
    for tick, limit in zip(ax.get_xticklabels(), limits, strict=True):
        if limit == recommended:
            tick.set_fontweight("bold")
            tick.set_color(INK)
    ax.set_xlabel("limit on P(C > 0) (square-root scale)")
