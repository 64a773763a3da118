"""`crl solve FILE`: the exact optimum of a finite CMDP as one JSON object, or as tables.

Absent: the solving itself, see `oracle` and `front`.

Letters: S states, A actions, K constraints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from constrained_rl.feasibility import kept
from constrained_rl.finite import Average, Criterion, Discounted, FiniteCMDP, Horizon
from constrained_rl.front import Front
from constrained_rl.occupancy import occupancy
from constrained_rl.oracle import MultiplierRanges, Solution

SMALL = 30
"""different choices up to which a policy is printed"""


def as_json(
    solution: Solution, ranges: MultiplierRanges | None, front: Front | None
) -> dict[str, Any]:
    """Plain numbers; what an infeasible problem does not have is null, as is an infinite price."""
    if not solution.feasible:
        assert solution.least_cost is not None
        nothing = {"value": None, "multipliers": None, "cost": None}
        return {"feasible": False, **nothing, "least_cost": solution.least_cost.tolist()}
    assert ranges is not None
    ends = zip(ranges.least.tolist(), ranges.greatest.tolist(), strict=True)
    found: dict[str, Any] = {
        "feasible": True,
        "value": solution.value,
        "multipliers": solution.multipliers.tolist(),
        "cost": solution.cost.tolist(),
        "unique": ranges.unique.tolist(),
        "multiplier_range": [[low, high if math.isfinite(high) else None] for low, high in ends],
    }
    if solution.settling is None:
        found["policy"] = solution.policy.tolist()
    else:
        found["settling"] = {name: x.tolist() for name, x in vars(solution.settling).items()}
    if front is not None:
        found["front"] = {name: x.tolist() for name, x in vars(front).items()}
    return found


def print_solution(
    cmdp: FiniteCMDP,
    criterion: Criterion,
    solution: Solution,
    ranges: MultiplierRanges | None,
    console: Console,
) -> None:
    """The value, a line for each constraint, and the policy of a small problem."""
    states, actions, channels = cmdp.sizes
    size = f"{states} state(s), {actions} action(s), {channels} constraint(s)"
    console.print(f"{size}; {described(cmdp, criterion)}")
    if not solution.feasible:
        console.print("[red]infeasible:[/red] no policy keeps all limits at once")
        console.print(_least(cmdp, solution))
        return
    assert ranges is not None
    console.print(f"best value [bold]{_number(solution.value)}[/bold]")
    if channels:
        console.print(_prices(cmdp, solution, ranges))
    console.print(_policy(cmdp, criterion, solution))


def described(cmdp: FiniteCMDP, criterion: Criterion) -> str:
    """What is maximised and bounded, in words."""
    match criterion:
        case Discounted():
            if cmdp.discount == 1:
                return "totals of episodes that end in absorbing states"
            return f"discounted sums, γ = {cmdp.discount:g}"
        case Average():
            return "long-run averages per decision"
        case Horizon(decisions):
            return f"undiscounted sums of episodes of {decisions} decision(s)"


def _least(cmdp: FiniteCMDP, solution: Solution) -> Table:
    assert solution.least_cost is not None
    table = Table(*_numbers("limit", "least cost alone"))
    for k, least in enumerate(solution.least_cost):
        color = "green" if kept(least, cmdp.limit[k]) else "red"
        table.add_row(str(k), _number(cmdp.limit[k]), f"[{color}]{_number(least)}[/]")
    return table


def _prices(cmdp: FiniteCMDP, solution: Solution, ranges: MultiplierRanges) -> Table:
    """Limit, cost and price λ* of each constraint; a range where the price is not one number."""
    table = Table(*_numbers("limit", "cost", "price λ*"))
    for k, price in enumerate(solution.multipliers):
        text = f"{price:.6g}"
        if not ranges.unique[k]:
            high = ranges.greatest[k]
            text = f"{ranges.least[k]:.4g} … {high:.4g}" if math.isfinite(high) else "unbounded"
        elif not ranges.greatest[k] > 1e-6 * max(1.0, float(solution.multipliers.max())):
            text = "0 (not binding)"
        table.add_row(str(k), _number(cmdp.limit[k]), _number(solution.cost[k]), text)
    return table


def _policy(cmdp: FiniteCMDP, criterion: Criterion, solution: Solution) -> Table | str:
    """A line for all visited states of one choice: its action, or several with probabilities."""
    if solution.settling is not None:
        return (
            "no stationary policy attains it: an episode has to settle in one part of the problem "
            "with a given probability (--json has it as settling)"
        )
    policy = solution.policy
    groups: dict[tuple[str, str], list[int]] = {}
    if policy.ndim == 2:
        visits = occupancy(cmdp, policy, criterion).sum(axis=1)
        for state in np.flatnonzero(visits > 1e-12).tolist():
            drawn = np.flatnonzero(policy[state] > 1e-9)
            shares = ", ".join(f"{policy[state, a]:.4g}" for a in drawn)
            groups.setdefault((", ".join(map(str, drawn)), shares), []).append(state)
    if not 0 < len(groups) <= SMALL:
        return "[dim]the policy is too large to be shown here: --json has it[/dim]"
    table = Table("states", "action", "probability")
    for choice, states in groups.items():
        table.add_row(_runs(states), *choice, style="bold" if choice[1] != "1" else None)
    hidden = cmdp.sizes[0] - sum(map(len, groups.values()))
    if hidden:
        table.caption, table.caption_justify = f"{hidden} state(s) are never visited", "left"
    return table


def _runs(numbers: Sequence[int]) -> str:
    """`0–3, 7` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join("–".join(map(str, run)) for run in runs)


def print_front(front: Front, k: int, console: Console) -> None:
    """Corners of the front, with the price of the piece that begins at each."""
    console.print(f"best value under every limit {k}, linear between the lines, price its slope:")
    table = Table(*_numbers("value", "price λ*", first=f"limit {k}"))
    for limit, value, price in zip(front.limit, front.value, [*front.price, 0.0], strict=True):
        table.add_row(_number(limit), _number(value), _number(price))
    console.print(table)


def _number(x: float) -> str:
    """Six digits; what is nothing but rounding is 0."""
    return f"{x:.6g}" if abs(x) > 1e-8 else "0"


def _numbers(*names: str, first: str = "constraint") -> Sequence[Column]:
    return [Column(name, justify="right", no_wrap=True) for name in (first, *names)]
