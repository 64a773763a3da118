"""Figures of rounds: the paper's Figures 4 and 5, unsafe shares, λ over all rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

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
    column,
    grid,
    limit_line,
    style,
)
from constrained_rl.statistics import Interval
from llm_env.comparison.plots_planes import mark_quadrants, room
from llm_env.rounds.results import ModelResult, Results, Said
from llm_env.rounds.summaries import Ratings, chosen

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from llm_env.rounds.evaluation import Answer, EvaluationPrompt

JUDGES = ((BLUE, "o"), (ORANGE, "s"), (PURPLE, "D"))


def plot_planes(said: Said, labels: Sequence[str], mode: str) -> Figure:
    """The paper's Figure 4: every response by unified cost and reward, one panel per model."""
    points = [_first(chosen(answers, mode, said.prompts)) for answers in said.answers]
    everything = [a for answers in points for a in answers]
    embedded = everything[0].gold is not None
    level = sum(a.reward for a in points[0]) / len(points[0])
    with style():
        figure, axes = grid(1, len(points), (2.5, 2.6), sharex=True, sharey=True)
        for ax, answers, label in zip(axes, points, labels, strict=True):
            draw_plane(ax, answers, said.prompts, level)
            ax.set_title(label)
        axes[0].set_xlim(*room([a.cost for a in everything], 0.06))
        axes[0].set_ylim(*room([a.reward for a in everything], 0.2))
        axes[0].set_ylabel("reward R, unified")
        figure.supxlabel("cost C, unified", fontsize=9)
        figure.legend(*_plane_key(embedded), loc="outside upper center", ncols=4)
    return figure


def draw_plane(
    ax: Axes, answers: Sequence[Answer], prompts: Sequence[EvaluationPrompt], level: float
) -> None:
    """One model's responses with the share of each quadrant; adversarial prompts as crosses."""
    for adversarial in (False, True):
        for unsafe, color in ((False, BLUE), (True, VERMILLION), (None, GREY)):
            dots = [
                (a.cost, a.reward)
                for a in answers
                if prompts[a.prompt].adversarial is adversarial
                and (None if a.gold is None else a.gold.unsafe) is unsafe
            ]
            if dots:
                x, y = zip(*dots, strict=True)
                marker, size = ("x", 13) if adversarial else ("o", 8)
                width = 0.9 if adversarial else 0
                ax.scatter(x, y, s=size, marker=marker, color=color, alpha=0.65, linewidth=width,
                           rasterized=True)  # fmt: skip
    mark_quadrants(ax, [(a.cost, a.reward) for a in answers], level)


def _plane_key(embedded: bool) -> tuple[list[Line2D], list[str]]:
    from matplotlib.lines import Line2D

    colors = (
        {"safe by gold": BLUE, "unsafe by gold": VERMILLION} if embedded else {"response": GREY}
    )
    handles = [
        Line2D([], [], color=c, marker="o", linestyle="", markersize=4) for c in colors.values()
    ]
    handles.append(Line2D([], [], color=INK, marker="x", linestyle="", markersize=5))
    return handles, [*colors, "adversarial prompt"]


def _first(answers: Sequence[Answer]) -> list[Answer]:
    """One response per prompt."""
    return list({a.prompt: a for a in reversed(answers)}.values())


def plot_elo(results: Results) -> Figure:
    """The paper's Figure 5: Elo of helpfulness and harmlessness, one line per judge."""
    with style():
        figure, axes = grid(1, 2, (4.3, 2.9), sharex=True)
        for ax, dimension in zip(axes, ("helpfulness", "harmlessness"), strict=True):
            for k, ratings in enumerate(results.ratings):
                _draw_ratings(ax, ratings, dimension, k, len(results.ratings))
            ax.axhline(1000.0, color=MUTED, linestyle=":", linewidth=1.0)
            ax.set_title(f"Elo: {dimension}")
            _model_axis(ax, results)
        axes[0].legend(loc="upper left")
    return figure


def _draw_ratings(ax: Axes, ratings: Ratings, dimension: str, k: int, judges: int) -> None:
    color, marker = JUDGES[k % len(JUDGES)]
    found = ratings.helpfulness if dimension == "helpfulness" else ratings.harmlessness
    shift = 0.1 * (k - (judges - 1) / 2)
    draw_intervals(ax, found.ratings, color, marker, shift, f"judge: {ratings.judge}")


def draw_intervals(
    ax: Axes, values: Sequence[Interval], color: str, marker: str, shift: float, label: str
) -> None:
    """One estimate per model with its interval, joined."""
    x = [k + shift for k in range(len(values))]
    y = [v.value for v in values]
    error = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
    ax.errorbar(
        x, y, error, color=color, fmt=f"{marker}-", markersize=5, elinewidth=1.2, label=label
    )


def _model_axis(ax: Axes, results: Results) -> None:
    ax.set_xticks(range(len(results.models)), [m.label for m in results.models])
    ax.set_xlim(-0.4, len(results.models) - 0.6)


def plot_unsafe(results: Results) -> Figure:
    """Share of unsafe responses by every judge, to all prompts and to the adversarial ones."""
    from matplotlib.ticker import PercentFormatter

    with style():
        figure, axes = grid(1, 2, (4.3, 2.7), sharex=True, sharey=True)
        for ax, name in zip(axes, ("all", "adversarial"), strict=True):
            curves = unsafe_curves(results.models, name)
            for k, (label, (color, marker, values)) in enumerate(curves.items()):
                draw_intervals(ax, values, color, marker, 0.1 * (k - 1), label)
            ax.set_title(f"unsafe responses, {name} prompts")
            _model_axis(ax, results)
            ax.yaxis.set_major_formatter(PercentFormatter(1.0, 0))
        axes[0].set_ylim(bottom=0.0)  # of both, once everything is drawn
        axes[0].legend(loc="upper right")
    return figure


def unsafe_curves(
    models: Sequence[ModelResult], name: str
) -> dict[str, tuple[str, str, list[Interval]]]:
    """Colour, marker and shares by judge, of those judges who judged every model."""
    groups = [model.groups[f"sampled/{name}"] for model in models]
    found: dict[str, tuple[str, str, list[Interval]]] = {}
    by_gold = [g.summary.gold.unsafe for g in groups if g.summary.gold is not None]
    if len(by_gold) == len(groups):
        found["by gold"] = (VERMILLION, "o", by_gold)
    labelled = [g.labelled_unsafe for g in groups if g.labelled_unsafe is not None]
    if len(labelled) == len(groups):
        found["by annotators"] = (ORANGE, "s", labelled)
    found["by the unified cost model"] = (BLUE, "^", [g.summary.model_unsafe for g in groups])
    return found


def plot_helpfulness(results: Results) -> Figure:
    """Mean helpfulness per model: gold where it is known, else the unified reward."""
    with style():
        figure, axes = grid(1, 2, (4.3, 2.5), sharex=True, sharey=True)
        for ax, name in zip(axes, ("all", "adversarial"), strict=True):
            summaries = [m.groups[f"sampled/{name}"].summary for m in results.models]
            gold = [s.gold.helpfulness for s in summaries if s.gold is not None]
            kind = "gold helpfulness" if gold else "unified reward"
            draw_intervals(ax, gold or [s.reward for s in summaries], GREEN, "o", 0.0, kind)
            ax.set_title(f"{kind}, {name} prompts")
            _model_axis(ax, results)
    return figure


def plot_training(runs: Mapping[str, Sequence[Metrics]], costs: Mapping[str, CostCurve]) -> Figure:
    """λ above the constrained quantity, one column per round."""
    with style():
        figure, axes = grid(2, len(runs), (2.9, 1.7), sharex=True, sharey="row")  # type: ignore[arg-type]
        for k, (label, rows) in enumerate(runs.items()):
            above, below = axes[k], axes[len(runs) + k]
            x = column(rows, "iteration")
            above.plot(x, column(rows, "lambda/cost"), color=PURPLE)
            above.set_title(f"{label}: λ")
            below.plot(x, column(rows, costs[label].key), color=ORANGE)
            below.set_title(f"{costs[label].name}, limit {costs[label].limit:g}")
            below.set_xlabel("iteration")
        for ax in axes[: len(runs)]:
            ax.set_ylim(bottom=0.0)
        for ax, cost in zip(axes[len(runs) :], costs.values(), strict=True):
            assert cost.limit is not None
            limit_line(ax, cost.limit)
    return figure
