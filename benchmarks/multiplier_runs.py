"""One run of the study with its traces, and what they say of a control loop.

A finished run is a file, written beside and renamed, named by what it was made of; so the study can
be killed at any moment and goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from exact_runs import begin_worker, ergodic, plain
from multiplier_cases import STEP_AT, Study
from numpy.typing import NDArray

from constrained_rl import Agent
from constrained_rl.checkpoint import write_text
from constrained_rl.exact import tabular_policy
from constrained_rl.finite import FiniteCMDP

Record = dict[str, Any]
Floats = NDArray[np.float64]
EVERY = 5
"""iterations between two exact evaluations"""
SETTLED = 0.8
"""share of training after which λ is averaged"""
BAND = 0.05
"""a cost has settled when it stays within this share of its limit"""


def digest_of(study: Study) -> str:
    """SHA-256 of the problem's arrays, the resolved settings, and whether the limit moves."""
    digest = hashlib.sha256(study.config.model_dump_json().encode())
    digest.update(str(study.step).encode())
    for field in fields(FiniteCMDP):
        digest.update(np.asarray(getattr(study.problem.yardstick.cmdp, field.name)).tobytes())
    return digest.hexdigest()[:16]


def play(study: Study) -> Record:
    """Train through `Agent.iterate`; λ of every iteration, the exact costs of every fifth."""
    yardstick = study.problem.yardstick
    agent = Agent(study.config, yardstick.cmdp)
    names = [f"lambda/{c.name}" for c in agent.parts.constraints.constraints]
    total = math.ceil(study.config.total_steps / agent.steps_per_iteration)
    start = time.process_time()
    lam, seen = [], []
    for metrics in agent.iterate():
        at = int(metrics["iteration"])
        lam.append([metrics[name] for name in names])
        if at % EVERY == 0 or at == total:
            seen.append((at, yardstick.measure(tabular_policy(agent))))
        if study.step and at == round(STEP_AT * total):
            move_limits(agent, yardstick.cmdp.limit)
    agent.close()
    iterations = np.array([at for at, _ in seen])
    return {
        "last": plain(seen[-1][1]),
        "ergodic": plain(ergodic([exact for at, exact in seen if at > total / 2], yardstick)),
        **response(
            np.array(lam),
            iterations,
            np.array([exact.cost for _, exact in seen]),
            yardstick.cmdp.limit,
            yardstick.solution.multipliers,
            round(STEP_AT * total) if study.step else 0,
        ),
        "iterations": iterations.tolist(),
        "lambda": [lam[at - 1] for at in iterations],
        "cost": [exact.cost.tolist() for _, exact in seen],
        "price": yardstick.solution.multipliers.tolist(),
        "limit": yardstick.cmdp.limit.tolist(),
        "cpu_seconds": time.process_time() - start,
    }


def move_limits(agent: Agent, limit: Floats) -> None:
    """Change what the multipliers steer to, in the midst of training."""
    constraints = agent.parts.constraints
    constraints.constraints = tuple(
        replace(constraint, limit=float(bound))
        for constraint, bound in zip(constraints.constraints, limit, strict=True)
    )


def response(
    lam: Floats,  # [T, K] of every iteration
    iterations: NDArray[np.int64],  # [E] at which the policy was evaluated
    cost: Floats,  # [E, K] exact
    limit: Floats,  # [K]
    price: Floats,  # [K] λ*
    start: int,  # iteration of the step
) -> Record:
    """The loop's answer to a step (of the limit, or the cold start), over active constraints.

    overshoot:    max_t Σλ / Σλ* − 1, at least 0
    settling:     iterations from the step until every cost stays within ±5 % of its limit
    oscillation:  standard deviation of J_C / |limit| over the second half, largest k
    error:        ‖λ̄ − λ*‖₁ / ‖λ*‖₁, λ̄ the mean over the last fifth
    """
    active, total = price > 0, price.sum()
    relative = cost[:, active] / np.abs(limit[active])
    target = np.sign(limit[active])
    outside: NDArray[np.bool_] = np.any(np.abs(relative - target) > BAND, axis=1)
    last = iterations[outside].max(initial=start)
    settled = None if outside[-1] else int(max(last - start, 0))
    mean = lam[int(SETTLED * len(lam)) :].mean(axis=0)
    return {
        "overshoot": max(float(lam[start:].sum(axis=1).max() / total - 1), 0.0),
        "settling": settled,
        "oscillation": float(relative[len(relative) // 2 :].std(axis=0).max()),
        "error": float(np.abs(mean - price).sum() / total),
        "mean_lambda": mean.tolist(),
    }


def play_and_keep(study: Study, path: Path) -> Record:
    """Run and write; a run that fails is a result too, and is kept as what it said."""
    try:
        record = play(study)
    except Exception as error:  # e.g. a λ that grew without bound
        record = {"failed": f"{type(error).__name__}: {error}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record) + "\n")
    return record


def kept(
    studies: Sequence[Study], folder: Path, code: str
) -> tuple[dict[Path, Study], list[Record]]:
    """What is left to do, by the file it will make, and the records of what is done."""
    left: dict[Path, Study] = {}
    done = []
    for study in studies:
        path = folder / f"{digest_of(study)}-{code}.json"
        if not path.is_file():
            left[path] = study
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        names = {"problem": study.problem.name, "rule": study.rule}
        done.append(names | {"condition": study.condition, "seed": study.seed} | record)
    return left, done


def play_all(left: Mapping[Path, Study], workers: int) -> Iterator[Record]:
    """Records as they finish, from `workers` processes of one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    pool = ProcessPoolExecutor(workers, get_context("spawn"), begin_worker)
    try:
        futures = [pool.submit(play_and_keep, study, path) for path, study in left.items()]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
