"""One training run, measured exactly while it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from exact_cases import Job
from numpy.typing import NDArray
from resumable import Record, Run, digest_of

from constrained_rl import Agent
from constrained_rl.config import RunConfig
from constrained_rl.exact import Exact, Yardstick, tabular_policy
from constrained_rl.feasibility import time_to_feasibility, violation_regret
from constrained_rl.finite import FiniteCMDP

Floats = NDArray[np.float64]
EVERY = 5
"""iterations between two exact evaluations"""
SETTLED = 0.8
"""share of training after which λ is averaged"""


@dataclass(frozen=True, eq=False)
class Trace:
    """What a training run went through."""

    multipliers: Floats  # [T, K] λ of every iteration
    seen: list[tuple[int, Exact]]  # (iteration, its policy), every `EVERY` and the last
    iterations: int  # T
    cpu_seconds: float  # of training, without the evaluations

    @property
    def settled(self) -> Floats:
        """λ [t, K] of the last fifth."""
        return self.multipliers[int(SETTLED * len(self.multipliers)) :]

    def policies(self, yardstick: Yardstick) -> Record:
        """The last policy, and the average of the second half."""
        late = [exact for at, exact in self.seen if at > self.iterations / 2]
        return {"last": plain(self.seen[-1][1]), "ergodic": plain(ergodic(late, yardstick))}


def trace(
    config: RunConfig,
    yardstick: Yardstick,
    after: Callable[[Agent, int, int], None] = lambda agent, at, total: None,
) -> Trace:
    """Train through `Agent.iterate`, with `after` called behind each iteration of the total."""
    agent = Agent(config, yardstick.cmdp)
    names = [f"lambda/{c.name}" for c in agent.parts.constraints.constraints]
    total = math.ceil(config.total_steps / agent.steps_per_iteration)
    lam, seen, seconds = [], [], 0.0
    start = time.process_time()
    for metrics in agent.iterate():
        at = int(metrics["iteration"])
        lam.append([metrics[name] for name in names])
        if at % EVERY == 0 or at == total:
            seconds += time.process_time() - start
            seen.append((at, yardstick.measure(tabular_policy(agent))))
            start = time.process_time()
        after(agent, at, total)
    agent.close()
    return Trace(np.array(lam), seen, total, seconds)


def run_of(job: Job) -> Run:
    """A job as a run that is kept."""
    labels = {"problem": job.problem.name, "algorithm": job.algorithm, "seed": job.seed}
    digest = digest_of(job.config, job.problem.yardstick.cmdp)
    return Run(labels, digest, partial(play, job))


def play(job: Job) -> Record:
    """What the table needs of one run."""
    yardstick = job.problem.yardstick
    found = trace(job.config, yardstick)
    return {
        **found.policies(yardstick),
        "multipliers": found.settled.mean(axis=0).tolist(),
        "multiplier_spread": found.settled.std(axis=0).tolist(),
        **over_training(found.seen, yardstick.cmdp),
        "iterations": found.iterations,
        "cpu_seconds": found.cpu_seconds,
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
