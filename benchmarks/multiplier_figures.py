"""The figures of the study: λ over training against λ*, and a map of what each change costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from target_map import draw_maps

from constrained_rl.plots import BLUE, MUTED, grid, save_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRACES = ("as it is", "λ₀ = 10 λ*", "limit steps down")
"""conditions whose λ is drawn"""


def draw_traces(records: Sequence[Mapping[str, Any]], rules: Sequence[str], stem: Path) -> None:
    """λ of the first constraint of the first problem, a row per condition, a panel per rule."""
    problem = records[0]["problem"]
    shown = [c for c in TRACES if any(r["condition"] == c for r in records)]
    with style():
        figure, axes = grid(len(shown), len(rules), (1.7, 1.5), sharex=True, sharey=True)
        panels = np.array(axes).reshape(len(shown), len(rules))
        for (i, j), ax in np.ndenumerate(panels):
            chosen = [
                record
                for record in records
                if record["problem"] == problem
                and (record["condition"], record["rule"]) == (shown[i], rules[j])
            ]
            _trace(ax, chosen)
            if i == 0:
                ax.set_title(rules[j])
            if j == 0:
                ax.set_ylabel(f"{shown[i]}\nλ / λ*")
            if i == len(shown) - 1:
                ax.set_xlabel("iteration")
    save_figure(figure, stem)


def _trace(ax: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    """λ / λ* of every seed; logarithmic beyond 2, so that 10 λ* fits. Says how many failed."""
    ax.set_yscale("symlog", linthresh=2, linscale=2)
    ax.set_ylim(0, 40)
    ax.set_yticks([0, 1, 2, 10, 30], ["0", "1", "2", "10", "30"])
    ax.axhline(1, color=MUTED, linewidth=0.8, linestyle="--")
    fine = [record for record in records if "failed" not in record]
    if len(fine) < len(records):
        said = "failed" if not fine else f"{len(records) - len(fine)} failed"
        ax.text(0.5, 0.93, said, ha="center", va="top", color=MUTED, transform=ax.transAxes)
    for record in fine:
        lam = np.array(record["lambda"])[:, 0] / record["price"][0]
        ax.plot(record["iterations"], np.clip(lam, 0, 40), color=BLUE, linewidth=0.9)


def draw_map(table: Mapping[str, Mapping[str, Mapping[str, Any]]], stem: Path) -> None:
    """Condition × rule: mean regret of the last policies and their largest violation."""
    conditions = list(table)
    rules = list(table[conditions[0]])
    kinds = {
        "mean regret of the last policies, %": ("regret", 0.02),
        "their largest violation, %": ("violation", 0.05),
    }
    panels = {
        title: ([[table[c].get(rule, {}).get(key) for rule in rules] for c in conditions], target)
        for title, (key, target) in kinds.items()
    }
    draw_maps(panels, conditions, [rule.replace("_", " ") for rule in rules], stem, "failed")
