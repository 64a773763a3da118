"""Does λ's rule carry over to networks? On four problems, and on one of them in other units.

    python benchmarks/control.py              # everything; can be killed, goes on
    python benchmarks/control.py --seeds 1    # one seed of each

Every rule trains with the same settings of a problem. Its last policy plays fresh episodes,
sampled, and so does the mean of its last policies' weights, the result of the default preset
(`average = 0.1`). Absent: an optimum (benchmarks/exact.py has problems that know theirs).
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from control_report import show, table_of
from exact_runs import SETTLED
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from resumable import (
    ROOT,
    Record,
    Run,
    add_options,
    finished,
    keep_result,
    positive,
    rounded,
)

from constrained_rl import Agent
from constrained_rl.config import RunConfig
from constrained_rl.envs import BUILT_IN
from constrained_rl.envs.point import point_hazard_vec
from constrained_rl.feasibility import TOLERANCE, time_to_feasibility, violation, violation_regret
from constrained_rl.plots import column
from constrained_rl.presets import PRESETS, defaults
from constrained_rl.provenance import provenance
from constrained_rl.seeds import evaluation_seed
from constrained_rl.settings import merge, validate
from constrained_rl.weight_average import WeightAverage

RULES = ("scale_free", "pid_lagrangian", "ppo_lagrangian")
EPISODES = 2000
"""played by each policy: the mean cost of 200 is known to 10 % of PointHazard's limit"""
SHARE = PRESETS["scale_free"]["average"]
"""of training, whose policies' weights are averaged"""
SMOOTH = 10
"""iterations whose mean is a cost over training: 20 to 80 episodes end in each"""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """An environment with settings of its own, whatever rule is used."""

    name: str
    env_id: str
    limit: tuple[float, ...]  # [K]
    settings: Mapping[str, Any]
    rules: tuple[str, ...] = RULES
    units: tuple[float, float] = (1.0, 1.0)  # factors of rewards and of costs


def built_in(name: str) -> Problem:
    """A row of the library's table, as it stands there."""
    row = BUILT_IN[f"constrained_rl/{name}-v0"]
    return Problem(name, row.id, row.limit, row.settings)


HAZARD = built_in("PointHazard")
ROOM = Problem("Room", "my_env:Room-v0", (29.0, 9.0), {"total_steps": 150_000})
FACTORS = (100.0, 0.01)
# Critics of other units learn at another speed, whatever λ does: values are normalised in both.
NORMALIZED = replace(
    HAZARD,
    name="PointHazard, values normalised",
    settings=merge(HAZARD.settings, {"ppo": {"normalize_values": True}}),
    rules=("scale_free", "pid_lagrangian"),
)
SCALED = replace(
    NORMALIZED,
    name="the same, rewards × 100, costs × .01",
    env_id="ScaledPointHazard-v0",
    limit=tuple(FACTORS[1] * bound for bound in HAZARD.limit),
    units=FACTORS,
)
COURIER = built_in("PointCourier")
PROBLEMS = (HAZARD, ROOM, built_in("SpeedLimit"), COURIER, NORMALIZED, SCALED)


