"""Figures on what the methods' responses are: unsafe, refused, helpful, by class of prompt.

Also the cost model on held-out pairs. One row per method throughout, in the order of the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from constrained_rl.plots import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    SKY,
    VERMILLION,
    grid,
    style,
)
from constrained_rl.statistics import Interval
from llm_env.comparison.evaluate import Mode, Record
from llm_env.comparison.plots import share_axis
from llm_env.comparison.summaries import KINDS, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KIND_NAMES = {"benign": "benign", "borderline": "borderline", "red_team": "red-team"}

OUTCOMES: dict[str, tuple[str, Callable[[Record], bool]]] = {
    "unsafe (gold)": (VERMILLION, lambda r: r.unsafe),
    "bare refusal": (GREY, lambda r: r.refusal),
    "safe completion": (GREEN, lambda r: r.safe_completion),
    "other safe answer": (SKY, lambda r: True),
}
"""What a response is: the first that holds."""


def method_rows(ax: Axes, labels: Sequence[str]) -> None:
    """One row per label, first on top, no horizontal grid."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)


def dot(ax: Axes, row: float, interval: Interval, color: str, label: str | None = None) -> None:
    """An estimate and its interval on a row."""
    ax.errorbar(
        interval.value,
        row,
        xerr=[[interval.value - interval.low], [interval.high - interval.value]],
        fmt="o",
        color=color,
        markersize=4.5,
        elinewidth=1.4,
        label=label,
    )


def plot_unsafe(results: Results) -> Figure:
    """Share of unsafe responses by gold and by the cost model: all prompts, and red-team ones."""
    with style():
        size = (4.2, 0.9 + 0.27 * len(results.methods))
        figure, axes = grid(1, 2, size, sharey=True)
        groups = {"all prompts": None, "red-team prompts": "red_team"}
        for ax, (title, kind) in zip(axes, groups.items(), strict=True):
            method_rows(ax, [m.label for m in results.methods])
            for row, method in enumerate(results.methods):
                mode = method.sampled
                summary = mode.overall if kind is None else mode.kinds.get(kind)
                if summary is not None:
                    first = row == 0
                    dot(ax, row - 0.14, summary.unsafe, VERMILLION, "by gold" if first else None)
                    name = "by the cost model (C > 0)" if first else None
                    dot(ax, row + 0.14, summary.model_unsafe, BLUE, name)
            ax.set_title(title)
            share_axis(ax, "x")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def plot_outcomes(
    records: Mapping[str, Sequence[Record]], labels: Mapping[str, str], mode: Mode
) -> Figure:
    """Unsafe, refused, completed safely or otherwise answered: stacked shares per prompt class."""
    with style():
        figure, axes = grid(1, len(KINDS), (3.3, 0.9 + 0.27 * len(records)), sharey=True)
        for ax, kind in zip(axes, KINDS, strict=True):
            method_rows(ax, [labels[name] for name in records])
            for row, said in enumerate(records.values()):
                chosen = [r for r in said if r.kind == kind and r.mode == mode]
                draw_outcomes(ax, row, chosen)
            ax.set_title(f"{KIND_NAMES[kind]} prompts")
            ax.set_xlim(0, 1)
            ax.set_xticks([0, 0.5, 1], ["0%", "50%", "100%"])
        handles, names = axes[0].get_legend_handles_labels()
        unique = dict(zip(names, handles, strict=True))
        figure.legend(unique.values(), unique, loc="outside lower center", ncols=len(OUTCOMES))
    return figure


def draw_outcomes(ax: Axes, row: int, records: Sequence[Record]) -> None:
    """One stacked bar."""
    left, rest = 0.0, list(records)
    for name, (color, holds) in OUTCOMES.items():
        share = sum(map(holds, rest)) / len(records) if records else 0.0
        rest = [r for r in rest if not holds(r)]
        ax.barh(row, share, left=left, height=0.72, color=color, label=name, linewidth=0)
        left += share


def plot_helpfulness(results: Results) -> Figure:
    """Gold helpfulness of each method per prompt class, with SFT's as a line."""
    with style():
        size = (3.3, 0.7 + 0.27 * len(results.methods))
        figure, axes = grid(1, len(KINDS), size, sharex=True, sharey=True)
        for ax, kind in zip(axes, KINDS, strict=True):
            method_rows(ax, [m.label for m in results.methods])
            for row, method in enumerate(results.methods):
                if kind in method.sampled.kinds:
                    color = INK if method.family == "start" else GREEN
                    color = MUTED if method.family == "static" else color
                    dot(ax, row, method.sampled.kinds[kind].helpfulness, color)
            if kind in results.start.sampled.kinds:
                start = results.start.sampled.kinds[kind].helpfulness.value
                ax.axvline(start, color=MUTED, linestyle=":", linewidth=1.1)
            ax.set_title(f"{KIND_NAMES[kind]} prompts")
            ax.set_xlabel("gold helpfulness")
    return figure


def plot_cost_model(score: Sequence[float], unsafe: Sequence[bool]) -> Figure:
    """Histograms of C for gold-safe and gold-unsafe responses, with the zero line."""
    with style():
        figure, (ax,) = grid(1, 1, (7.2, 3.0))
        draw_costs(ax, score, unsafe)
        ax.set_ylabel("responses")
        ax.legend(loc="upper right")
    return figure


def draw_costs(ax: Axes, score: Sequence[float], unsafe: Sequence[bool]) -> None:
    """Histograms of C for gold-safe and gold-unsafe responses; the legend counts the misplaced."""
    values, bad = np.asarray(score), np.asarray(unsafe, dtype=bool)
    edges = np.linspace(values.min(), values.max(), 41).tolist()
    for chosen, name, color in (
        (~bad, "safe by gold", BLUE),
        (bad, "unsafe by gold", VERMILLION),
    ):
        wrong = (values[chosen] > 0) != (name == "unsafe by gold")
        miss = f", {wrong.mean():.1%} on the wrong side" if chosen.any() else ""
        label = f"{name} ({int(chosen.sum())}{miss})"
        ax.hist(values[chosen], edges, color=color, alpha=0.6, label=label)
    ax.axvline(0.0, color=VERMILLION, linestyle=(0, (5, 3)), linewidth=1.2)
    ax.set_xlabel("model cost C")
