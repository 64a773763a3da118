"""`crl report DIR`: one self-contained HTML file that shows a run, finished or not.

Everything is drawn from config.toml, metrics.jsonl and provenance.json; nothing is retrained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from constrained_rl.certificate import certificate_sections
from constrained_rl.config import Selection
from constrained_rl.feasibility import TOLERANCE, kept, time_to_feasibility, violation_regret
from constrained_rl.logging import read_metrics
from constrained_rl.page import Block, Code, Page, Section, Table, Text, picture, write_page
from constrained_rl.plots import (
    CostCurve,
    Metrics,
    column,
    plot_diagnostics,
    plot_evaluations,
    plot_multipliers,
    plot_return_and_costs,
    plot_time,
)
from constrained_rl.settings import read_run_config
from constrained_rl.statistics import mean_interval

LAST = 10
"""iterations at the end of a run over which its table averages"""


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run directory and return its path."""
    config = read_run_config(folder)
    title = f"{config.preset} on {config.env.id}"
    finished = (folder / "policy.safetensors").exists()
    return write_run_page(folder, title, config.seed, finished, config.evaluation)


def write_run_page(
    folder: Path,
    title: str,
    seed: int,
    finished: bool,
    evaluation: Selection,
    more: Sequence[Section] = (),
) -> Path:
    """Write `report.html` of a run of any kind from its metrics; `more` follows the curves.

    Args:
        folder: of the run.
        title: what is trained on what.
        seed: of the run.
        finished: whether the run is.
        evaluation: when the run was evaluated, and which policy is its best.
        more: sections that only this kind of run has.
    """
    rows = read_metrics(folder / "metrics.jsonl")
    state = "finished" if finished else f"unfinished, continue it with crl resume {folder}"
    page = Page(
        title=title,
        subtitle=f"seed {seed} · {len(rows)} iterations · {state}",
        lead=first_screen(rows) if rows else [nothing_yet()],
        sections=[
            *certificate_sections(folder),
            *(learning(rows, evaluation) if rows else []),
            *more,
            *origin(folder),
        ],
    )
    return write_page(page, folder / "report.html")


def nothing_yet() -> Text:
    """What a run killed before its first iteration shows."""
    return Text(
        ["No iteration has finished yet: metrics.jsonl is empty. There is nothing to plot."]
    )


def cost_curves(rows: Sequence[Metrics]) -> list[CostCurve]:
    """The constrained quantities with their limits; raw costs without one when unconstrained."""
    names = [key.removeprefix("lambda/") for key in rows[-1] if key.startswith("lambda/")]
    if not names:
        found = sorted({key for row in rows for key in row if key.startswith("cost/")})
        return [CostCurve(key.removeprefix("cost/"), key, None) for key in found]
    return [CostCurve(name, f"estimate/{name}", rows[-1][f"limit/{name}"]) for name in names]


def first_screen(rows: Sequence[Metrics]) -> list[Block]:
    """The state at the end, and return and costs over training."""
    costs = cost_curves(rows)
    caption = (
        "Mean over the episodes that finished in each iteration; the dashed line is the limit, "
        "and a feasible policy's cost stays below it, outside the shaded side."
    )
    return [final_table(rows, costs), picture(plot_return_and_costs(rows, costs), caption, True)]


def final_table(rows: Sequence[Metrics], costs: Sequence[CostCurve]) -> Table:
    """Means over the last iterations with intervals, each cost beside its limit and λ."""
    last = rows[-LAST:]
    lines = [["return", mean_text(last, "return/mean"), "", "", "", "", ""]]
    for cost in costs:
        values = [row[cost.key] for row in last if cost.key in row]
        lam = mean_text(last, f"lambda/{cost.name}")
        limit = "" if cost.limit is None else f"≤ {cost.limit:g}"
        mean, state = mean_text(last, cost.key), standing(values, cost)
        over_training = [excess_text(rows, cost), kept_from(rows, cost)]
        lines.append([f"cost: {cost.name}", mean, limit, state, lam, *over_training])
    return Table(
        ["", "mean ± 95% interval", "limit", "", "λ", "excess over training", "kept from"],
        lines,
        f"Means over the last {len(last)} iterations, with Student's t interval over iterations. "
        + OVER_TRAINING,
    )


