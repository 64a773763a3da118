"""Figures of a calibration: what limits mean, reliability, the starting model's costs, drift.

Blue is what the calibration expects, vermillion what gold finds; lower is safer throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

from constrained_rl.plots import (
    BLUE,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    grid,
    style,
)
from constrained_rl.statistics import Interval
from llm_env.calibration.evidence import Sample
from llm_env.calibration.maths import Bin, Floats, Form
from llm_env.calibration.results import Calibration, Effect, Outcome, Proposal
from llm_env.calibration.summary import QUANTILES
from llm_env.calibration.wording import NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDEST = 0.45
"""largest limit on a share that is drawn"""
TICKS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


def plot_limits(found: Calibration, forms: Sequence[Form]) -> Figure:
    """Unsafe share over the limit, by calibration and by gold, with finished runs."""
    with style():
        figure, axes = grid(1, len(forms), (7.6 if len(forms) == 1 else 4.9, 3.9))
        for ax, form in zip(axes, forms, strict=True):
            draw_limits(ax, found, found.proposals[form])
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def draw_limits(ax: Axes, found: Calibration, proposal: Proposal) -> None:
    """One form of the constraint."""
    effects = sorted(
        [*proposal.effects, *([proposal.at_limit] if proposal.at_limit else [])],
        key=lambda e: e.limit,
    )
    draw_band(ax, effects, [e.estimated for e in effects], BLUE, "expected by the calibration")
    gold = [e.gold for e in effects if e.gold is not None]
    if gold:
        draw_band(ax, effects, gold, VERMILLION, "gold, same responses tilted to the limit")
    for first, point in enumerate(found.outcomes):
        draw_outcome(ax, point, proposal.form, first)
    ax.axhline(
        found.target,
        color=MUTED,
        linestyle=(0, (5, 3)),
        linewidth=1.1,
        label=f"target, {found.target:.1%}",
    )
    if proposal.limit is not None:
        ax.axvline(proposal.limit.value, color=PURPLE, linewidth=1.4, label="proposed limit")
        ax.axvspan(proposal.limit.low, proposal.limit.high, color=PURPLE, alpha=0.12, linewidth=0)
    name = NAMES[proposal.form]
    reached = "; for finished runs the value they reach" if found.outcomes else ""
    ax.set_xlabel(f"limit on {name}{reached}")
    ax.set_ylabel("unsafe responses")
    ax.set_title(f"{name} ≤ limit")
    highest = [s.high for e in effects for s in (e.estimated, e.gold) if s is not None]
    share_scale(ax, "y", min(1.03, 1.2 * max(*highest, found.start.estimated.high, found.target)))
    if proposal.form == "identity":
        ax.set_xlim(effects[0].limit - 0.4, effects[-1].limit + 0.4)
    else:
        share_scale(ax, "x", WIDEST)


def draw_band(
    ax: Axes, effects: Sequence[Effect], shares: Sequence[Interval], color: str, label: str
) -> None:
    """A curve with its interval; hollow marks where few responses carry it."""
    x = [e.limit for e in effects]
    ax.plot(x, [s.value for s in shares], color=color, label=label)
    ax.fill_between(
        x, [s.low for s in shares], [s.high for s in shares], color=color, alpha=0.16, linewidth=0
    )
    few = [(e.limit, s.value) for e, s in zip(effects, shares, strict=True) if e.few]
    if few:
        ax.plot(*zip(*few, strict=True), "o", color=color, markerfacecolor="none", markersize=6)


def draw_outcome(ax: Axes, point: Outcome, form: Form, position: int) -> None:
    """A model's own responses: where it ended, and its gold-unsafe share."""
    start = position == 0
    label = {0: "starting model, by gold", 1: "finished runs, by gold"}.get(position)
    ax.errorbar(
        point.value[form],
        point.gold.value,
        yerr=[[point.gold.value - point.gold.low], [point.gold.high - point.gold.value]],
        fmt="*" if start else "o",
        color=INK if start else GREY,
        markersize=11 if start else 5,
        elinewidth=0.9,
        label=label,
        zorder=3,
    )


def share_scale(ax: Axes, axis: str, top: float) -> None:
    """Shares in percent on a square-root scale, which opens up the safe end."""
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    set_scale, side = (ax.set_xscale, ax.xaxis) if axis == "x" else (ax.set_yscale, ax.yaxis)
    set_scale("function", functions=(_root, _square))
    (ax.set_xlim if axis == "x" else ax.set_ylim)(-0.001, top)
    side.set_major_locator(FixedLocator([tick for tick in TICKS if tick <= top]))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter(PercentFormatter(1.0, 0))


def _root(share: Floats) -> Floats:
    root: Floats = np.sign(share) * np.sqrt(np.abs(share))
    return root


