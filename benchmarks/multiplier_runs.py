"""One run of the study with its traces, and what they say of a control loop."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from exact_runs import SETTLED, Floats, trace
from multiplier_cases import STEP_AT, Study
from numpy.typing import NDArray
from resumable import Record, Run, digest_of

from constrained_rl import Agent

BAND = 0.05
"""a cost has settled when it stays within this share of its limit"""


def run_of(study: Study) -> Run:
    """A study's run as one that is kept."""
    labels: Record = {"problem": study.problem.name, "rule": study.rule}
    labels |= {"condition": study.condition, "seed": study.seed}
    digest = digest_of(study.config, study.problem.yardstick.cmdp, str(study.step))
    return Run(labels, digest, partial(play, study))


def play(study: Study) -> Record:
    """λ and the exact costs of every fifth iteration, and the loop's figures."""
    yardstick = study.problem.yardstick
    limit, price = yardstick.cmdp.limit, yardstick.solution.multipliers

    def step(agent: Agent, at: int, total: int) -> None:
        if study.step and at == round(STEP_AT * total):
            move_limits(agent, limit)

    found = trace(study.config, yardstick, step)
    at = np.array([at for at, _ in found.seen])
    cost = np.array([exact.cost for _, exact in found.seen])
    start = round(STEP_AT * found.iterations) if study.step else 0
    return {
        **found.policies(yardstick),
        **response(found.multipliers, at, cost, limit, price, start),
        "iterations": at.tolist(),
        "lambda": found.multipliers[at - 1].tolist(),
        "cost": cost.tolist(),
        "price": price.tolist(),
        "limit": limit.tolist(),
        "cpu_seconds": found.cpu_seconds,
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
