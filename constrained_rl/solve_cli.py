"""The command `crl solve`. `llm_env.cli` mounts it beside the other commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from constrained_rl.cli import AsJson


def solve(
    file: Annotated[Path, typer.Argument(help="a finite CMDP, .npz")],
    as_json: AsJson = False,
    front: Annotated[
        int | None, typer.Option(help="also the best value under every limit K", metavar="K")
    ] = None,
    average: Annotated[bool, typer.Option(help="long-run averages instead of sums with γ")] = False,
    horizon: Annotated[
        int | None, typer.Option(help="undiscounted sums of episodes of H decisions", metavar="H")
    ] = None,
) -> None:
    """Solve a finite constrained MDP exactly: best value, a policy, the price of every limit.

    FILE has the arrays transition [S,A,S], reward [S,A], cost [K,S,A], initial [S], discount and
    limit [K]; `crl train env.file=FILE` trains on it.
    """
    from constrained_rl import solve_report
    from constrained_rl.finite import criterion_of, load_cmdp
    from constrained_rl.front import pareto_front
    from constrained_rl.oracle import multiplier_ranges
    from constrained_rl.oracle import solve as solve_exactly

    cmdp, criterion = load_cmdp(file), criterion_of(average, horizon)
    found = solve_exactly(cmdp, criterion)
    ranges = multiplier_ranges(cmdp, criterion) if found.feasible else None
    corners = None if front is None else pareto_front(cmdp, front, criterion)
    if as_json:
        print(json.dumps(solve_report.as_json(found, ranges, corners), allow_nan=False))
        return
    solve_report.print_solution(cmdp, criterion, found, ranges, Console())
    if corners is not None and front is not None:
        solve_report.print_front(corners, front, Console())
