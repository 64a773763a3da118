"""What the runs of `control.py` come to, over seeds, in the units of the problem itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from over_seeds import markdown
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
HEADS = (
    "problem",
    "rule",
    "seeds",
    "return",
    "costs (limits)",
    "violation %: mean, worst",
    "within 5 %",
    "mixture's costs",
    "last policy: violation %",
    "within 5 %",
    "λ",
    "while training %",
    "CPU s",
)
CENT = 100


def table_of(
    runs: Sequence[Mapping[str, Any]], units: Mapping[str, tuple[float, float]]
) -> list[Row]:
    """A row per problem and rule; where a run failed, the others' figures say nothing.

    Args:
        runs: as `control.play_and_keep` made them.
        units: factors of rewards and of costs of each problem, which are divided out.
    """
    pairs = dict.fromkeys((run["problem"], run["rule"]) for run in runs)
    table = []
    for problem, rule in pairs:
        chosen = [run for run in runs if (run["problem"], run["rule"]) == (problem, rule)]
        failed = sum("failed" in run for run in chosen)
        row = {"problem": problem, "rule": rule, "seeds": len(chosen), "failed": failed}
        table.append(row if failed else row | figures(chosen, *units[problem]))
    return table


def figures(runs: Sequence[Mapping[str, Any]], reward: float, cost: float) -> Row:
    """Means over seeds; the price of a cost has the units of reward / cost."""
    costs = np.array([[found["value"] for found in run["mean"]["cost"]] for run in runs])
    begun = [run["feasible_from"] for run in runs]
    return {
        "return": [run["mean"]["return"]["value"] / reward for run in runs],
        "cost": (costs.mean(axis=0) / cost).tolist(),
        "limit": (np.array(runs[0]["limit"]) / cost).tolist(),
        "mixture": (np.mean([run["mixture"] for run in runs], axis=0) / cost).tolist(),
        "mean": kept_limits([run["mean"] for run in runs]),
        "last": kept_limits([run["last"] for run in runs]),
        "lambda": (np.mean([run["lambda"] for run in runs], axis=0) * cost / reward).tolist(),
        "violation_regret": float(np.mean([run["violation_regret"] for run in runs])),
        "feasible_from": None if None in begun else float(np.median(begun)),
        "cpu_seconds": float(np.median([run["cpu_seconds"] for run in runs])),
    }


def kept_limits(policies: Sequence[Mapping[str, Any]]) -> Row:
    """How one kind of policy kept the limits, over seeds."""
    violations = [policy["violation"] for policy in policies]
    return {
        "violation": float(np.mean(violations)),
        "worst": max(violations),
        "within": sum(all(policy["kept"]) for policy in policies),
    }


def cells(row: Row) -> list[str]:
    """A row as text; the return of every seed, as so few have no interval worth its name."""
    names = [row["problem"], row["rule"], str(row["seeds"])]
    if row["failed"]:
        return [*names, f"{row['failed']} failed", *["–"] * (len(HEADS) - 4)]
    pairs = zip(row["cost"], row["limit"], strict=True)
    return [
        *names,
        " ".join(f"{value:.2f}" for value in row["return"]).replace("-", "−"),
        ", ".join(f"{cost:.3g} ({limit:.3g})" for cost, limit in pairs),
        *limits_text(row["mean"], row["seeds"]),
        ", ".join(f"{cost:.3g}" for cost in row["mixture"]),
        *limits_text(row["last"], row["seeds"]),
        ", ".join(f"{each:.3g}" for each in row["lambda"]),
        f"{CENT * row['violation_regret']:.0f}",
        f"{row['cpu_seconds']:.0f}",
    ]


def limits_text(kept: Row, seeds: int) -> tuple[str, str]:
    """Mean and worst violation, and in how many seeds it is small."""
    violation = f"{CENT * kept['violation']:.1f}, {CENT * kept['worst']:.1f}"
    return violation, f"{kept['within']} of {seeds}"


def page_blocks(document: Mapping[str, Any]) -> dict[str, str]:
    """The table of docs/multipliers.md."""
    return {"table:control": markdown((list(HEADS), [cells(row) for row in document["table"]]))}


def show(table: Sequence[Row]) -> None:
    """The table in the terminal."""
    view = Table(
        *HEADS, box=SIMPLE_HEAD, title="the mean of the last policies, on 2000 fresh episodes"
    )
    for row in table:
        view.add_row(*cells(row))
    Console(width=None if sys.stdout.isatty() else 190).print(view)
