"""The figure: regret and violation of every rule on every problem, at one glance."""

from __future__ import annotations

from pathlib import Path

from exact_report import Document, played, value_of
from exact_summary import columns
from target_map import draw_maps


def draw(document: Document, stem: Path) -> list[Path]:
    """Two maps, problem × rule."""
    scores = played(document)
    rules = columns(scores)
    titles = {"regret": "regret of the last policy, %", "violation": "its largest violation, %"}
    panels = {
        title: (
            [[value_of(of.get(rule, {}), key) for rule in rules] for of in scores.values()],
            document["targets"][key],
        )
        for key, title in titles.items()
    }
    return draw_maps(panels, list(scores), rules, stem)
