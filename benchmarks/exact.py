"""How close to the best possible policy does each rule for λ come? Held against linear programs.

    python benchmarks/exact.py                   # all of docs/exact.md; can be killed, goes on
    python benchmarks/exact.py --quick           # fewer seeds, 12 minutes instead of 2 hours
    python benchmarks/exact.py --problem my.npz  # your own finite CMDP, also an infeasible one

Every rule trains through the ordinary loop with the same settings, and the policy is evaluated
exactly: no sampling. Finished runs are kept under --runs and used again. Seeds here were not used
for tuning. What is measured: docs/exact.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

from exact_cases import FULL, QUICK, Job, Seeds, from_file, table_jobs
from exact_figure import draw
from exact_report import show
from exact_runs import run_of
from exact_summary import summary
from resumable import (
    ERRORS,
    IMAGES,
    add_options,
    finished,
    keep_result,
    positive,
    rounded,
)
from rich.console import Console

from constrained_rl.errors import InputError
from constrained_rl.provenance import provenance

WIDTH = 140
"""columns of the tables where the output is no terminal"""


def arguments_of(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problem", type=Path, action="append", default=[], metavar="FILE.npz")
    parser.add_argument("--seeds", type=positive, help="of every rule; 10, or what --quick says")
    parser.add_argument("--quick", action="store_true", help="2 seeds of the default rule, 1 else")
    add_options(parser, "exact")
    parser.add_argument("--figure", type=Path, help="without ending: .svg and .png are added")
    return parser.parse_args(words)


def jobs_of(arguments: argparse.Namespace) -> list[Job]:
    """What to run; every file is read and checked before anything starts."""
    seeds = QUICK if arguments.quick else FULL
    if arguments.seeds is not None:
        seeds = Seeds(*[arguments.seeds] * len(fields(Seeds)))
    names = [path.stem for path in arguments.problem]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"--problem names {', '.join(twice)} twice; give files of different names, which are "
            "the names in the table"
        )
    return table_jobs([from_file(path) for path in arguments.problem], seeds, arguments.iterations)


def main(words: list[str] | None = None) -> int:
    """Run what is missing, print, write."""
    arguments = arguments_of(words)
    try:
        jobs = jobs_of(arguments)
    except InputError as error:
        ERRORS.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 2
    records = finished([run_of(job) for job in jobs], arguments)
    document = rounded({**summary(jobs, records), "runs": records, "provenance": provenance()})
    part = arguments.problem or arguments.quick or arguments.seeds or arguments.iterations
    whole = not part and len(records) == len(jobs)
    keep_result(document, arguments, "exact" if whole else None)
    figure = arguments.figure or (IMAGES / "exact" if whole else None)
    if figure is not None:
        draw(document, figure)
    if arguments.json:
        print(json.dumps(document, allow_nan=False))
    else:
        show(document, Console(width=None if sys.stdout.isatty() else WIDTH))
    return 0


if __name__ == "__main__":
    sys.exit(main())