class Scaled(gymnasium.vector.VectorWrapper[Any, Any, Any]):
    """The same environment in other units."""

    def __init__(self, env: VectorEnv[Any, Any, Any], reward: float, cost: float) -> None:
        super().__init__(env)
        self._factors = (reward, cost)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:  # noqa: ANN401
        """Play, and convert."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        info = {**info, "cost": self._factors[1] * info["cost"]}
        return obs, self._factors[0] * reward, terminated, truncated, info


def _scaled_hazard(**kwargs: Any) -> Scaled:  # noqa: ANN401  as Gymnasium calls it
    return Scaled(point_hazard_vec(**kwargs), *FACTORS)


gymnasium.register(SCALED.env_id, vector_entry_point=_scaled_hazard)
sys.path.append(str(ROOT / "docs" / "examples"))  # `my_env`


@dataclass(frozen=True)
class Job:
    """One training run."""

    problem: Problem
    rule: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)  # above the problem's

    @property
    def config(self) -> RunConfig:
        """Everything resolved: preset, then problem, then what this run changes."""
        tree = merge(defaults(self.rule, None), self.problem.settings)
        own = {"env": {"id": self.problem.env_id}, "limit": self.problem.limit, "seed": self.seed}
        own |= {"average": 0.0}  # so that the last policy is there too; `play` takes the mean
        return validate(RunConfig, merge(merge(tree, own), self.settings), "settings")

    def shortened(self, iterations: int) -> Job:
        """The same with another number of iterations."""
        steps = iterations * self.config.env.num_envs * self.config.ppo.horizon
        return replace(self, settings={**self.settings, "total_steps": steps})


def play(job: Job) -> Record:
    """Train, then measure the last policy and the mean of the last ones."""
    agent = Agent(job.config)
    names = [constraint.name for constraint in agent.parts.constraints.constraints]
    iterations = math.ceil(job.config.total_steps / agent.steps_per_iteration)
    average = WeightAverage(agent.policy, SHARE)
    start = time.process_time()
    rows, policies = [], []
    for number, row in enumerate(agent.iterate(), 1):
        rows.append(row)
        if number < iterations:
            average.observe(number, iterations)
        if average.covers(number, iterations):
            policies.append(copy.deepcopy(agent.policy.state_dict()))
    seconds = time.process_time() - start
    limit = np.array(job.problem.limit)
    last = measure(agent, names, limit)
    average.observe(iterations, iterations)
    mean = measure(agent, names, limit)
    mixed = mixture(agent, names, policies)
    agent.close()
    lam = np.array([column(rows, f"lambda/{name}") for name in names])
    return {
        "last": last,
        "mean": mean,
        "mixture": mixed,
        "limit": limit.tolist(),
        "lambda": lam[:, int(SETTLED * len(rows)) :].mean(axis=1).tolist(),
        **over_training(np.array([column(rows, f"cost/{name}") for name in names]), limit),
        "cpu_seconds": seconds,
    }


def measure(agent: Agent, names: list[str], limit: Floats) -> Record:
    """The policy that the agent has now, on fresh episodes that are the same for all."""
    found = agent.evaluate(EPISODES).intervals()
    costs = [found[f"cost/{name}"] for name in names]
    excess = [violation([cost.value], [bound]) for cost, bound in zip(costs, limit, strict=True)]
    return {
        "return": asdict(found["return"]),
        "cost": [asdict(cost) for cost in costs],
        "violation": max(excess),
        "kept": [each <= TOLERANCE for each in excess],
    }


def mixture(agent: Agent, names: list[str], policies: list[Any]) -> list[float]:
    """Costs [K] of playing each of the policies equally often: what their mean should be like."""
    episodes = max(2, EPISODES // len(policies))
    costs = []
    for number, policy in enumerate(policies):
        agent.policy.load_state_dict(policy)
        seed = evaluation_seed(agent.config.seed) + 1 + number
        found = agent.evaluate(episodes, seed=seed).intervals()
        costs.append([found[f"cost/{name}"].value for name in names])
    mean: list[float] = np.mean(costs, axis=0).tolist()
    return mean


def over_training(cost: Floats, limit: Floats) -> Record:
    """How the limits were kept while learning, [K, T] mean costs of the episodes that finished.

    Of the plain means, which every rule has, and not of what a rule makes of them. The limits may
    first be kept by a policy that goes nowhere yet.
    """
    ended = np.flatnonzero(np.isfinite(cost).all(axis=0))
    if len(ended) == 0:
        raise ValueError("no episode ended while training; train for more steps")
    window = min(SMOOTH, len(ended))
    mean = np.array([np.convolve(k, np.ones(window) / window, "valid") for k in cost[:, ended]]).T
    times = (ended[window - 1 :] + 1) / cost.shape[1]
    first = time_to_feasibility(mean, limit, times, min(window, len(mean)))
    return {"violation_regret": violation_regret(mean, limit), "feasible_from": first}


def run_of(job: Job) -> Run:
    """A job as a run that is kept."""
    labels = {"problem": job.problem.name, "rule": job.rule, "seed": job.seed}
    digest = hashlib.sha256(job.config.model_dump_json().encode()).hexdigest()[:16]
    return Run(labels, digest, partial(play, job))


def jobs_of(seeds: int, iterations: int | None) -> list[Job]:
    """Seed by seed, so that a table that is stopped has some of everything."""
    rows = [(p, rule, seed) for seed in range(seeds) for p in PROBLEMS for rule in p.rules]
    jobs = [Job(*row) for row in rows]
    return [job.shortened(iterations) for job in jobs] if iterations else jobs


def main(words: list[str] | None = None) -> int:
    """Run what is missing, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=positive, default=5, help="of every rule")
    add_options(parser, "control")
    arguments = parser.parse_args(words)
    jobs = jobs_of(arguments.seeds, arguments.iterations)
    records = finished([run_of(job) for job in jobs], arguments)
    table = table_of(records, {problem.name: problem.units for problem in PROBLEMS})
    document = rounded({"table": table, "runs": records, "provenance": provenance()})
    whole = not arguments.iterations and len(records) == len(jobs)
    keep_result(document, arguments, "control" if whole else None)
    if arguments.json:
        print(json.dumps(document, allow_nan=False))
    else:
        show(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
