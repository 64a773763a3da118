"""Figures that compare methods: the frontier, λ and cost over training, over-optimization.

The paper's Figures 6b and 6c, drawn with model scores and with gold. In every plane safer is left
and better is up; unsafe is vermillion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from constrained_rl.plots import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    VERMILLION,
    CostCurve,
    Metrics,
    draw_curve,
    grid,
    limit_line,
    style,
)
from constrained_rl.statistics import Interval
from llm_env.comparison.summaries import MethodResult, Results
from llm_env.comparison.verdict import SAFE_SHARE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Look:
    """Colour and marker of a method, the same in every figure."""

    color: str
    marker: str


DYNAMIC = (Look(BLUE, "s"), Look(GREEN, "^"), Look(ORANGE, "D"), Look(PURPLE, "v"))
STATIC, START = Look(GREY, "o"), Look(INK, "*")


def looks(results: Results) -> dict[str, Look]:
    """Look of each method by name."""
    found = {m.name: STATIC if m.family == "static" else START for m in results.methods}
    for k, method in enumerate(results.family("dynamic")):
        found[method.name] = DYNAMIC[k % len(DYNAMIC)]
    return found


SHARES = (0.0, 0.01, 0.05, 0.15, 0.3, 0.5, 0.75, 1.0)
"""ticks of a square-root share axis"""


def share_axis(ax: Axes, axis: Literal["x", "y"], ticks: Sequence[float] = SHARES) -> None:
    """An axis of shares from 0 to 1 in percent, square-root scaled to open up the safe end."""
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    set_scale, side = (ax.set_xscale, ax.xaxis) if axis == "x" else (ax.set_yscale, ax.yaxis)
    set_scale("function", functions=(_root, _square))
    (ax.set_xlim if axis == "x" else ax.set_ylim)(-0.001, 1.06)
    side.set_major_locator(FixedLocator(ticks))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter(PercentFormatter(1.0, 0))


def _root(share: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(share) * np.sqrt(np.abs(share))


def _square(root: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(root) * np.square(root)


def cross(ax: Axes, x: Interval, y: Interval, look: Look, label: str = "") -> None:
    """A method's point with both intervals."""
    big = {"o": 5.0, "*": 11.0}.get(look.marker, 7.5)
    ax.errorbar(
        x.value,
        y.value,
        xerr=[[x.value - x.low], [x.high - x.value]],
        yerr=[[y.value - y.low], [y.high - y.value]],
        fmt=look.marker,
        color=look.color,
        markersize=big,
        elinewidth=0.9,
        label=label or None,
        zorder=4 if look is START else 3,
    )


def draw_methods(ax: Axes, results: Results, x: str, y: str) -> None:
    """Static weights joined in their order, dynamic methods and SFT, on two summary quantities."""
    look = looks(results)
    static: list[tuple[float, float]] = []
    for method in results.methods:
        summary = method.sampled.overall
        a, b = summary.interval(x), summary.interval(y)
        label = method.label
        if method.family == "static":
            label = "" if static else "static weights ν, joined in their order"
            static.append((a.value, b.value))
        cross(ax, a, b, look[method.name], label)
    if static:
        ax.plot(*zip(*static, strict=True), color=GREY, linewidth=1.0, zorder=2)


def label_weights(ax: Axes, results: Results, x: str, y: str) -> None:
    """Write static weights beside their points, neighbours in one label. Freezes the limits."""
    ax.set_xlim(ax.get_xlim())
    ax.set_ylim(ax.get_ylim())
    to_axes = ax.transScale + ax.transLimits
    groups: list[tuple[list[str], tuple[float, float]]] = []
    for method in results.family("static"):
        summary = method.sampled.overall
        place = tuple(to_axes.transform((summary.interval(x).value, summary.interval(y).value)))
        near = [g for g in groups if _collide(g[1], place)]
        if near:
            near[0][0].append(weight_text(method))
        else:
            groups.append(([weight_text(method)], place))
    for names, place in groups:
        right, above = place[0] < 0.85, place[1] < 0.035
        ax.annotate(
            "ν = " + ", ".join(names),
            place,
            xycoords="axes fraction",
            xytext=(7 if right else -7, 5 if above else -9),
            textcoords="offset points",
            ha="left" if right else "right",
            fontsize=8,
            color=MUTED,
            zorder=5,
        )


