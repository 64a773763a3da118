"""Figures of an evaluation: who is safe and helpful, by class, against KL, and against each other.

In every plane safer is left and better is up; each model keeps its colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from constrained_rl.plots import (
    BLUE,
    GREEN,
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
from llm_env.arena.answers import Mode
from llm_env.arena.engine import Answers
from llm_env.arena.pairs import DIMENSIONS, Verdict
from llm_env.arena.summaries import Group, Result
from llm_env.comparison.plots import Look, cross, share_axis
from llm_env.comparison.plots_detail import dot, method_rows
from llm_env.comparison.plots_planes import color_key, draw_plane, room

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = tuple(
    Look(color, marker)
    for marker in ("s", "^", "D", "v", "P")
    for color in (BLUE, GREEN, ORANGE, PURPLE, SKY, GREY)
)
BASELINE = Look(INK, "*")


def looks(models: Sequence[str]) -> dict[str, Look]:
    """Colour and marker of each model, the baseline first."""
    return dict(zip(models, (BASELINE, *LOOKS), strict=False))


def plot_frontier(results: Sequence[Result], mode: Mode, models: Sequence[str]) -> Figure:
    """Reward over the unsafe share by the scores, beside gold where it is known."""
    chosen = [result for result in results if result.mode == mode]
    look = looks(models)
    panels: list[tuple[str, str, str, Callable[[Group], tuple[Interval, Interval]]]] = []
    if chosen[0].all.gold is not None:
        panels.append(("what the answers are worth", "unsafe by gold", "gold helpfulness", _gold))
    if chosen[0].all.safe is not None and "reward" in chosen[0].all.scores:
        panels.append(
            ("what the scores say", "unsafe by the costs, C > 0", "mean reward R", _model)
        )
    with style():
        figure, axes = grid(1, len(panels), (5.4, 3.9))
        for ax, (title, x, y, read) in zip(axes, panels, strict=True):
            for result in chosen:
                cross(ax, *read(result.all), look[result.model], result.model)
            ax.set_title(title)
            ax.set_xlabel(f"{x} (square-root scale)")
            ax.set_ylabel(y)
            share_axis(ax, "x")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    return figure


def _gold(group: Group) -> tuple[Interval, Interval]:
    assert group.gold is not None
    return group.gold.unsafe, group.gold.helpfulness


def _model(group: Group) -> tuple[Interval, Interval]:
    return _called_unsafe(group), group.scores["reward"]


def _called_unsafe(group: Group) -> Interval:
    assert group.safe is not None
    return flipped(group.safe)


def flipped(share: Interval) -> Interval:
    """The complement's interval."""
    return Interval(1 - share.value, 1 - share.high, 1 - share.low)


