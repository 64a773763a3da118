"""Do the bounds of a safety certificate hold as often as they say? A simulation with known means.

    python benchmarks/coverage.py [--repetitions 20000] [--seed 0]

For every distribution, number of samples n and method, coverage is the share of repetitions in
which all K bounds lie at or above the true values; nominal is the confidence, 95 %. K = 3 draws
three independent constraints of the distribution and corrects for them as `SafetyTest` does. Also
kept: the mean slack of a single bound, what its certainty costs. Prints a table and writes
results/coverage.json and docs/images/coverage.svg and .png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from constrained_rl.checkpoint import write_text
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
    save_figure,
    style,
)
from constrained_rl.provenance import provenance
from constrained_rl.safety_test import Method
from constrained_rl.statistics import proportion_interval
from constrained_rl.upper_bounds import (
    bernstein_bound,
    clopper_pearson_bound,
    hoeffding_bound,
    student_t_bound,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]
ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "coverage.json"
FIGURE = ROOT / "docs" / "images" / "coverage"
SIZES = (10, 20, 50, 100, 200, 500, 1000)
CONSTRAINTS = (1, 3)
CONFIDENCE = 0.95
CHUNK = 2000
"""repetitions drawn at a time"""


@dataclass(frozen=True)
class Distribution:
    """Costs of known mean and known P(C > 0)."""

    name: str
    draw: Draw
    mean: float
    positive: float
    bounded: bool = False
    """in [0, 1], so that Hoeffding's and Bernstein's bounds apply"""


def mostly_zero(share: float, costly: Draw) -> Draw:
    """Zero but for a share of episodes."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        return np.where(rng.random(shape) < share, costly(rng, shape), 0.0)

    return draw


DISTRIBUTIONS = (
    Distribution("normal", lambda rng, shape: rng.standard_normal(shape), 0.0, 0.5),
    Distribution("exponential", lambda rng, shape: rng.exponential(size=shape), 1.0, 1.0),
    Distribution(
        "lognormal, σ = 1", lambda rng, shape: rng.lognormal(size=shape), float(np.exp(0.5)), 1.0
    ),
    Distribution("Beta(2, 5)", lambda rng, shape: rng.beta(2, 5, shape), 2 / 7, 1.0, True),
    Distribution(
        "Bernoulli .2", mostly_zero(0.2, lambda rng, shape: np.ones(shape)), 0.2, 0.2, True
    ),
    Distribution(
        "Bernoulli .05", mostly_zero(0.05, lambda rng, shape: np.ones(shape)), 0.05, 0.05, True
    ),
    Distribution(
        "Bernoulli .01", mostly_zero(0.01, lambda rng, shape: np.ones(shape)), 0.01, 0.01, True
    ),
    Distribution(
        "95 % zero, else uniform",
        mostly_zero(0.05, lambda rng, shape: rng.random(shape)),
        0.025,
        0.05,
        True,
    ),
    Distribution(
        "90 % zero, else lognormal",
        mostly_zero(0.1, lambda rng, shape: rng.lognormal(size=shape)),
        0.1 * float(np.exp(0.5)),
        0.1,
    ),
)


@dataclass(frozen=True)
class Cell:
    """One entry of the table."""

    distribution: str
    method: Method
    n: int
    constraints: int
    covered: int
    repetitions: int
    slack: float
    """mean of U − truth, in units of the cost's standard deviation"""

    @property
    def coverage(self) -> float:
        """Share of repetitions in which every bound held."""
        return self.covered / self.repetitions

    @property
    def misses(self) -> bool:
        """Whether coverage is below nominal by more than the simulation's error (99.9 %)."""
        interval = proportion_interval(self.covered, self.repetitions, 0.999, "exact")
        return interval.high < CONFIDENCE


def applicable(distribution: Distribution) -> list[Method]:
    """Methods whose bound has a meaning for these costs."""
    methods: list[Method] = ["t"]
    if distribution.bounded:
        methods += ["hoeffding", "bernstein"]
    if 0 < distribution.positive < 1:
        methods.append("clopper-pearson")
    return methods


def bound(method: Method, costs: Floats, delta: float) -> Floats:
    """Upper bounds over the last axis; bounded costs lie in [0, 1]."""
    match method:
        case "t":
            return student_t_bound(costs, delta)
        case "hoeffding":
            return hoeffding_bound(costs, delta, 0.0, 1.0)
        case "bernstein":
            return bernstein_bound(costs, delta, 0.0, 1.0)
        case "clopper-pearson":
            return clopper_pearson_bound(costs, delta)


def simulate(distribution: Distribution, n: int, repetitions: int, seed: int) -> list[Cell]:
    """Coverage of every applicable method at one sample size, for one constraint and for several.

    All methods see the same samples.
    """
    rng = np.random.default_rng([seed, n, DISTRIBUTIONS.index(distribution)])
    methods, most = applicable(distribution), max(CONSTRAINTS)
    held = {(method, k): 0 for method in methods for k in CONSTRAINTS}
    slack = dict.fromkeys(held, 0.0)
    spread = float(distribution.draw(np.random.default_rng(seed), (10**6,)).std())
    for first in range(0, repetitions, CHUNK):
        rows = min(CHUNK, repetitions - first)
        costs = distribution.draw(rng, (rows, most, n))
        for method, k in held:
            share = method == "clopper-pearson"
            truth = distribution.positive if share else distribution.mean
            scale = (truth * (1 - truth)) ** 0.5 if share else spread
            upper = bound(method, costs[:, :k], (1 - CONFIDENCE) / k)
            held[method, k] += int((upper >= truth).all(axis=1).sum())
            slack[method, k] += float((upper - truth).mean(axis=1).sum()) / scale
    return [
        Cell(distribution.name, method, n, k, held[method, k], repetitions, total / repetitions)
        for (method, k), total in slack.items()
    ]


