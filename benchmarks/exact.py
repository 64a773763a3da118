"""How close to the best possible policy does each rule for λ come? Held against linear programs.

    python benchmarks/exact.py                   # all of docs/exact.md; can be killed, goes on
    python benchmarks/exact.py --quick           # fewer seeds, minutes instead of an hour
    python benchmarks/exact.py --problem my.npz  # your own finite CMDP, also an infeasible one

Every rule trains through the ordinary loop with the same settings, and the policy is evaluated
exactly: no sampling. Finished runs are kept under --runs and used again. Seeds here were not used
for tuning. What is measured: docs/exact.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from exact_cases import FULL, QUICK, Job, Seeds, from_file, table_jobs
from exact_figure import draw
from exact_report import show
from exact_runs import code_digest, kept, play_all
from exact_summary import summary
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from constrained_rl.checkpoint import write_text
from constrained_rl.errors import InputError
from constrained_rl.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "exact.json"
FIGURE = ROOT / "docs" / "images" / "exact"
WIDTH = 140
"""columns of the tables where the output is no terminal"""
ERRORS = Console(stderr=True)


def arguments_of(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problem", type=Path, action="append", default=[], metavar="FILE.npz")
    parser.add_argument("--seeds", type=positive, help="of every rule; 10, or what --quick says")
    parser.add_argument("--json", action="store_true", help="one object on stdout, nothing else")
    parser.add_argument("--quick", action="store_true", help="3 seeds of the default rule, 1 else")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "exact", help="finished runs")
    parser.add_argument("--kept", action="store_true", help="run nothing; show what is finished")
    parser.add_argument("--any-code", action="store_true", help="take runs of other code too")
    parser.add_argument("--iterations", type=positive, help="shorter or longer training")
    parser.add_argument("--workers", type=positive, default=2)
    parser.add_argument("--out", type=Path, help=f"JSON; the whole table writes {OUT.name}")
    parser.add_argument("--figure", type=Path, help="without ending: .svg and .png are added")
    return parser.parse_args(words)


def positive(text: str) -> int:
    """A count for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number ≥ 1")
    return int(text)


def jobs_of(arguments: argparse.Namespace) -> list[Job]:
    """What to run; every file is read and checked before anything starts."""
    seeds = QUICK if arguments.quick else FULL
    if arguments.seeds is not None:
        seeds = Seeds(*[arguments.seeds] * 4)
    names = [path.stem for path in arguments.problem]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"--problem names {', '.join(twice)} twice; give files of different names, which are "
            "the names in the table"
        )
    return table_jobs([from_file(path) for path in arguments.problem], seeds, arguments.iterations)


def finished(jobs: list[Job], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Records of the jobs in their order; what is not there yet is run first, unless `--kept`."""
    code = code_digest()
    left, done = kept(jobs, arguments.runs, code, arguments.any_code)
    if arguments.kept:
        return done
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("· left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=ERRORS) as progress:
        task = progress.add_task(f"runs ({len(done)} kept)", total=len(left))
        for record in play_all(left, code, arguments.workers):
            if "failed" in record:
                where = f"{record['problem']}, {record['algorithm']}, seed {record['seed']}"
                ERRORS.print(f"{where} failed: {record['failed']}")
            progress.advance(task)
    return kept(jobs, arguments.runs, code, arguments.any_code)[1]


def rounded(tree: Any) -> Any:  # noqa: ANN401  any JSON
    """Six significant digits: the file is committed, and seeds differ in the second."""
    match tree:
        case dict():
            return {key: rounded(value) for key, value in tree.items()}
        case list() | tuple():
            return [rounded(value) for value in tree]
        case float():
            return float(f"{tree:.6g}")
    return tree


def main(words: list[str] | None = None) -> int:
    """Run what is missing, print, write."""
    arguments = arguments_of(words)
    try:
        jobs = jobs_of(arguments)
    except InputError as error:
        ERRORS.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 2
    try:
        records = finished(jobs, arguments)
    except KeyboardInterrupt:
        ERRORS.print("stopped; finished runs are kept, the same command goes on")
        return 130
    if not records:
        ERRORS.print(f"error: no run of this code is finished in {arguments.runs}", style="red")
        return 2
    document = rounded({**summary(jobs, records), "runs": records, "provenance": provenance()})
    part = arguments.problem or arguments.quick or arguments.seeds or arguments.iterations
    whole = not part and len(records) == len(jobs)
    out = arguments.out or (OUT if whole else None)
    if out is not None:
        write_text(out, json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n")
    figure = arguments.figure or (FIGURE if whole else None)
    if figure is not None:
        draw(document, figure)
    if arguments.json:
        print(json.dumps(document, allow_nan=False))
    else:
        show(document, Console(width=None if sys.stdout.isatty() else WIDTH))
    return 0


if __name__ == "__main__":
    sys.exit(main())