def _square(root: Floats) -> Floats:
    share: Floats = np.sign(root) * np.square(root)
    return share


def plot_reliability(found: Calibration) -> Figure:
    """Share labelled unsafe over σ(C), and over C with the fitted curves."""
    quality = found.quality
    with style():
        from matplotlib.ticker import PercentFormatter

        figure, (left, right) = grid(1, 2, (4.9, 3.7))
        draw_bins(left, quality.bins, [b.predicted for b in quality.bins], INK)
        left.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1.0)
        left.set_title("is σ(C) a probability?")
        left.set_xlabel("σ(C), mean of each tenth of the responses")
        left.set_ylabel("labelled unsafe")
        left.xaxis.set_major_formatter(PercentFormatter(1.0, 0))
        x = np.linspace(quality.bins[0].cost - 0.5, quality.bins[-1].cost + 0.5, 200)
        draw_bins(right, quality.bins, [b.cost for b in quality.bins], INK, "labels")
        right.plot(x, expit(x), color=MUTED, linestyle=":", label="σ(C)")
        right.plot(x, quality.platt.labelled(x), color=SKY, label="fit to the labels")
        right.plot(x, quality.platt.harmful(x), color=BLUE, label="after label noise")
        right.axvline(0, color=VERMILLION, linestyle=(0, (5, 3)), linewidth=1.2)
        right.axvspan(quality.boundary.low, quality.boundary.high, color=PURPLE, alpha=0.15)
        right.set_title("is its zero in the right place?")
        right.set_xlabel("model cost C")
        right.legend(loc="upper left")
        for ax in (left, right):
            ax.set_ylim(-0.02, 1.02)
            ax.yaxis.set_major_formatter(PercentFormatter(1.0, 0))
    return figure


def draw_bins(
    ax: Axes, bins: Sequence[Bin], x: Sequence[float], color: str, label: str | None = None
) -> None:
    """Shares with Wilson's intervals."""
    y = [b.unsafe.value for b in bins]
    low = [b.unsafe.value - b.unsafe.low for b in bins]
    high = [b.unsafe.high - b.unsafe.value for b in bins]
    ax.errorbar(
        x, y, yerr=[low, high], fmt="o", color=color, markersize=4.5, elinewidth=1.0, label=label
    )


def plot_start(start: Sample) -> Figure:
    """Costs of the starting model's responses, split by gold where it is known."""
    with style():
        figure, (ax,) = grid(1, 1, (7.6, 2.8))
        edges = np.linspace(float(start.cost.min()), float(start.cost.max()) + 1e-9, 41)
        if start.unsafe is None:
            ax.hist(start.cost, list(edges), color=BLUE, alpha=0.75)
        else:
            ax.hist(
                [start.cost[~start.unsafe], start.cost[start.unsafe]],
                list(edges),
                stacked=True,
                color=[BLUE, VERMILLION],
                alpha=0.8,
                label=["safe by gold", "unsafe by gold"],
            )
            ax.legend(loc="upper right")
        marks = np.quantile(start.cost, QUANTILES)
        across = ax.get_xaxis_transform()
        ax.plot(marks, [-0.03] * len(marks), "^", color=ORANGE, transform=across, clip_on=False)
        ax.tick_params(axis="x", pad=9)  # below the marks
        ax.axvline(0, color=VERMILLION, linestyle=(0, (5, 3)), linewidth=1.2)
        ax.set_xlabel("model cost C")
        ax.set_ylabel("responses")
        ax.grid(visible=False, axis="x")
    return figure


def plot_drift(found: Calibration) -> Figure:
    """Gold against what the calibration expects: per model, and in bins of responses."""
    with style():
        figure, (models, bins) = grid(1, 2, (4.9, 3.9))
        for position, point in enumerate(found.outcomes):
            start = position == 0
            models.errorbar(
                point.estimated,
                point.gold.value,
                yerr=[[point.gold.value - point.gold.low], [point.gold.high - point.gold.value]],
                fmt="*" if start else "o",
                color=INK if start else VERMILLION if point.underestimated else GREY,
                markersize=11 if start else 5,
                elinewidth=0.9,
            )
        models.set_title("models")
        looks = {"start": (INK, "starting model"), "trained": (GREY, "all trained models")}
        for name, found_bins in found.gold_bins.items():
            color, label = looks[name]
            draw_bins(bins, found_bins, [b.predicted for b in found_bins], color, label)
        bins.set_title("tenths of the responses, by expected harm")
        bins.legend(loc="upper left")
        for ax in (models, bins):
            ax.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1.0, zorder=1)
            share_scale(ax, "x", 1.03)
            share_scale(ax, "y", 1.03)
            ax.set_xlabel("expected unsafe")
            ax.set_ylabel("unsafe by gold")
    return figure
