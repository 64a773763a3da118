"""The figure: regret and violation of every rule on every problem, at one glance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from exact_report import Document, played, value_of
from exact_summary import RULES

from constrained_rl.plots import BLUE, INK, MUTED, VERMILLION, grid, save_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(document: Document, stem: Path) -> list[Path]:
    """Two maps, problem × rule: regret and violation, blue where the target is met."""
    scores = played(document)
    rules = [rule for rule in RULES if any(rule in of for of in scores.values())]
    panels = {"regret": "regret of the last policy, %", "violation": "its largest violation, %"}
    with style():
        size = (0.56 * len(rules) + 0.9, 0.29 * len(scores) + 1.1)
        figure, axes = grid(1, 2, size, sharey=True)
        for ax, (key, title) in zip(axes, panels.items(), strict=True):
            rows = [[value_of(of.get(rule, {}), key) for rule in rules] for of in scores.values()]
            target = document["targets"][key]
            _map(ax, rows, target)
            ax.set_title(f"{title} (target ≤ {100 * target:g})")
            ax.set_xticks(range(len(rules)), [rule.replace(" ", "\n") for rule in rules])
            ax.set_yticks(range(len(scores)), list(scores))
    return save_figure(figure, stem)


def _map(ax: Axes, rows: Sequence[Sequence[float | None]], target: float) -> None:
    """Shares as colours by their ratio to the target: blue at a tenth of it, red at 30 times."""
    from matplotlib.colors import LinearSegmentedColormap

    values = np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=float)
    decades = np.log10(np.clip(values / target, 0.1, 30))
    position = np.where(decades <= 0, 0.5 * (1 + decades), 0.5 + 0.5 * decades / np.log10(30))
    colors = LinearSegmentedColormap.from_list("target", [BLUE, "#cfe6f5", "#fbe3d3", VERMILLION])
    ax.imshow(position, cmap=colors, vmin=0, vmax=1, aspect="auto")
    ax.grid(visible=False)
    ax.tick_params(length=0, labelsize=7.5)
    for (i, j), value in np.ndenumerate(values):
        met = value <= target
        text = "–" if np.isnan(value) else f"{100 * value:.{1 if value < 0.0995 else 0}f}"
        dark = position[i, j] < 0.2
        ax.text(
            j,
            i,
            text,
            ha="center",
            va="center",
            fontsize=8,
            weight="bold" if met else "normal",
            color="white" if dark else MUTED if np.isnan(value) else INK,
        )