OVER_TRAINING = (
    "Excess over training is the violation regret, the mean of (cost − limit)⁺ over all "
    "iterations in % of |limit|; kept from is the first iteration after which no excess was above "
    f"{100 * TOLERANCE:g}%."
)


def excess_text(rows: Sequence[Metrics], cost: CostCurve) -> str:
    """Violation regret in % of the limit, or a dash where nothing is limited or known."""
    values = column(rows, cost.key)
    if cost.limit is None or not any(map(math.isfinite, values)):
        return "–"
    return f"{100 * violation_regret(values, cost.limit):.3g}%"


def kept_from(rows: Sequence[Metrics], cost: CostCurve) -> str:
    """The iteration from which the limit is kept for the rest of training, or `never`."""
    values = column(rows, cost.key)
    if cost.limit is None or not any(map(math.isfinite, values)):
        return "–"
    found = time_to_feasibility(values, cost.limit, column(rows, "iteration"))
    return "never" if found is None else f"{found:g}"


def standing(values: Sequence[float], cost: CostCurve) -> str:
    """Whether the limit was kept, as far as the interval can tell."""
    if cost.limit is None or len(values) < 2:
        return ""
    interval = mean_interval(values)
    if not interval.excludes(cost.limit):
        return "at the limit"
    return "kept" if kept(interval.value, cost.limit) else "exceeded"


def mean_text(rows: Sequence[Metrics], key: str) -> str:
    """`mean ± half width`, or a dash."""
    values = [row[key] for row in rows if key in row]
    if len(values) < 2:
        return f"{values[0]:.3g}" if values else "–"
    interval = mean_interval(values)
    return f"{interval.value:.3g} ± {interval.high - interval.value:.2g}"


def learning(rows: Sequence[Metrics], evaluation: Selection) -> list[Section]:
    """Multipliers, evaluations, diagnostics and time."""
    costs = cost_curves(rows)
    sections: list[Section] = []
    if any(cost.limit is not None for cost in costs):
        caption = (
            "λ is the price of one unit of cost in units of reward: it should rise while the "
            "violation below it is positive and settle when the violation does."
        )
        sections.append(Section("Multiplier", [picture(plot_multipliers(rows, costs), caption)]))
    sections += evaluation_section(evaluation, rows, costs)
    caption = (
        "Entropy should fall slowly; KL and clipped share say how far each update moves the "
        "policy; an explained variance near 1 is a critic that predicts its returns."
    )
    sections.append(Section("Optimization", [picture(plot_diagnostics(rows), caption, True)]))
    phases = [key for key in rows[-1] if key.startswith("time/")]
    seconds = {p.removeprefix("time/"): sum(row.get(p, 0.0) for row in rows) for p in phases}
    caption = "Wall-clock seconds over all iterations, by phase of the loop."
    return [*sections, Section("Time", [picture(plot_time(seconds), caption)])]


def evaluation_section(
    evaluation: Selection, rows: Sequence[Metrics], costs: Sequence[CostCurve]
) -> list[Section]:
    """The evaluations beside training, and which policy is `best`; none, if none ran."""
    found = [row for row in rows if "evaluation/feasible" in row]
    if not found:
        return []
    feasible = [row for row in found if row["evaluation/feasible"]]
    key = f"evaluation/{evaluation.select}/return"
    best = max(feasible, key=lambda row: row[key])["iteration"] if feasible else math.nan
    verdict = (
        f"The best feasible policy is that of iteration {best:g}; it lies in best/."
        if feasible
        else "No evaluation kept every limit, so there is no best/ policy."
    )
    constrained = [cost for cost in costs if cost.limit is not None]
    caption = (
        "Episodes that training does not see, with 95% intervals; "
        f"{evaluation.select} actions decide which policy is best (dotted)."
    )
    shown = picture(plot_evaluations(found, constrained, best), caption, True)
    return [Section("Evaluation", [Text([verdict]), shown])]


def origin(folder: Path) -> list[Section]:
    """Config and provenance as they lie on disk."""
    sections = []
    for title, name in (("Config", "config.toml"), ("Provenance", "provenance.json")):
        path = folder / name
        text = path.read_text(encoding="utf-8") if path.is_file() else f"{name} is missing"
        sections.append(Section(title, [Code(text)]))
    return sections