def print_table(cells: list[Cell], constraints: int, console: Console) -> None:
    """Coverage in per cent; red where it misses the nominal one."""
    table = Table(
        title=f"coverage %, nominal {100 * CONFIDENCE:g}, K = {constraints}", title_justify="left"
    )
    for name in ("costs", "method", *(f"n = {n}" for n in SIZES)):
        table.add_column(name, justify="right" if name.startswith("n =") else "left")
    mine = [cell for cell in cells if cell.constraints == constraints]
    for distribution in DISTRIBUTIONS:
        for method in applicable(distribution):
            row = [c for c in mine if (c.distribution, c.method) == (distribution.name, method)]
            shown = (f"{100 * c.coverage:.1f}" for c in row)
            cells_of_row = (
                f"[red]{s}[/]" if c.misses else s for s, c in zip(shown, row, strict=True)
            )
            table.add_row(distribution.name if method == "t" else "", method, *cells_of_row)
    console.print(table)


def coverage_table(document: Mapping[str, Any], constraints: int) -> str:
    """The committed figures for the documentation; bold where they miss the nominal one."""
    cells = [cell for cell in document["cells"] if cell["constraints"] == constraints]
    sizes = sorted({cell["n"] for cell in cells})
    lines = ["| costs | method | " + " | ".join(f"n = {n}" for n in sizes) + " |"]
    lines.append("|---|---|" + "---|" * len(sizes))
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for cell in cells:
        share = f"{100 * cell['coverage']:.1f}"
        shown = f"**{share}**" if cell["misses"] else share
        rows.setdefault((cell["distribution"], cell["method"]), {})[cell["n"]] = shown
    for (distribution, method), found in rows.items():
        lines.append(f"| {distribution} | {method} | " + " | ".join(found[n] for n in sizes) + " |")
    return "\n".join(lines)


COLORS = (BLUE, ORANGE, PURPLE, SKY, GREEN, VERMILLION, "#7f3b08", GREY, INK)


TITLES: dict[Method, str] = {
    "t": "Student-t",
    "hoeffding": "Hoeffding",
    "bernstein": "empirical Bernstein",
    "clopper-pearson": "Clopper-Pearson",
}
SHOWN = "Bernoulli .05"
"""costs on which the slack of the methods is compared"""


def plot(cells: list[Cell]) -> None:
    """Coverage over n of Student-t and of Clopper-Pearson (K = 1), and what each method costs."""
    single = [cell for cell in cells if cell.constraints == 1]
    with style():
        figure, axes = grid(1, 3, (3.9, 3.4))
        draw_coverage(axes[0], [cell for cell in single if cell.method == "t"])
        axes[0].set_title("Student-t: bound of the mean")
        axes[0].set_ylim(0, 102)
        axes[0].set_ylabel("samples whose bound holds (%)")
        draw_coverage(axes[1], [cell for cell in single if cell.method == "clopper-pearson"])
        axes[1].set_title("Clopper-Pearson: bound of P(C > 0)")
        axes[1].set_ylim(93, 100.3)
        draw_slack(axes[2], [cell for cell in single if cell.distribution == SHOWN])
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=5)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, FIGURE)


def draw_coverage(ax: Axes, cells: list[Cell]) -> None:
    """One method: a line per distribution, nominal dashed."""
    for distribution, color in zip(DISTRIBUTIONS, COLORS, strict=True):
        row = [c for c in cells if c.distribution == distribution.name]
        if row:
            x, y = [c.n for c in row], [100 * c.coverage for c in row]
            ax.plot(x, y, "o-", color=color, markersize=3, label=distribution.name)
    ax.axhline(100 * CONFIDENCE, color=INK, linestyle=(0, (5, 3)), linewidth=1.0)
    ax.set_xscale("log")
    ax.set_xlabel("samples n")


def draw_slack(ax: Axes, cells: list[Cell]) -> None:
    """How far above the truth the bounds lie, a line per method."""
    for (method, title), mark in zip(TITLES.items(), "osD^", strict=True):
        row = [c for c in cells if c.method == method]
        x, y = [c.n for c in row], [c.slack for c in row]
        ax.plot(x, y, f"{mark}-", color=MUTED, markersize=4, label=title)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_title(f"what certainty costs: {SHOWN}")
    ax.set_ylabel("mean of U − truth (sd of a cost)")
    ax.set_xlabel("samples n")
    ax.legend(loc="upper right")


def main() -> None:
    """Simulate, print, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    cells = [
        cell
        for distribution in DISTRIBUTIONS
        for n in SIZES
        for cell in simulate(distribution, n, arguments.repetitions, arguments.seed)
    ]
    console = Console(width=110)
    for constraints in CONSTRAINTS:
        print_table(cells, constraints, console)
    document = {
        "confidence": CONFIDENCE,
        "seed": arguments.seed,
        "cells": [
            asdict(cell) | {"coverage": cell.coverage, "misses": cell.misses} for cell in cells
        ],
        "provenance": provenance(),
    }
    arguments.out.parent.mkdir(exist_ok=True)
    write_text(arguments.out, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    plot(cells)


if __name__ == "__main__":
    main()
