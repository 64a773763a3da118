"""A plan for people and for programs: two tables and a verdict, or one JSON object."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from llm_env.plan.advice import Change
from llm_env.plan.plan import Held, Plan

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
INDENT = "  "


def size(count: float) -> str:
    """Bytes in a unit that leaves three digits; nothing for none."""
    for unit, name in UNITS:
        if count >= unit:
            return (
                f"{count / unit:.3g} {name}"
                if count < 999.5 * unit
                else f"{count / unit:.0f} {name}"
            )
    return f"{count:.0f} B" if count else "–"


def verdict(plan: Plan) -> str:
    """One sentence."""
    peak = f"needs {size(plan.peak.bytes)} at its peak ({plan.peak.working.name})"
    where = f"rank of {plan.ranks}" if plan.ranks > 1 else "process"
    if plan.available is None:
        return f"Each {where} {peak}. There is no GPU here: give its memory with --memory."
    there = f"{size(plan.available)} are there, of which {plan.margin:.0%} stay free"
    fits = "It fits" if plan.fits else "It does not fit"
    return f"{fits}: each {where} {peak}; {there}."


def print_plan(plan: Plan, changes: list[Change], console: Console) -> None:
    """Models, phases, verdict, advice."""
    console.print(_models(plan))
    console.print(_phases(plan))
    color = {True: "green", False: "red", None: "yellow"}[plan.fits]
    console.print(f"[{color}]{verdict(plan)}[/{color}]", highlight=False)
    if plan.fits is False:
        _print_changes(changes, console)


def _models(plan: Plan) -> Table:
    table = Table(title="Held between phases, per rank", title_justify="left")
    table.add_column("model")
    for name in ("parameters", "trained", "weights", "gradients", "optimizer", "in CPU memory"):
        table.add_column(name, justify="right")
    for model in plan.models:
        table.add_row(model.name, *_cells(model))
    total = Held(
        "",
        *(
            sum(getattr(model, name) for model in plan.models)
            for name in ("parameters", "trained", "weights", "gradients", "optimizer", "host")
        ),
    )
    table.add_section()
    table.add_row("all", *_cells(total))
    return table


def _cells(model: Held) -> list[str]:
    counts = [f"{n / 1e6:,.1f} M" if n else "–" for n in (model.parameters, model.trained)]
    return counts + [size(n) for n in (model.weights, model.gradients, model.optimizer, model.host)]


def _phases(plan: Plan) -> Table:
    table = Table(title="Phases of an iteration, per rank", title_justify="left")
    table.add_column("phase")
    for name in ("held", "for a moment", "of it logits", "of it keys, values", "in all"):
        table.add_column(name, justify="right")
    for phase in plan.phases:
        work = phase.working
        numbers = (phase.held, work.bytes, work.logits, work.cache, phase.bytes)
        style = "bold" if phase is plan.peak else None
        table.add_row(work.name, *(size(n) for n in numbers), style=style)
    return table


def _print_changes(changes: list[Change], console: Console) -> None:
    if not changes:
        console.print("None of the changes known here makes it fit, nor all of them together.")
        return
    console.print("Each of these would make it fit, the cheapest first:")
    for change in changes:
        told = "  ".join(f"{key}={_shown(value)}" for key, value in change.settings.items())
        console.print(
            f"{INDENT}{told}\n{INDENT * 2}{size(change.plan.peak.bytes)}; {change.price}",
            highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_json(plan: Plan, changes: list[Change]) -> dict[str, Any]:
    """All numbers, in bytes."""
    return {
        "fits": plan.fits,
        "peak": plan.peak.bytes,
        "peak_phase": plan.peak.working.name,
        "available": plan.available,
        "margin": plan.margin,
        "ranks": plan.ranks,
        "device": plan.device,
        "rollout": plan.rollout,
        "models": [{**vars(model), "bytes": model.bytes} for model in plan.models],
        "phases": [
            {**vars(phase.working), "held": phase.held, "working": phase.working.bytes}
            | {"bytes": phase.bytes}
            for phase in plan.phases
        ],
        "changes": [
            {"settings": c.settings, "price": c.price, "peak": c.plan.peak.bytes} for c in changes
        ],
    }
