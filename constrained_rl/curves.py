"""`crl plot RUN…`: return, each cost with its limit, and each λ, over the seeds of each setting.

Runs whose configs differ in nothing but the seed are one curve: their mean, with Student's t band
over seeds where there are two or more. Absent: tests of which setting is better.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from constrained_rl.errors import InputError
from constrained_rl.logging import read_metrics
from constrained_rl.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Metrics,
    column,
    grid,
    limit_line,
    save_figure,
    smooth,
    style,
)
from constrained_rl.settings import read_toml
from constrained_rl.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
WITHOUT_EFFECT = ("seed", "device", "threads", "loggers", "checkpoint.", "evaluation.")
"""settings in which runs of one curve may differ"""
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, GREY)


@dataclass(frozen=True)
class Curves:
    """Runs that differ in nothing but the seed."""

    label: str
    runs: tuple[Sequence[Metrics], ...]  # rows of metrics.jsonl of each run


@dataclass(frozen=True)
class Panel:
    """One quantity, and the limits that its settings hold it against."""

    title: str
    key: str
    limits: tuple[float, ...] = ()
    from_zero: bool = False


def read_curves(folders: Sequence[Path]) -> list[Curves]:
    """Read run directories and group them; `InputError` where there is nothing to plot."""
    found: dict[str, list[Sequence[Metrics]]] = {}
    configs: dict[str, dict[str, Any]] = {}
    for folder in {f.resolve(): f for f in folders}.values():  # one that is named twice counts once
        if not (folder / "metrics.jsonl").is_file():
            raise InputError(
                f"{folder} is not a run directory: it has no metrics.jsonl; give folders that "
                "`crl train --out` made, or runs/… inside a comparison"
            )
        rows = read_metrics(folder / "metrics.jsonl")
        if not rows:
            raise InputError(f"{folder}: no iteration has finished yet, there is nothing to plot")
        if "iteration" not in rows[0]:
            raise InputError(
                f"{folder}: its metrics.jsonl has no iterations of reinforcement learning "
                f"({', '.join(rows[0])}); give runs of `crl train` or `crl llm train`"
            )
        config = _settings(folder)
        key = json.dumps(config, sort_keys=True)
        configs[key] = config
        found.setdefault(key, []).append(rows)
    labels = group_labels(list(configs.values()))
    return [Curves(label, tuple(found[key])) for key, label in zip(configs, labels, strict=True)]


def _settings(folder: Path) -> dict[str, Any]:
    """A run's settings, flat and without its seed; its name where it keeps none (token runs)."""
    path = folder / "config.toml"
    tree = read_toml(path) if path.is_file() else {"preset": folder.name}
    return {k: v for k, v in flatten(tree).items() if not k.startswith(WITHOUT_EFFECT)}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as `a.b.c` → value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def group_labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The preset, and what tells a group from the others of its preset."""
    labels = []
    for config in configs:
        rivals = [c for c in configs if c.get("preset") == config.get("preset")]
        keys = [key for key in config if any(c.get(key) != config[key] for c in rivals)]
        if len({c.get("env.id") for c in configs}) > 1:
            keys = ["env.id", *(key for key in keys if key != "env.id")]
        parts = [f"{key}={config.get(key)}" for key in keys]
        labels.append(", ".join([str(config.get("preset", "run")), *parts]))
    return labels


def panels(curves: Sequence[Curves]) -> list[Panel]:
    """Return, every cost (the constrained estimate where there is one), every λ."""
    keys = {key: None for group in curves for rows in group.runs for row in rows for key in row}
    names = [key.removeprefix("estimate/") for key in keys if key.startswith("estimate/")]
    raw = [key.removeprefix("cost/") for key in keys if key.startswith("cost/")]
    return [
        Panel("return", "return/mean"),
        *(
            Panel(f"cost: {name}", f"estimate/{name}", _limits(curves, name), from_zero=True)
            for name in names
        ),
        *(Panel(f"cost: {name}", f"cost/{name}", (), True) for name in raw if name not in names),
        *(Panel(f"λ: {name}", f"lambda/{name}", (), True) for name in names),
    ]


def _limits(curves: Sequence[Curves], name: str) -> tuple[float, ...]:
    """The different limits of one cost; a sweep of limits has several."""
    rows = (row for group in curves for row in group.runs[0])
    return tuple(sorted({row[f"limit/{name}"] for row in rows if f"limit/{name}" in row}))


def lines(runs: Sequence[Sequence[Metrics]], key: str) -> Floats:
    """One metric, smoothed as in a run's report: [runs, iterations], NaN where there is none."""
    found = np.full((len(runs), max(len(rows) for rows in runs)), math.nan)
    for line, rows in zip(found, runs, strict=True):
        line[: len(rows)] = smooth(column(rows, key), len(rows) // 20 * 2 + 1)
    return found


def band(values: Floats) -> Floats:
    """Mean, low and high [3, iterations] over runs; the mean alone where one run is left."""
    result = np.full((3, values.shape[1]), math.nan)
    for i, sample in enumerate(values.T):
        known = sample[np.isfinite(sample)]
        if known.size == 1:
            result[:, i] = known[0]
        elif known.size > 1:
            interval = mean_interval(known)
            result[:, i] = interval.value, interval.low, interval.high
    return result


def plot_curves(curves: Sequence[Curves]) -> Figure:
    """Return and costs above, each λ below its cost; one colour per setting.

    Bands are 95% intervals over seeds.
    """
    shown, time = panels(curves), _time(curves)
    above = [panel for panel in shown if not panel.key.startswith("lambda/")]
    below = [panel for panel in shown if panel.key.startswith("lambda/")]
    with style():
        figure, axes = grid(2 if below else 1, len(above), (4.2, 2.7))
        places = dict(zip(axes, [*above, None, *below], strict=False))
        for ax in axes:
            panel = places.get(ax)
            if panel is None:
                ax.set_axis_off()
            else:
                _draw_panel(ax, curves, panel, time)
        handles, labels = axes[0].get_legend_handles_labels()
        if handles and below:  # else no episode has finished; the place under the return is free
            axes[len(above)].legend(handles, labels, loc="center")
        elif handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    return figure


def _draw_panel(ax: Axes, curves: Sequence[Curves], panel: Panel, time: str) -> None:
    drawn = [
        _draw(ax, group, panel.key, color, time)
        for group, color in zip(curves, _cycle(len(curves)), strict=True)
    ]
    view = ax.get_ylim()  # of the runs: the interval of few seeds must not stretch it
    for fill in drawn:
        fill()
    ax.set_ylim(view)
    _finish(ax, panel, time)


def _cycle(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def _time(curves: Sequence[Curves]) -> str:
    """Decisions where the runs of a setting count them alike, to 2 %; else iterations.

    Reset steps are no decisions, so counts differ a little; responses differ in length.
    """
    for group in curves:
        shared = min(len(rows) for rows in group.runs)
        counts = [rows[shared - 1]["decisions"] for rows in group.runs]
        if max(counts) > 1.02 * min(counts):
            return "iteration"
    return "decisions"


def _draw(ax: Axes, group: Curves, key: str, color: str, time: str) -> Callable[[], object]:
    """Draw each run thinly and their mean; returns what fills the mean's interval."""
    longest = max(group.runs, key=len)
    x = np.array([row[time] for row in longest]) / (1000 if time == "decisions" else 1)
    values = lines(group.runs, key)
    if not np.isfinite(values).any():
        return lambda: None
    several = len(group.runs) > 1
    for line in values if several else ():
        ax.plot(x, line, color=color, linewidth=0.7, alpha=0.35)
    mean, low, high = band(values)
    seeds = f" ({len(group.runs)} seeds)" if several else ""
    ax.plot(x, mean, color=color, label=group.label + seeds, marker="o" if len(x) == 1 else None)
    return lambda: ax.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)


def _finish(ax: Axes, panel: Panel, time: str) -> None:
    ax.set_title(panel.title)
    ax.set_xlabel("decisions (thousands)" if time == "decisions" else "iteration")
    drawn = [float(np.nanmin(np.asarray(line.get_ydata(), float))) for line in ax.get_lines()]
    if panel.from_zero and drawn and min(drawn) >= 0:
        ax.set_ylim(bottom=0)
    for limit in panel.limits:
        limit_line(ax, limit)


def save_curves(curves: Sequence[Curves], out: Path) -> list[Path]:
    """Write curves.svg and curves.png into `out`; returns their paths."""
    figure = plot_curves(curves)
    out.mkdir(parents=True, exist_ok=True)
    return save_figure(figure, out / "curves")
