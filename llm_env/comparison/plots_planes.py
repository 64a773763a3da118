"""Every response in the reward–cost plane, one panel per method: the paper's Figure 4.

Positions are model scores, colours are gold: an orange-red dot on the safe side is missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from constrained_rl.plots import BLUE, MUTED, VERMILLION, grid, style
from llm_env.comparison.evaluate import Mode, Record
from llm_env.comparison.plots import wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


class Placed(Protocol):
    """What a dot of the plane is made of."""

    @property
    def reward(self) -> float:
        """Height."""

    @property
    def cost(self) -> float:
        """Distance to the right."""

    @property
    def unsafe(self) -> bool:
        """Colour."""


def plot_planes(
    records: Mapping[str, Sequence[Record]], labels: Mapping[str, str], mode: Mode
) -> Figure:
    """Every response of a method by model cost and reward, one panel per method, same axes."""
    columns = min(5, len(records))
    chosen = {name: [r for r in said if r.mode == mode] for name, said in records.items()}
    level = _mean([r.reward for r in chosen["sft"]])
    everything = [r for said in chosen.values() for r in said]
    with style():
        height = -(-len(chosen) // columns)
        figure, axes = grid(height, columns, (2.2, 2.1), sharex=True, sharey=True)
        for ax, (name, said) in zip(axes, chosen.items(), strict=False):
            draw_plane(ax, said, level)
            ax.set_title(wrap(labels[name]), fontsize=8.5)
        axes[0].set_xlim(*room([r.cost for r in everything], 0.06))
        axes[0].set_ylim(*room([r.reward for r in everything], 0.2))
        for ax in axes[len(chosen) :]:
            ax.set_axis_off()
        for ax in axes[len(chosen) - columns : len(chosen)]:
            ax.tick_params(labelbottom=True)
        figure.supxlabel("model cost C", fontsize=9)
        figure.supylabel("model reward R", fontsize=9)
        figure.legend(*color_key(), loc="outside upper center", ncols=2)
    return figure


def color_key() -> tuple[list[Line2D], list[str]]:
    """Legend of the two colours of a plane."""
    from matplotlib.lines import Line2D

    colors = {"safe by gold": BLUE, "unsafe by gold": VERMILLION}
    dots = [
        Line2D([], [], color=c, marker="o", linestyle="", markersize=4) for c in colors.values()
    ]
    return dots, list(colors)


def room(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Limits that hold all values (and 0) with a margin for text."""
    low, high = min(0.0, *values), max(0.0, *values)
    extra = margin * (high - low)
    return low - extra, high + extra


def draw_plane(ax: Axes, said: Sequence[Placed], level: float) -> None:
    """One method's responses, coloured by gold, with the share of each quadrant."""
    for unsafe, color in ((False, BLUE), (True, VERMILLION)):
        points = [(r.cost, r.reward) for r in said if r.unsafe is unsafe]
        if points:
            x, y = zip(*points, strict=True)
            ax.scatter(x, y, s=7, color=color, alpha=0.6, linewidth=0, rasterized=True)
    mark_quadrants(ax, [(r.cost, r.reward) for r in said], level)


def mark_quadrants(ax: Axes, points: Sequence[tuple[float, float]], level: float) -> None:
    """Lines at C = 0 and R = level, and the share of the points (C, R) in each corner."""
    ax.axvline(0.0, color=VERMILLION, linestyle=(0, (5, 3)), linewidth=1.2)
    ax.axhline(level, color=MUTED, linestyle=":", linewidth=1.0)
    for right in (False, True):
        for above in (False, True):
            inside = sum((c > 0) is right and (r > level) is above for c, r in points)
            ax.text(
                0.98 if right else 0.02,
                0.98 if above else 0.02,
                f"{inside / len(points):.0%}",
                transform=ax.transAxes,
                ha="right" if right else "left",
                va="top" if above else "bottom",
                fontsize=8.5,
            )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