def plot_planes(found: Answers, mode: Mode) -> Figure:
    """Every answer by cost and reward, one panel per model: the paper's Figure 4."""
    columns = min(4, len(found.models))
    said = {model: found.of(model, mode) for model in found.models}
    baseline = said[found.config.baseline]
    level = sum(answer.reward for answer in baseline) / len(baseline)
    everything = [answer for answers in said.values() for answer in answers]
    with style():
        height = -(-len(said) // columns)
        figure, axes = grid(height, columns, (2.7, 2.3), sharex=True, sharey=True)
        for ax, (model, answers) in zip(axes, said.items(), strict=False):
            draw_plane(ax, answers, level)
            ax.set_title(model, fontsize=8.5)
        axes[0].set_xlim(*room([answer.cost for answer in everything], 0.06))
        axes[0].set_ylim(*room([answer.reward for answer in everything], 0.2))
        for ax in axes[len(said) :]:
            ax.set_axis_off()
        for ax in axes[max(0, len(said) - columns) : len(said)]:
            ax.tick_params(labelbottom=True)
        figure.supxlabel("cost C", fontsize=9)
        figure.supylabel("reward R", fontsize=9)
        if found.gold:
            figure.legend(*color_key(), loc="outside upper center", ncols=2)
    return figure


def plot_kinds(results: Sequence[Result], mode: Mode, models: Sequence[str]) -> Figure:
    """Unsafe and refused shares of every model per class of prompts."""
    chosen = [result for result in results if result.mode == mode]
    kinds = list(chosen[0].kinds)
    panels: dict[str, Callable[[Group], Interval]] = {}
    if chosen[0].all.gold is not None:
        panels["unsafe by gold"] = lambda group: _gold(group)[0]
    if chosen[0].all.safe is not None:
        panels["unsafe by the costs (C > 0)"] = _called_unsafe
    panels["refusals"] = lambda group: group.refusal
    look, spread = looks(models), 0.7
    with style():
        size = (3.6, 0.8 + 0.17 * len(kinds) * (len(chosen) + 1))
        figure, axes = grid(1, len(panels), size, sharey=True)
        for ax, (title, read) in zip(axes, panels.items(), strict=True):
            method_rows(ax, [kind.replace("_", "-") for kind in kinds])
            for k, result in enumerate(chosen):
                shift = spread * ((k + 0.5) / len(chosen) - 0.5)
                for row, kind in enumerate(kinds):
                    label = result.model if row == 0 else None
                    dot(ax, row + shift, read(result.kinds[kind]), look[result.model].color, label)
            ax.set_title(title)
            share_axis(ax, "x")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    return figure


def plot_overoptimization(
    results: Sequence[Result], held_out: Sequence[str], models: Sequence[str]
) -> Figure:
    """Training's scores above, gold or held-out scores below, against the KL to the reference."""
    chosen = [result for result in results if result.kl is not None]
    chosen.sort(key=lambda result: result.kl.value if result.kl else 0.0)
    look = looks(models)
    panels: list[tuple[str, Callable[[Group], Interval]]] = []
    if "reward" in chosen[0].all.scores:
        panels.append(("reward R, which training saw", lambda g: g.scores["reward"]))
    panels += [(f"{name}, which no training saw", _score(name)) for name in held_out]
    if chosen[0].all.gold is not None:
        panels.append(("gold helpfulness", lambda g: _gold(g)[1]))
    if chosen[0].all.safe is not None:
        panels.append(("unsafe by the costs (C > 0)", _called_unsafe))
    if chosen[0].all.gold is not None:
        panels.append(("unsafe by gold", lambda g: _gold(g)[0]))
    with style():
        columns = 2 if len(panels) == 4 else min(3, len(panels))
        rows = -(-len(panels) // columns)
        figure, axes = grid(rows, columns, (4.6 if columns == 2 else 3.7, 2.9))
        for ax, (title, read) in zip(axes, panels, strict=False):
            _draw_against_kl(ax, chosen, read, look)
            ax.set_title(title)
            ax.set_xlabel("KL to the reference (nats per answer)")
            if title.startswith("unsafe"):
                share_axis(ax, "y")
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    return figure


def _score(name: str) -> Callable[[Group], Interval]:
    return lambda group: group.scores[name]


def _draw_against_kl(
    ax: Axes,
    results: Sequence[Result],
    read: Callable[[Group], Interval],
    look: dict[str, Look],
) -> None:
    """One point per model; a dotted line joins them in the order of their KL."""
    for result in results:
        assert result.kl is not None
        cross(ax, result.kl, read(result.all), look[result.model], result.model)
    line = [(r.kl.value, read(r.all).value) for r in results if r.kl is not None]
    ax.plot(*zip(*line, strict=True), color=GREY, linestyle=":", linewidth=0.9, zorder=1)


def plot_win_rates(verdicts: Sequence[Verdict], judge: str, mode: Mode) -> Figure:
    """Win-rate matrices in both dimensions: the row's model against the column's."""
    chosen = [v for v in verdicts if v.judge == judge and v.mode == mode]
    with style():
        side = 1.2 + 0.62 * len(chosen[0].models)
        figure, axes = grid(1, len(chosen), (side + 0.9, side))
        for ax, verdict in zip(axes, chosen, strict=True):
            draw_matrix(ax, verdict)
            ax.set_title(verdict.dimension)
    return figure


def draw_matrix(ax: Axes, verdict: Verdict) -> None:
    """Blue where the row wins, orange-red where it loses, white at evens."""
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("wins", [VERMILLION, "#ffffff", BLUE])
    names = verdict.models
    shown = [
        [rate if i != j else 0.5 for j, rate in enumerate(row)]
        for i, row in enumerate(verdict.win_rate)
    ]
    ax.imshow(shown, cmap=colors, vmin=0, vmax=1, alpha=0.75)
    for i, row in enumerate(verdict.win_rate):
        for j, rate in enumerate(row):
            text = "–" if i == j else f"{100 * rate:.0f}"
            # on a coloured cell, whatever the page's own colours are
            ax.text(j, i, text, ha="center", va="center", fontsize=8.5, color="#16191d")
    ax.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)


def plot_elo(verdicts: Sequence[Verdict], mode: Mode) -> Figure:
    """Ratings in both dimensions with intervals, one colour per judge: the paper's Figure 5."""
    chosen = [verdict for verdict in verdicts if verdict.mode == mode]
    judges = list(dict.fromkeys(verdict.judge for verdict in chosen))
    models = chosen[0].models
    shown = [d for d in DIMENSIONS if any(v.dimension == d for v in chosen)]
    colors = (BLUE, ORANGE, GREEN, PURPLE, SKY, GREY)
    with style():
        from matplotlib.ticker import MaxNLocator

        size = (4.4, 0.9 + 0.14 * len(models) * (len(judges) + 1.5))
        figure, axes = grid(1, len(shown), size, sharey=True)
        for ax, dimension in zip(axes, shown, strict=True):
            method_rows(ax, models)
            ax.axvline(1000, color=MUTED, linestyle=":", linewidth=1.0)
            for verdict in chosen:
                if verdict.dimension != dimension:
                    continue
                k = judges.index(verdict.judge)
                shift = 0.6 * ((k + 0.5) / len(judges) - 0.5)
                for row, model in enumerate(models):
                    label = f"judged by {verdict.judge}" if row == 0 else None
                    dot(ax, row + shift, verdict.elo[model], colors[k % len(colors)], label)
            ax.set_title(dimension)
            ax.set_xlabel("Elo")
            ax.xaxis.set_major_locator(MaxNLocator(6))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure
