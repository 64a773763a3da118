"""Stages of a long job: each a folder that is finished or absent, with random streams of its own.

A stage works in a hidden folder and renames it when it is done, so a killed job continues with the
stages that are missing; fits and RL runs continue from their checkpoints inside it. What a stage
draws depends on (seed, purpose) alone, so stages can run in any order.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from constrained_rl.checkpoint import write_text

TIME = "time.json"
"""Seconds that a stage took, in its folder."""
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
    write_text(work / TIME, json.dumps(seconds))
    work.rename(folder)
    shutil.rmtree(folder / FIT, ignore_errors=True)  # afterwards: a kill here loses nothing


def read_seconds(folder: Path, stages: Iterable[str]) -> dict[str, float]:
    """Wall seconds of those stages below a folder that are finished, by their names."""
    paths = {name: folder / name / TIME for name in stages}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))["wall"]
        for name, path in paths.items()
        if path.is_file()
    }


def results_json(results: object) -> str:
    """Results as JSON text; numbers that JSON cannot hold (an open interval's ends) are null."""
    return json.dumps(_finite(results), indent=1, ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def progress_file(work: Path) -> Callable[[int, int, float], None]:
    """Report of a supervised fit, one JSON line per twenty steps."""
    path = work / "progress.jsonl"
    path.unlink(missing_ok=True)

    def report(step: int, steps: int, loss: float) -> None:
        if step % 20 == 0 or step == steps:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "steps": steps, "loss": loss}) + "\n")

    return report
