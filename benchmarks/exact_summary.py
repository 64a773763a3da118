"""What the runs come to: per problem and rule, over problems, and against the targets.

All figures but costs and times have no unit: regret 1 is the distance of the uniform policy from
the optimum, violation 1 is a limit missed by its own size. Failed runs count as not within 5 %,
and are left out of means.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from exact_cases import DEFAULT, FACTORS, PUBLISHED, ROBUSTNESS, Job, Problem, static

from constrained_rl.feasibility import TOLERANCE
from constrained_rl.statistics import iqm, probability_of_improvement, proportion_interval

Record = dict[str, Any]
TARGETS = {"regret": 0.02, "violation": 0.01, "within": 0.95, "multiplier_error": 0.2}
"""of the default rule on every feasible problem; `within` from below, the rest from above"""
ROBUST_TARGET = 0.9
"""share of seeds within 5 % violation under other gains, starts and units"""


def summary(jobs: Sequence[Job], records: Sequence[Record]) -> Record:
    """The whole document but for the runs and where they came from."""
    problems = list({job.problem.name: job.problem for job in jobs}.values())
    feasible = [problem for problem in problems if problem.feasible]
    scores = {problem.name: scores_of(problem, records) for problem in feasible}
    return {
        "targets": TARGETS,
        "problems": {problem.name: described(problem) for problem in problems},
        "scores": scores,
        "over_problems": over_problems(feasible, records),
        "robustness": robustness(problems, records),
        "infeasible": {p.name: outcomes(p, records) for p in problems if not p.feasible},
    }


def described(problem: Problem) -> Record:
    """The optimum, or how far from feasible it is."""
    yardstick, solution = problem.yardstick, problem.yardstick.solution
    states, actions, constraints = yardstick.cmdp.sizes
    found: Record = {
        "origin": problem.origin,
        "feasible": problem.feasible,
        "states": states,
        "actions": actions,
        "constraints": constraints,
        "discount": yardstick.cmdp.discount,
        "limit": yardstick.cmdp.limit.tolist(),
        "uniform_value": yardstick.uniform,
    }
    if solution.least_cost is not None:
        return found | {"least_cost": np.asarray(solution.least_cost).tolist()}
    return found | {
        "value": solution.value,
        "cost": solution.cost.tolist(),
        "multipliers": solution.multipliers.tolist(),
        "unique_price": yardstick.unique_price,
    }


def scores_of(problem: Problem, records: Iterable[Record]) -> Record:
    """Scores of every rule that was played on a problem; ν with hindsight beside them."""
    mine = [record for record in records if record["problem"] == problem.name]
    found = {
        name: judged(scored([r for r in mine if r["algorithm"] == name], {problem.name: problem}))
        for name in dict.fromkeys(record["algorithm"] for record in mine)
    }
    best = best_static(found)
    return found | ({"best static": found[best] | {"chosen": best}} if best else {})


def best_static(scores: Record) -> str | None:
    """The ν of a grid with the least regret: chosen with hindsight, so a bound on static ν."""
    tried = [static(factor).name for factor in FACTORS]
    known = [name for name in tried if scores.get(name, {}).get("regret")]
    if len(known) < 2:
        return None
    return min(known, key=lambda name: float(scores[name]["regret"]["value"]))


def scored(records: Sequence[Record], problems: Mapping[str, Problem]) -> Record:
    """One rule on one problem, or on several; intervals are stratified by problem."""
    ended = [record for record in records if "failed" not in record]
    kept = sum(record["last"]["violation"] <= TOLERANCE for record in ended)
    alone = ended and len({record["problem"] for record in ended}) == 1
    times = [record["time_to_feasibility"] for record in ended]
    return {
        "runs": len(records),
        "failed": len(records) - len(ended),
        "regret": middle(ended, lambda r: r["last"]["regret"]),
        "violation": middle(ended, lambda r: r["last"]["violation"]),
        "within": asdict(proportion_interval(kept, len(records), method="exact")),
        "multiplier_error": middle(ended, lambda r: price_error(r, problems[r["problem"]])),
        "ergodic_regret": middle(ended, lambda r: r["ergodic"]["regret"]),
        "ergodic_violation": middle(ended, lambda r: r["ergodic"]["violation"]),
        "violation_regret": middle(ended, lambda r: r["violation_regret"]),
        "settled": sum(at is not None for at in times),
        "time_to_feasibility": median([math.inf if at is None else at for at in times]),
        "cpu_seconds": median([record["cpu_seconds"] for record in ended]),
        "cost": np.mean([r["last"]["cost"] for r in ended], axis=0).tolist() if alone else None,
    }


def middle(records: Sequence[Record], of: Callable[[Record], float | None]) -> Record | None:
    """Interquartile mean of a figure with its interval; None where no run has it."""
    pairs = [(of(record), record["problem"]) for record in records]
    values = [(value, problem) for value, problem in pairs if value is not None]
    if not values:
        return None
    found = iqm([value for value, _ in values], [problem for _, problem in values])
    return {name: finite(value) for name, value in asdict(found).items()}


def median(values: Sequence[float]) -> float | None:
    """None of nothing, and where the middle run never got there."""
    return finite(statistics.median(values)) if values else None


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def price_error(record: Record, problem: Problem) -> float | None:
    """‖λ̄ − λ*‖₁ / ‖λ*‖₁ with λ̄ the mean over the last 20 % of training; None: no one λ* > 0."""
    price = problem.yardstick.solution.multipliers
    if not problem.yardstick.unique_price or not price.sum() > 0:
        return None
    return float(np.abs(np.asarray(record["multipliers"]) - price).sum() / price.sum())


def over_problems(feasible: Sequence[Problem], records: Sequence[Record]) -> Record:
    """Each rule over the problems of one origin, intervals stratified by problem."""
    by_origin: dict[str, list[Problem]] = {}
    for problem in feasible:
        if problem.origin != "scaled":
            by_origin.setdefault(problem.origin, []).append(problem)
    varied = {algorithm.name for algorithm in ROBUSTNESS}
    found: Record = {}
    for origin, problems in by_origin.items():
        known = {problem.name: problem for problem in problems}
        mine = [r for r in records if r["problem"] in known and r["algorithm"] not in varied]
        found[origin] = {
            name: judged(scored([r for r in mine if r["algorithm"] == name], known))
            for name in dict.fromkeys(record["algorithm"] for record in mine)
        }
    return found


def judged(score: Record) -> Record:
    """With `targets`: each met or not, None where the problem has no such figure."""
    found: dict[str, bool | None] = {}
    for name, target in TARGETS.items():
        value = None if score[name] is None else score[name]["value"]
        if value is None:
            found[name] = None
        else:
            found[name] = bool(value >= target if name == "within" else value <= target)
    return score | {"targets": found}


def robustness(problems: Sequence[Problem], records: Sequence[Record]) -> list[Record]:
    """The default rule with other gains and starts, and in other units, each against itself."""
    known = {problem.name: problem for problem in problems}
    played = dict.fromkeys((r["algorithm"], r["problem"]) for r in records)
    varied = [
        compared(name, algorithm.name, name, records, known[name])
        for algorithm in ROBUSTNESS
        for rule, name in played
        if rule == algorithm.name
    ]
    parts = {problem.name: problem.name.partition(", ") for problem in problems}
    rescaled = [
        compared(parts[p.name][0], parts[p.name][2], p.name, records, p)
        for p in problems
        if p.origin == "scaled" and (DEFAULT, p.name) in played
    ]
    return varied + rescaled


def compared(
    name: str, change: str, changed: str, records: Sequence[Record], problem: Problem
) -> Record:
    """A change against the plain run; `improvement`: P(plain has less regret) + P(as much) / 2.

    Gains and starts must keep the limits; other units must in addition change nothing but chance.
    """
    rule = DEFAULT if changed != name else change
    mine = [r for r in records if (r["problem"], r["algorithm"]) == (changed, rule)]
    plain = [r for r in records if (r["problem"], r["algorithm"]) == (name, DEFAULT)]
    regrets = [
        [r["last"]["regret"] for r in side if "failed" not in r and r["last"]["regret"] is not None]
        for side in (plain, mine)
    ]
    # less regret is better, so the sides change places
    improvement = probability_of_improvement(*reversed(regrets)) if all(regrets) else None
    score = scored(mine, {problem.name: problem})
    altered = changed != name and improvement is not None and improvement.excludes(0.5)
    return {
        "problem": name,
        "change": change,
        **score,
        "targets": {"within": score["within"]["value"] >= ROBUST_TARGET, "unaltered": not altered},
        "plain_regret": middle(plain, lambda r: r.get("last", {}).get("regret")),
        "improvement": None if improvement is None else asdict(improvement),
    }


def outcomes(problem: Problem, records: Iterable[Record]) -> Record:
    """Where rules end up when no policy respects the limits: mean costs and λ."""
    found = {}
    mine = [r for r in records if r["problem"] == problem.name and "failed" not in r]
    for name in dict.fromkeys(record["algorithm"] for record in mine):
        of = [record for record in mine if record["algorithm"] == name]
        found[name] = {
            "runs": len(of),
            "cost": np.mean([r["last"]["cost"] for r in of], axis=0).tolist(),
            "violation": float(np.mean([r["last"]["violation"] for r in of])),
            "value": float(np.mean([r["last"]["value"] for r in of])),
            "multipliers": np.mean([r["multipliers"] for r in of], axis=0).tolist(),
        }
    return found


RULES = (DEFAULT, *(algorithm.name for algorithm in PUBLISHED), static(1.0).name)


def columns(scores: Mapping[str, Record]) -> list[str]:
    """The rules in tables and figure; the best static weight where every problem had a grid."""
    rules = [rule for rule in RULES if any(rule in of for of in scores.values())]
    return rules + ["best static"] * all("best static" in of for of in scores.values())
