"""The figure of docs/enumerable_language.md: exact frontiers with trained policies, and λ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from enumerable_cases import EVERY, LIMIT, STREAMS, problem_of
from resumable import IMAGES

from constrained_rl.advantages import KLStreams
from constrained_rl.plots import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    VERMILLION,
    grid,
    limit_line,
    save_figure,
    style,
)
from llm_env.enumerable.optimum import frontier
from llm_env.enumerable.small_world import SmallWorld, small_world

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = IMAGES / "enumerable_language"
COLORS = {"scale_free": BLUE, "pid": ORANGE, "linear": GREEN, "log": PURPLE}
SEED = 0
"""language shown"""


def draw(rows: Sequence[dict[str, Any]]) -> None:
    """One row of axes per kl_streams: E[R] over E[C], KL over E[C], λ over iterations."""
    world = small_world(SEED)
    with style():
        figure, axes = grid(2, 3, (3.7, 2.9))
        for number, kl_streams in enumerate(STREAMS):
            mine = [r for r in rows if (r["seed"], r["kl_streams"]) == (SEED, kl_streams)]
            row = axes[3 * number : 3 * number + 3]
            draw_frontier(row[0], world, kl_streams, mine, "reward")
            draw_frontier(row[1], world, kl_streams, mine, "kl")
            draw_multipliers(row[2], mine)
            row[0].set_title(f'kl_streams = "{kl_streams}"')
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=7)
    save_figure(figure, FIGURE)


def draw_frontier(
    ax: Axes, world: SmallWorld, kl_streams: KLStreams, rows: Sequence[dict[str, Any]], what: str
) -> None:
    """The exact best policies over all prices, and where training ended."""
    prices = [np.array([lam]) for lam in np.geomspace(0.01, 30, 80)]
    points = frontier(problem_of(world, kl_streams), [np.zeros(1), *prices])
    kept = [p for p in points if p.cost[0] > LIMIT - 1.5]
    ax.plot([p.cost[0] for p in kept], [getattr(p, what) for p in kept], color=INK, label="exact")
    for row in rows:
        color = COLORS[row["controller"]]
        ax.plot(row["cost"], row[what], "o", color=color, ms=5, label=row["controller"])
    if rows:
        best = rows[0]["optimum"]
        ax.plot(best["cost"], best[what], "*", color=VERMILLION, ms=11, zorder=1, label="optimum")
    limit_line(ax, LIMIT, "x")
    ax.set_xlabel("E[C], exact")
    ax.set_ylabel({"reward": "E[R], exact", "kl": "KL to the reference, nats"}[what])


def draw_multipliers(ax: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """λ over iterations, λ* dashed."""
    for row in rows:
        iterations = EVERY * np.arange(len(row["lambda"]))
        ax.plot(iterations, row["lambda"], color=COLORS[row["controller"]], lw=1.0)
    if rows:
        ax.axhline(rows[0]["optimum"]["lambda"], color=MUTED, linestyle=(0, (5, 3)))
    ax.set_ylim(0, None)
    ax.set_ylabel("λ (dashed: λ*)")
    ax.set_xlabel("iteration")