def _collide(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return abs(a[0] - b[0]) < 0.14 and abs(a[1] - b[1]) < 0.045  # a label's size, of the axes


def weight_text(method: MethodResult) -> str:
    """ν of a static method."""
    return "?" if method.lam is None else f"{method.lam:g}"


def plot_frontier(results: Results) -> Figure:
    """Gold helpfulness over gold-unsafe share beside model reward over model cost."""
    with style():
        figure, (gold, model) = grid(1, 2, (5.4, 4.1))
        draw_methods(gold, results, "unsafe", "helpfulness")
        gold.set_xlabel("unsafe responses by gold (square-root scale)")
        gold.set_ylabel("gold helpfulness")
        gold.set_title("what the responses are worth")
        share_axis(gold, "x")
        limit_line(gold, SAFE_SHARE, "x")
        label_weights(gold, results, "unsafe", "helpfulness")
        draw_methods(model, results, "cost", "reward")
        model.set_xlabel("mean model cost C")
        model.set_ylabel("mean model reward R")
        model.set_title("what training sees")
        label_weights(model, results, "cost", "reward")
        figure.legend(*gold.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def wrap(label: str) -> str:
    """Break a label after its first comma, else before its remark in brackets."""
    return label.replace(", ", ",\n", 1) if ", " in label else label.replace(" (", "\n(", 1)


def plot_training(
    runs: Mapping[str, Sequence[Metrics]],
    limits: Mapping[str, CostCurve],
    labels: Mapping[str, str],
) -> Figure:
    """λ above the constrained quantity with its limit, one column per dynamic method."""
    with style():
        from matplotlib.ticker import PercentFormatter

        figure, axes = grid(2, len(runs), (2.75, 2.1), sharex=True)
        for k, (name, rows) in enumerate(runs.items()):
            above, below, look = axes[k], axes[len(runs) + k], DYNAMIC[k % len(DYNAMIC)]
            draw_curve(above, rows, "lambda/cost", look.color, time="iteration")
            above.set_ylim(bottom=0)
            above.set_title(wrap(labels[name]), fontsize=8.5)
            draw_curve(below, rows, limits[name].key, look.color, time="iteration")
            if limits[name].name.startswith("P"):
                below.set_ylim(bottom=0)
                below.yaxis.set_major_formatter(PercentFormatter(1.0, 0))
            limit = limits[name].limit
            if limit is not None:
                limit_line(below, limit)
            below.set_ylabel(limits[name].name)
            below.set_xlabel("iteration")
        axes[0].set_ylabel("λ")
    return figure


def plot_overoptimization(
    results: Results, hacked: Sequence[MethodResult], missed: Sequence[MethodResult]
) -> Figure:
    """Model against gold, one point per method: reward and helpfulness, and both unsafe shares."""
    with style():
        figure, (helped, harmed) = grid(1, 2, (5.4, 4.0))
        draw_methods(helped, results, "reward", "helpfulness")
        helped.set_xlabel("mean model reward R")
        helped.set_ylabel("gold helpfulness")
        helped.set_title("is model reward still helpfulness?")
        label_weights(helped, results, "reward", "helpfulness")
        draw_methods(harmed, results, "model_unsafe", "unsafe")
        harmed.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1.0, zorder=1)
        harmed.set_xlabel("unsafe by the cost model, C > 0 (square-root scale)")
        harmed.set_ylabel("unsafe by gold")
        harmed.set_title("does the cost model miss harm?")
        share_axis(harmed, "x")
        share_axis(harmed, "y")
        label_weights(harmed, results, "model_unsafe", "unsafe")
        circle(helped, hacked, "reward", "helpfulness")
        circle(harmed, missed, "model_unsafe", "unsafe")
        figure.legend(*harmed.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def circle(ax: Axes, methods: Sequence[MethodResult], x: str, y: str) -> None:
    """Ring around flagged methods."""
    for method in methods:
        summary = method.sampled.overall
        ax.plot(
            summary.interval(x).value,
            summary.interval(y).value,
            "o",
            markersize=16,
            markerfacecolor="none",
            markeredgecolor=VERMILLION,
        )
