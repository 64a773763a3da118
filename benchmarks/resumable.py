"""What benchmarks of many training runs share: their options, a file per finished run, the result.

A finished run is one file, written beside and renamed, named by what it was made of (problem,
settings, seed) and by the library's code. So a table can be killed at any moment and goes on, and a
run of other code or settings is never taken for this one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import constrained_rl
from constrained_rl.checkpoint import write_text
from constrained_rl.config import RunConfig
from constrained_rl.finite import FiniteCMDP

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = Path(constrained_rl.__file__).parent
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
ERRORS = Console(stderr=True)
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("· left"),
    TimeRemainingColumn(),
)
Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """One training run, as it is handed to another process."""

    labels: Record  # what the tables call it; two runs of other labels may have one digest
    digest: str
    play: Callable[[], Record]


def digest_of(config: RunConfig, cmdp: FiniteCMDP, more: str = "") -> str:
    """SHA-256 of the resolved settings (seed and limit among them) and the problem's arrays."""
    digest = hashlib.sha256((config.model_dump_json() + more).encode())
    for field in fields(FiniteCMDP):
        digest.update(np.asarray(getattr(cmdp, field.name)).tobytes())
    return digest.hexdigest()[:16]


def code_digest(packages: Sequence[Path] = (LIBRARY,)) -> str:
    """SHA-256 of the library's sources: what a run was made by, committed or not."""
    digest = hashlib.sha256()
    for root in packages:
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """The options that `finished` reads, and those of what is written."""
    parser.add_argument("--iterations", type=positive, help="shorter or longer training")
    parser.add_argument("--workers", type=positive, default=2)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / name, help="finished runs")
    parser.add_argument("--kept", action="store_true", help="run nothing; show what is finished")
    parser.add_argument("--any-code", action="store_true", help="take runs of other code too")
    parser.add_argument("--json", action="store_true", help="one object on stdout, nothing else")
    parser.add_argument("--out", type=Path, help=f"JSON; the whole table writes {name}.json")


def positive(text: str) -> int:
    """A count for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number ≥ 1")
    return int(text)


def finished(
    runs: Sequence[Run], arguments: argparse.Namespace, packages: Sequence[Path] = (LIBRARY,)
) -> list[Record]:
    """Records of the runs in their order; what is not there yet is run first, unless `--kept`.

    Runs of other code in `packages` do not count, unless `--any-code`.

    Raises:
        SystemExit: with 130 where the user stopped it, with 2 where `--kept` finds no run.
    """
    code = code_digest(packages)
    left, done = kept(runs, arguments.runs, code, arguments.any_code)
    if left and not arguments.kept:
        try:
            play_left(left, len(done), code, arguments.workers)
        except KeyboardInterrupt:
            ERRORS.print("stopped; finished runs are kept, the same command goes on")
            raise SystemExit(130) from None
        done = kept(runs, arguments.runs, code, arguments.any_code)[1]
    if not done:
        ERRORS.print(f"error: no run of this code is finished in {arguments.runs}", style="red")
        raise SystemExit(2)
    return done


def play_left(left: Mapping[Path, Run], done: int, code: str, workers: int) -> None:
    """Run what is missing, under a progress bar."""
    with Progress(*COLUMNS, console=ERRORS) as progress:
        task = progress.add_task(f"runs ({done} kept)", total=len(left))
        for record in play_all(left, code, workers):
            if "failed" in record:
                ERRORS.print(f"{named(record)} failed: {record['failed']}", markup=False)
            progress.advance(task)


def named(record: Record) -> str:
    """A run in words: all its labels but the seed, then the seed."""
    labels = [text for key, text in record.items() if key not in ("code", "seed", "failed")]
    return ", ".join([*labels, f"seed {record['seed']}"])


def kept(
    runs: Sequence[Run], folder: Path, code: str, any_code: bool
) -> tuple[dict[Path, Run], list[Record]]:
    """What is left to do, by the file it will make, and what is done (by this code or by any)."""
    left: dict[Path, Run] = {}
    done = []
    for run in runs:
        exact = folder / f"{run.digest}-{code}.json"
        found = [exact] if exact.is_file() else []
        if not found and any_code:
            found = sorted(folder.glob(f"{run.digest}-*.json"))
        if found:
            # Two names can mean the same run: a price of 0 times anything is the same weight.
            done.append(run.labels | json.loads(found[0].read_text(encoding="utf-8")) | run.labels)
        else:
            left[exact] = run
    return left, done


def play_all(left: Mapping[Path, Run], code: str, workers: int) -> Iterator[Record]:
    """Records as they finish, from `workers` processes of one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    pool = ProcessPoolExecutor(workers, get_context("spawn"), begin_worker)
    try:
        futures = [pool.submit(play_and_keep, run, path, code) for path, run in left.items()]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def play_and_keep(run: Run, path: Path, code: str) -> Record:
    """Run and write; a run that fails is a result too, and is kept as what it said."""
    record = {**run.labels, "code": code}
    try:
        record |= run.play()
    except Exception as error:  # e.g. a diverged policy: the table says so and goes on
        record["failed"] = f"{type(error).__name__}: {error}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record) + "\n")
    return record


def begin_worker() -> None:
    """Ctrl-C is the parent's: runs under way end and are kept. If the parent is killed, end too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


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


def keep_result(document: Record, arguments: argparse.Namespace, whole: str | None) -> None:
    """Write to --out; without it only a whole table, whose name is given, to what is committed."""
    out = arguments.out or (RESULTS / f"{whole}.json" if whole else None)
    if out is not None:
        write_result(document, out)


def write_result(document: Record, path: Path) -> None:
    """One line of JSON."""
    write_text(path, json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n")
