"""Stages of a long job: each a folder that is finished or absent, with random streams of its own.

A stage works in a hidden folder and renames it when it is done, so a killed job continues with the
stages that are missing; fits and RL runs continue from their checkpoints inside it. What a stage
draws depends on (seed, purpose) alone, so stages can run in any order.
"""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from constrained_rl.checkpoint import write_text

FIT = "fit"
"""Folder of a fit's checkpoints in the hidden folder of its stage."""


def stream(seed: int, purpose: str) -> np.random.Generator:
    """Random stream of one purpose."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


@contextmanager
def stage(folder: Path) -> Iterator[Path]:
    """Work in a hidden folder that becomes `folder` on success; its time is noted in it."""
    work = folder.with_name(f".{folder.name}")
    work.mkdir(parents=True, exist_ok=True)
    wall, cpu = time.perf_counter(), time.process_time()
    yield work
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    write_text(work / "time.json", json.dumps(seconds))
    work.rename(folder)
    shutil.rmtree(folder / FIT, ignore_errors=True)  # afterwards: a kill here loses nothing


def progress_file(work: Path) -> Callable[[int, int, float], None]:
    """Report of a supervised fit, one JSON line per twenty steps."""
    path = work / "progress.jsonl"
    path.unlink(missing_ok=True)

    def report(step: int, steps: int, loss: float) -> None:
        if step % 20 == 0 or step == steps:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "steps": steps, "loss": loss}) + "\n")

    return report
