"""One training run, measured exactly while it goes; many of them, each kept when it is finished.

A finished run is one file, written beside and renamed, named by what it was made of: problem,
settings, seed and the library's code. So a table can be killed at any moment and goes on, and a run
of other code or settings is never taken for this one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import fields
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from exact_cases import Job

import constrained_rl
from constrained_rl import Agent
from constrained_rl.checkpoint import write_text
from constrained_rl.exact import Exact, Yardstick, tabular_policy
from constrained_rl.feasibility import time_to_feasibility, violation_regret
from constrained_rl.finite import FiniteCMDP

Record = dict[str, Any]
EVERY = 5
"""iterations between two exact evaluations"""
SETTLED = 0.8
"""share of training after which λ is averaged"""


def code_digest() -> str:
    """SHA-256 of the library's sources: what a run was made by, committed or not."""
    root = Path(constrained_rl.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def job_digest(job: Job) -> str:
    """SHA-256 of the problem's arrays and the resolved settings, seed and limit among them."""
    digest = hashlib.sha256(job.config.model_dump_json().encode())
    for field in fields(FiniteCMDP):
        digest.update(np.asarray(getattr(job.problem.yardstick.cmdp, field.name)).tobytes())
    return digest.hexdigest()[:16]


def play(job: Job) -> Record:
    """Train through `Agent.iterate`, looking at the exact policy every `EVERY` iterations."""
    yardstick, config = job.problem.yardstick, job.config
    agent = Agent(config, yardstick.cmdp)
    names = [f"lambda/{c.name}" for c in agent.parts.constraints.constraints]
    total = math.ceil(config.total_steps / agent.steps_per_iteration)
    lam, seen, seconds = [], [], 0.0
    start = time.process_time()
    for metrics in agent.iterate():
        lam.append([metrics[name] for name in names])
        if metrics["iteration"] % EVERY == 0 or metrics["iteration"] == total:
            seconds += time.process_time() - start
            seen.append((metrics["iteration"], yardstick.measure(tabular_policy(agent))))
            start = time.process_time()
    agent.close()
    settled = np.array(lam[int(SETTLED * len(lam)) :])
    return {
        "last": plain(seen[-1][1]),
        "ergodic": plain(ergodic([exact for at, exact in seen if at > total / 2], yardstick)),
        "multipliers": settled.mean(axis=0).tolist(),
        "multiplier_spread": settled.std(axis=0).tolist(),
        **over_training(seen, yardstick.cmdp),
        "iterations": total,
        "cpu_seconds": seconds,
    }


def ergodic(seen: Sequence[Exact], yardstick: Yardstick) -> Exact:
    """The occupancy average of the second half: its J are the means, see `average_policy`."""
    value = float(np.mean([exact.value for exact in seen]))
    return yardstick.judge(value, np.mean([exact.cost for exact in seen], axis=0))


def over_training(seen: Sequence[tuple[int, Exact]], cmdp: FiniteCMDP) -> Record:
    """When limits are kept for good, in iterations, and by how much they were not."""
    if not len(cmdp.limit):
        return {"time_to_feasibility": 0.0, "violation_regret": 0.0}
    times, costs = [at for at, _ in seen], [exact.cost for _, exact in seen]
    return {
        "time_to_feasibility": time_to_feasibility(costs, cmdp.limit, times),
        "violation_regret": violation_regret(costs, cmdp.limit),
    }


def plain(exact: Exact) -> Record:
    """As JSON takes it."""
    return {
        "value": exact.value,
        "cost": exact.cost.tolist(),
        "regret": exact.regret,
        "violation": exact.violation,
    }


def play_and_keep(job: Job, path: Path, code: str) -> Record:
    """Run and write; a run that fails is a result too, and is kept as what it said."""
    record = {
        "problem": job.problem.name,
        "algorithm": job.algorithm,
        "seed": job.seed,
        "code": code,
    }
    try:
        record |= play(job)
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


def kept(
    jobs: Sequence[Job], folder: Path, code: str, any_code: bool
) -> tuple[dict[Path, Job], list[Record]]:
    """What is left to do, by the file it will make, and what is done (by this code or by any)."""
    left: dict[Path, Job] = {}
    done = []
    for job in jobs:
        digest = job_digest(job)
        exact = folder / f"{digest}-{code}.json"
        found = [exact] if exact.is_file() else []
        if not found and any_code:
            found = sorted(folder.glob(f"{digest}-*.json"))
        if found:
            # Two names can mean the same run: a price of 0 times anything is the same weight.
            names = {"problem": job.problem.name, "algorithm": job.algorithm}
            done.append({**json.loads(found[0].read_text(encoding="utf-8")), **names})
        else:
            left[exact] = job
    return left, done


def play_all(left: Mapping[Path, Job], code: str, workers: int) -> Iterator[Record]:
    """Records as they finish, from `workers` processes of one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    pool = ProcessPoolExecutor(workers, get_context("spawn"), begin_worker)
    try:
        futures = [pool.submit(play_and_keep, job, path, code) for path, job in left.items()]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
