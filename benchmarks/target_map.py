"""A table of shares as a picture: what meets its target is blue, what misses it far is red."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from constrained_rl.plots import BLUE, INK, MUTED, VERMILLION, grid, save_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = tuple[Sequence[Sequence[float | None]], float]
"""shares [rows, columns], and the target they should not exceed"""


def draw_maps(
    panels: Mapping[str, Panel],
    rows: Sequence[str],
    columns: Sequence[str],
    stem: Path,
    missing: str = "–",
) -> list[Path]:
    """Maps side by side, by title, of the same rows and columns; `missing` stands for no figure."""
    with style():
        size = (max(0.56 * len(columns) + 0.9, 2.5), 0.29 * len(rows) + 1.1)
        figure, axes = grid(1, len(panels), size, sharey=True)
        for ax, (title, (shares, target)) in zip(axes, panels.items(), strict=True):
            values = np.array([[np.nan if x is None else x for x in row] for row in shares])
            _cells(ax, values, target, missing)
            ax.set_title(f"{title} (blue: ≤ {100 * target:g})")
            ax.set_xticks(range(len(columns)), [name.replace(" ", "\n") for name in columns])
            ax.set_yticks(range(len(rows)), rows)
    return save_figure(figure, stem)


def _cells(ax: Axes, values: NDArray[np.float64], target: float, missing: str) -> None:
    """Shares as colours by their ratio to the target: blue at a tenth of it, red at 30 times."""
    from matplotlib.colors import LinearSegmentedColormap

    decades = np.log10(np.clip(values / target, 0.1, 30))
    position = np.where(decades <= 0, 0.5 * (1 + decades), 0.5 + 0.5 * decades / np.log10(30))
    colors = LinearSegmentedColormap.from_list("target", [BLUE, "#cfe6f5", "#fbe3d3", VERMILLION])
    ax.imshow(position, cmap=colors, vmin=0, vmax=1, aspect="auto")
    ax.grid(visible=False)
    ax.tick_params(length=0, labelsize=7.5)
    for (i, j), value in np.ndenumerate(values):
        known = not np.isnan(value)
        text = f"{100 * value:.{1 if value < 0.0995 else 0}f}" if known else missing
        ax.text(
            j,
            i,
            text,
            ha="center",
            va="center",
            fontsize=8,
            weight="bold" if value <= target else "normal",
            color=MUTED if not known else "white" if position[i, j] < 0.2 else INK,
        )
