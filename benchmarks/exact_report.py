"""The tables on a terminal and the same in Markdown, all from the document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from exact_cases import DEFAULT, FACTORS, static
from exact_summary import RULES, columns
from over_seeds import Rows, markdown
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

Document = Mapping[str, Any]
ORIGINS = {
    "built-in": "all built-in problems",
    "unseen": "all unseen problems",
    "file": "all given files",
}


def number(value: float | None, digits: int = 1, scale: float = 100.0) -> str:
    """Per cent by default; – where there is no figure."""
    return "–" if value is None else f"{scale * value:.{digits}f}".replace("-", "−")


def span(found: Mapping[str, float | None] | None) -> str:
    """Per cent with its interval."""
    if found is None:
        return "–"
    if found["low"] is None or found["high"] is None:
        return number(found["value"])
    return f"{number(found['value'])} [{number(found['low'])}, {number(found['high'])}]"


def value_of(score: Mapping[str, Any], key: str) -> float | None:
    """The middle of a figure that may be missing."""
    found = score.get(key)
    return None if found is None else found["value"]


def played(document: Document) -> dict[str, Any]:
    """Scores on the feasible problems, each in its own units only."""
    origins = {name: problem["origin"] for name, problem in document["problems"].items()}
    return {name: of for name, of in document["scores"].items() if origins[name] != "scaled"}


def default_rows(document: Document) -> Rows:
    """The default rule against the targets, a row per problem, then over problems."""
    heads = ["problem", "K", "J*", "regret %", "violation %", "≤ 5 %", "λ error\n%"]
    heads += ["averaged:\nregret %", "\nviolation %", "kept from\niteration", "CPU s", "targets"]
    rows = []
    for name, scores in played(document).items():
        if DEFAULT in scores:
            problem, score = document["problems"][name], scores[DEFAULT]
            known = [str(problem["constraints"]), f"{problem['value']:.2f}"]
            rows.append([name, *known, *default_cells(score)])
    for origin, scores in document["over_problems"].items():
        if DEFAULT in scores:
            rows.append([ORIGINS[origin], "", "", *default_cells(scores[DEFAULT])])
    return heads, rows


def default_cells(score: Mapping[str, Any]) -> list[str]:
    """Figures and verdict of one row."""
    held = round(score["within"]["value"] * score["runs"])
    at = score["time_to_feasibility"]
    return [
        span(score["regret"]),
        span(score["violation"]),
        f"{held} of {score['runs']}",
        number(value_of(score, "multiplier_error"), 0),
        number(value_of(score, "ergodic_regret")),
        number(value_of(score, "ergodic_violation")),
        "never" if at is None else f"{at:.0f}",
        number(score["cpu_seconds"], scale=1),
        missed(score["targets"]),
    ]


def missed(targets: Mapping[str, bool | None]) -> str:
    """Met, or what was not."""
    names = {"within": "≤ 5 %", "multiplier_error": "λ", "unaltered": "as it is"}
    failed = [names.get(key, key) for key, good in targets.items() if good is False]
    return "met" if not failed else "not: " + ", ".join(failed)


def rule_rows(document: Document) -> Rows:
    """Regret and violation of every rule on every problem, then over problems."""
    scores = played(document)
    rules = columns(scores)
    rows = [[name, *(pair(of.get(rule)) for rule in rules)] for name, of in scores.items()]
    for origin, of in document["over_problems"].items():
        rows.append([ORIGINS[origin], *(pair(of.get(rule)) for rule in rules)])
        shares = [of[rule]["within"]["value"] if rule in of else None for rule in rules]
        rows.append(["  seeds within 5 %", *(number(share, 0) for share in shares)])
    return ["regret / violation %", *rules], rows


def pair(score: Mapping[str, Any] | None) -> str:
    """Regret / violation."""
    if score is None:
        return ""
    values = [value_of(score, key) for key in ("regret", "violation")]
    if values == [None, None]:
        return f"{score['failed']} failed"
    text = " / ".join(number(value, 0 if value and value >= 1 else 1) for value in values)
    return text + (f" ({score['failed']} failed)" if score["failed"] else "")


def verdict(document: Document) -> str:
    """In words: on how many problems the default rule meets its targets, and what it misses."""
    scores = {name: of[DEFAULT] for name, of in played(document).items() if DEFAULT in of}
    misses = {name: missed_by(score) for name, score in scores.items()}
    met = sum(not miss for miss in misses.values())
    text = f"The default rule meets every target on {met} of {len(scores)} feasible problems."
    listed = "; ".join(f"{name}: {miss}" for name, miss in misses.items() if miss)
    return f"{text} Missed on {listed}." if listed else text


def missed_by(score: Mapping[str, Any]) -> str:
    """The figures that miss their targets."""
    names = {"regret": "regret", "violation": "violation", "within": "seeds within 5 %"}
    names["multiplier_error"] = "λ error"
    failed = [key for key, good in score["targets"].items() if good is False]
    return ", ".join(f"{names[key]} {number(value_of(score, key), 2)} %" for key in failed)


def summary_rows(document: Document) -> Rows:
    """One row per rule, over the problems of each origin."""
    origins = document["over_problems"]
    rules = [rule for rule in RULES if any(rule in of for of in origins.values())]
    heads = ["rule"]
    rows = [[rule] for rule in rules]
    for origin, of in origins.items():
        heads += [f"{origin}: regret %", "violation %", "seeds within 5 %"]
        for row, rule in zip(rows, rules, strict=True):
            score = of.get(rule)
            if score is None:
                row += ["", "", ""]
                continue
            held = round(score["within"]["value"] * score["runs"])
            kept = f"{held} of {score['runs']}"
            row += [span(score["regret"]), span(score["violation"]), kept]
    return heads, rows


def static_rows(document: Document) -> Rows:
    """Static weights ν, multiples of the true price: the largest J_C / limit that each ends at."""
    names = [static(factor).name for factor in FACTORS]
    rows = []
    for name, of in played(document).items():
        found = [of.get(rule) for rule in names]
        best = of.get("best static")
        if best is None or sum(score is not None for score in found) < 2:
            continue
        limits = document["problems"][name]["limit"]
        shares = [largest_share(score, limits) for score in found]
        targets = best["targets"] | {"multiplier_error": None}  # ν is given, not found
        rows.append([name, *shares, pair(best), missed(targets)])
    heads = ["problem", *(f"J_C / limit\nν = {factor:g} λ*" for factor in FACTORS)]
    return [*heads, "best ν, %:\nregret / violation", "targets"], rows


def largest_share(score: Mapping[str, Any] | None, limits: Sequence[float]) -> str:
    """Of a mean cost in its limit; empty without a score or a limit that is not 0."""
    if score is None or score["cost"] is None or 0 in limits:
        return ""
    return f"{max(cost / limit for cost, limit in zip(score['cost'], limits, strict=True)):.2f}"


def robust_rows(document: Document) -> Rows:
    """The default rule under other gains, starts and units."""
    heads = ["changed", "problem", "regret %", "as it is %", "P(as it is better)", "violation %"]
    rows = []
    for row in document["robustness"]:
        better = row["improvement"]
        held = round(row["within"]["value"] * row["runs"])
        chance = "–" if better is None else f"{better['value']:.2f}"
        if better is not None and better["low"] is not None and np.isfinite(better["low"]):
            chance += f" [{better['low']:.2f}, {better['high']:.2f}]"
        rows.append(
            [
                row["change"],
                row["problem"],
                span(row["regret"]),
                number(value_of(row, "plain_regret")),
                chance,
                span(row["violation"]),
                f"{held} of {row['runs']}",
                missed(row["targets"]),
            ]
        )
    return [*heads, "≤ 5 %", "targets"], rows


def infeasible_rows(document: Document) -> Rows:
    """What cannot be met, and where every rule ends."""
    rows = []
    for name, of in document["infeasible"].items():
        problem = document["problems"][name]
        for rule, found in of.items():
            rows.append(
                [
                    name,
                    vector(problem["limit"]),
                    vector(problem["least_cost"]),
                    rule,
                    vector(found["cost"]),
                    number(found["violation"]),
                    vector(found["multipliers"]),
                ]
            )
    heads = ["problem", "limit", "least cost, each alone", "rule", "ends at cost", "violation %"]
    return [*heads, "λ"], rows


def vector(values: Sequence[float], digits: int = 2) -> str:
    """Some numbers."""
    return ", ".join(f"{value:.{digits}f}" for value in values).replace("-", "−")


TABLES = {
    "The default rule on every problem": default_rows,
    "Regret / violation of every rule, %, interquartile mean over seeds": rule_rows,
    "Static weights": static_rows,
    "The default rule with other gains and starts, and in other units": robust_rows,
    "Problems that no policy can solve": infeasible_rows,
}

BLOCKS = {
    "default": default_rows,
    "rules": rule_rows,
    "static": static_rows,
    "robust": robust_rows,
    "infeasible": infeasible_rows,
}
"""tables of docs/exact.md"""


def page_blocks(document: Document) -> dict[str, str]:
    """The blocks of docs/exact.md."""
    tables = {f"table:{name}": markdown(rows_of(document)) for name, rows_of in BLOCKS.items()}
    return {"verdict:exact": verdict(document), **tables}


def show(document: Document, console: Console) -> None:
    """Every table that has rows."""
    for title, rows_of in TABLES.items():
        heads, rows = rows_of(document)
        if not rows:
            continue
        table = Table(
            title=title,
            title_justify="left",
            title_style="bold",
            box=SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        words = {"problem", "changed", "rule", "target", "targets"}
        for i, head in enumerate(heads):
            table.add_column(
                head,
                justify="left" if i == 0 or head in words else "right",
                no_wrap=head != "targets",
            )
        for row in rows:
            total = row[0].startswith(("all ", "  "))
            cells = [Text(cell, style="red" if cell.startswith("not") else "") for cell in row]
            table.add_row(*cells, style="bold" if total else "")
        console.print(table)
        console.print()
