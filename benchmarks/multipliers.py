"""How does λ move under each rule, and what does each rule forgive? A study on known optima.

    python benchmarks/multipliers.py            # all of docs/multipliers.md; can be killed, goes on
    python benchmarks/multipliers.py --quick    # one problem, three conditions, one seed

Step response, recovery from a bad start, gain, units, batch, stale estimates: every rule trains
through the ordinary loop with the same settings, one thing changed at a time, and every fifth
policy is evaluated exactly. Finished runs are kept under --runs and used again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from multiplier_cases import CONDITIONS, ON, RULES, studies
from multiplier_figures import draw_map, draw_traces
from multiplier_runs import run_of
from over_seeds import markdown
from resumable import (
    IMAGES,
    Record,
    add_options,
    finished,
    keep_result,
    positive,
    rounded,
)
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from constrained_rl.provenance import provenance

WITHIN = 0.05
"""violation up to which a run counts as within the limits"""
Summary = dict[str, dict[str, dict[str, Any]]]


def summary(records: Sequence[Record]) -> Summary:
    """Figures by condition and rule, over problems and seeds."""
    table: Summary = {}
    for condition in (condition.name for condition in CONDITIONS):
        for rule in (rule.name for rule in RULES):
            chosen = [r for r in records if (r["condition"], r["rule"]) == (condition, rule)]
            if chosen:
                table.setdefault(condition, {})[rule] = cell(chosen)
    return table


def cell(records: Sequence[Record]) -> dict[str, Any]:
    """One rule under one condition. Where a run failed, the others' figures say nothing."""
    fine = [record for record in records if "failed" not in record]
    found: dict[str, Any] = {"runs": len(records), "failed": len(records) - len(fine)}
    if found["failed"]:
        return found
    violations = [record["last"]["violation"] for record in fine]
    regrets = [r["last"]["regret"] for r in fine if r["last"]["regret"] is not None]
    settled = [record["settling"] for record in fine if record["settling"] is not None]
    return found | {
        "regret": float(np.mean(regrets)) if regrets else None,
        "violation": float(max(violations)),
        "within": sum(violation <= WITHIN for violation in violations) / len(records),
        "ergodic_regret": float(np.mean([r["ergodic"]["regret"] for r in fine]))
        if regrets
        else None,
        "ergodic_violation": float(max(r["ergodic"]["violation"] for r in fine)),
        "error": float(np.median([record["error"] for record in fine])),
        "overshoot": float(np.median([record["overshoot"] for record in fine])),
        "oscillation": float(np.median([record["oscillation"] for record in fine])),
        "settling": float(np.median(settled)) if len(settled) == len(fine) else None,
        "cpu_seconds": float(np.mean([record["cpu_seconds"] for record in fine])),
    }


def rows_of(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[list[str]]:
    """A row per condition and rule, as text."""

    def percent(found: Mapping[str, Any], key: str) -> str:
        value = found.get(key)
        return "–" if value is None else f"{100 * value:.{1 if abs(value) < 0.1 else 0}f}"

    keys = ("regret", "violation", "ergodic_regret", "ergodic_violation", "error")
    rows = []
    for condition, rules in table.items():
        for rule, found in rules.items():
            settling = found.get("settling")
            rows.append(
                [
                    condition,
                    rule,
                    *(percent(found, key) for key in keys),
                    *(percent(found, key) for key in ("overshoot", "oscillation")),
                    "never" if settling is None else f"{settling:.0f}",
                    f"{round(found.get('within', 0) * found['runs'])} of {found['runs']}",
                ]
            )
    return rows


HEADS = (
    "condition",
    "rule",
    "regret",
    "violation",
    "averaged: regret",
    "violation",
    "λ error",
    "overshoot",
    "oscillation",
    "settled after",
    "≤ 5 %",
)


def show(table: Summary, console: Console) -> None:
    """The table; shares in per cent."""
    view = Table(
        *HEADS, box=SIMPLE_HEAD, title="the last policy, in per cent; settled in iterations"
    )
    previous = ""
    for row in rows_of(table):
        view.add_row("" if row[0] == previous else row[0], *row[1:])
        previous = row[0]
    console.print(view)


def page_blocks(document: Mapping[str, Any]) -> dict[str, str]:
    """The tables of docs/multipliers.md: answers to a step, and what changes cost each problem."""
    blocks = {}
    for name in dict.fromkeys(run["problem"] for run in document["runs"]):
        table = summary([run for run in document["runs"] if run["problem"] == name])
        steps = {key: table[key] for key in ("as it is", "limit steps down") if key in table}
        blocks[f"table:response_{name}"] = markdown((list(HEADS), rows_of(steps)))
        blocks[f"table:changes_{name}"] = changes(table)
    return blocks


def changes(table: Summary) -> str:
    """A row per condition, a column per rule."""
    rules = list(table["as it is"])
    rows = [[condition, *(pair(of.get(rule)) for rule in rules)] for condition, of in table.items()]
    return markdown((["regret / violation %", *rules], rows))


def pair(found: Mapping[str, Any] | None) -> str:
    """Mean regret and largest violation, in per cent."""
    if found is None or found.get("regret") is None:
        return "–" if found is None else f"{found['failed']} of {found['runs']} failed"
    return f"{100 * found['regret']:.1f} / {100 * found['violation']:.1f}"


def arguments_of(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="Detour, three conditions, one seed")
    parser.add_argument("--problem", action="append", choices=ON, help="default: both")
    parser.add_argument("--seeds", type=positive, default=1, help="of the published rules")
    parser.add_argument("--ours", type=positive, default=2, help="seeds of the default rule")
    add_options(parser, "multipliers")
    parser.add_argument("--images", type=Path, help="folder of the figures; likewise")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run what is missing, print, write."""
    arguments = arguments_of(words)
    seeds, ours = (1, 1) if arguments.quick else (arguments.seeds, arguments.ours)
    names = arguments.problem or (ON[:1] if arguments.quick else ON)
    wanted = studies(seeds, ours, names, arguments.quick, arguments.iterations)
    records = finished([run_of(study) for study in wanted], arguments)
    table = summary(records)
    document = rounded({"table": table, "runs": records, "provenance": provenance()})
    part = arguments.quick or arguments.problem or arguments.iterations
    whole = not part and len(records) == len(wanted)
    keep_result(document, arguments, "multipliers" if whole else None)
    images = arguments.images or (IMAGES if whole else None)
    if images is not None:
        images.mkdir(parents=True, exist_ok=True)
        draw_map(table, images / "multiplier_map")
        draw_traces(records, [rule.name for rule in RULES], images / "multiplier_traces")
    if arguments.json:
        print(json.dumps(document, allow_nan=False))
    else:
        show(table, Console(width=None if sys.stdout.isatty() else 150))
    return 0


if __name__ == "__main__":
    sys.exit(main())
