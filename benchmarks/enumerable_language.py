"""How close does training come to the exact optimum of constrained RLHF? On listed languages.

    python benchmarks/enumerable_language.py            # all of docs/enumerable_language.md
    python benchmarks/enumerable_language.py --quick    # two short runs, nothing written

Trains a small Llama through the ordinary path (`llm_env.safe_rlhf.alignment`, `ppo.train`) on the
languages of seeds 0 … N − 1 (settings were chosen on seed 100), evaluates the last policy by
listing all its responses, and prints a table. Finished runs are kept under --runs and used again.
Also: how good one-shot estimates of λ* are, by effective sample size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from enumerable_cases import (
    BETA,
    CONTROLLERS,
    EVERY,
    LIMIT,
    PPO,
    STREAMS,
    TASK,
    problem_of,
)
from enumerable_figure import draw
from over_seeds import interval
from resumable import (
    LIBRARY,
    ROOT,
    Run,
    add_options,
    finished,
    keep_result,
    positive,
    rounded,
)
from rich.console import Console
from rich.table import Table

from constrained_rl.advantages import KLStreams
from constrained_rl.ppo import train
from constrained_rl.provenance import provenance
from constrained_rl.settings import validate
from llm_env.config import AlignConfig
from llm_env.enumerable.language import by_table, log_probabilities
from llm_env.enumerable.optimum import Infeasible, Optimum, evaluate, solve
from llm_env.enumerable.problem import Floats
from llm_env.enumerable.small_world import SmallWorld, small_world
from llm_env.one_shot.estimate import Samples, effective_sizes
from llm_env.safe_rlhf import alignment

PACKAGES = (LIBRARY, ROOT / "llm_env")
TARGET = 0.98  # of the share
DEFAULT = "scale_free"
ITERATIONS, QUICK_ITERATIONS = 400, 10
REPETITIONS = 20  # of every one-shot estimate
LABELS = ("kl_streams", "controller", "seed", "iterations")
EDGES = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 50.0, 1000.0)
Row = dict[str, Any]


def run(kl_streams: KLStreams, controller: str, seed: int, iterations: int) -> Row:
    """Train on the language of a seed and hold the last policy against its optimum."""
    torch.set_num_threads(1)
    world, start = small_world(seed), time.process_time()
    problem = problem_of(world, kl_streams)
    optimum = solve(problem)
    assert isinstance(optimum, Optimum)
    tree = TASK | {
        "iterations": iterations,
        "multiplier": CONTROLLERS[controller],
        "ppo": PPO | {"kl_streams": kl_streams},
    }
    language = world.language
    parts = alignment(
        world.model,
        language.tokenizer,
        language.prompts,
        by_table(language, world.reward),
        {"cost": by_table(language, world.cost)},
        validate(AlignConfig, tree, "benchmark"),
        seed,
    )
    lam = [metrics["lambda/cost"] for metrics in train(parts, iterations)]
    seconds = time.process_time() - start
    found = evaluate(problem, optimum, log_probabilities(parts.policy.model, language))
    late = lam[-max(1, iterations // 5) :]
    return {
        "kl_streams": kl_streams,
        "controller": controller,
        "seed": seed,
        "iterations": iterations,
        "share": found.share,
        "reward": found.reward,
        "cost": float(found.cost[0]),
        "kl": found.kl,
        "kl_optimum": found.kl_optimum,
        "lambda": lam[::EVERY],
        "mean_lambda": float(np.mean(late)),
        "optimum": {
            "lambda": float(optimum.multipliers[0]),
            "reward": optimum.reward,
            "cost": float(optimum.cost[0]),
            "kl": optimum.kl,
            "gain": optimum.objective - optimum.reference_objective,
        },
        "cpu_seconds": seconds,
    }


def one_shot(seed: int, repetitions: int) -> Row:
    """Errors λ̂/λ* − 1 of estimates from n samples per prompt, with their effective sample sizes."""
    sizes, errors = [], []
    world, rng = small_world(seed), np.random.default_rng(seed)
    for beta in (3.0, 1.0, 0.5, 0.3, 0.1):
        truth = solve(problem_of(world, "reward", beta))
        assert isinstance(truth, Optimum)
        for n in (32, 128, 512):
            for sample in drawn(world, n, repetitions, rng):
                estimate = solve(sample.problem(np.array([LIMIT]), beta, "reward"))
                if isinstance(estimate, Infeasible):
                    continue
                sizes.append(float(1 / np.mean(1 / effective_sizes(estimate.log_policy))))
                errors.append(float(estimate.multipliers[0] / truth.multipliers[0] - 1))
    return {"sizes": sizes, "errors": errors}


def by_size(size: Floats, error: Floats) -> list[Row]:
    """Bias and spread of the estimates in each range of effective sample sizes."""
    rows = []
    for low, high in pairwise(EDGES):
        inside = error[(size >= low) & (size < high)]
        if len(inside):
            far = abs(inside)
            row = {"low": low, "high": high, "count": len(inside), "bias": float(inside.mean())}
            row |= {"median": float(np.median(far)), "p90": float(np.quantile(far, 0.9))}
            rows.append(row | {"within_quarter": float(np.mean(far < 0.25))})
    return rows


def drawn(world: SmallWorld, n: int, times: int, rng: np.random.Generator) -> Iterator[Samples]:
    """Responses of the reference to each prompt, by their exact probabilities."""
    mass: Floats = np.exp(world.log_reference)
    for _ in range(times):
        index = np.stack([rng.choice(len(p), size=n, p=p / p.sum()) for p in mass])
        reward = np.take_along_axis(world.reward, index, 1)
        yield Samples(reward, np.take_along_axis(world.cost, index, 1)[None])


def print_runs(rows: list[Row], console: Console) -> None:
    """A line per kl_streams and controller."""
    table = Table(title=f"β = {BETA}, E[C] ≤ {LIMIT}; mean [95 % interval] over languages")
    for name in ("KL paid by", "controller", "share %", "least", f"≥ {TARGET:.0%}"):
        table.add_column(name)
    for name in ("mean λ / λ* − 1, %", "E[C] − limit", "worst", "CPU s"):
        table.add_column(name, justify="right")
    for kl_streams in STREAMS:
        for controller in CONTROLLERS:
            mine = [
                row
                for row in rows
                if (row["kl_streams"], row["controller"]) == (kl_streams, controller)
            ]
            if mine:
                table.add_row(kl_streams, controller, *summary(mine))
    console.print(table)


def summary(rows: list[Row]) -> list[str]:
    """Cells of one line."""
    share = [100 * row["share"] for row in rows]
    price = [100 * (row["mean_lambda"] / row["optimum"]["lambda"] - 1) for row in rows]
    excess = [row["cost"] - LIMIT for row in rows]
    return [
        interval(share, 1),
        f"{min(share):.1f}",
        f"{sum(s >= 100 * TARGET for s in share)} of {len(share)}",
        interval(price, 1),
        interval(excess, 3),
        f"{max(excess):+.3f}",
        f"{np.median([row['cpu_seconds'] for row in rows]):.0f}",
    ]


def print_estimates(rows: list[Row], console: Console) -> None:
    """How wrong one-shot estimates are, by effective sample size."""
    table = Table(
        title="one-shot estimate of λ*: relative error by effective sample size per prompt"
    )
    for name in ("ESS", "estimates", "bias", "median error", "90 % below", "within 25 %"):
        table.add_column(name, justify="right")
    for row in rows:
        shares = [f"{row[name]:.0%}" for name in ("median", "p90", "within_quarter")]
        span = f"{row['low']:g} – {row['high']:g}"
        table.add_row(span, str(row["count"]), f"{row['bias']:+.0%}", *shares)
    console.print(table)


def training_runs(arguments: argparse.Namespace) -> list[Run]:
    """The default controller on all languages first, then the others on the first few."""
    quick: bool = arguments.quick
    iterations = arguments.iterations or (QUICK_ITERATIONS if quick else ITERATIONS)
    jobs: list[tuple[KLStreams, str, int]] = [
        (kl_streams, controller, seed)
        for controller in ([DEFAULT] if quick else CONTROLLERS)
        for seed in range(seeds_of(controller, arguments))
        for kl_streams in STREAMS
    ]
    return [
        Run(
            {"kl_streams": job[0], "controller": job[1], "seed": job[2], "iterations": iterations},
            digest_of(PPO, TASK, CONTROLLERS[job[1]], job, iterations),
            partial(run, *job, iterations),
        )
        for job in jobs
    ]


def seeds_of(controller: str, arguments: argparse.Namespace) -> int:
    """How many languages a controller is tried on."""
    if arguments.quick:
        return 1
    seeds: int = arguments.seeds if controller == DEFAULT else arguments.others
    return seeds


def one_shot_runs(quick: bool) -> list[Run]:
    """The estimates of λ* on each language."""
    seeds = [0] if quick else [0, 1, 2]
    return [
        Run(
            {"what": "one-shot estimates", "seed": seed},
            digest_of("one-shot", seed, REPETITIONS),
            partial(one_shot, seed, REPETITIONS),
        )
        for seed in seeds
    ]


def digest_of(*parts: object) -> str:
    """What a run is made of, besides the code."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def arguments_of(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=positive, default=5, help="languages, default controller")
    parser.add_argument("--others", type=positive, default=2, help="languages, other controllers")
    parser.add_argument("--quick", action="store_true", help="one short run each, nothing written")
    add_options(parser, "enumerable_language")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run what is missing, print, write, draw."""
    arguments = arguments_of(words)
    runs, estimates = training_runs(arguments), one_shot_runs(arguments.quick)
    found = finished([*runs, *estimates], arguments, PACKAGES)
    fine = [row for row in found if "failed" not in row]
    rows = [row for row in fine if "share" in row]
    samples = [row for row in fine if "sizes" in row]
    sizes, errors = (
        np.array([x for row in samples for x in row[name]]) for name in ("sizes", "errors")
    )
    document = rounded(
        {
            "settings": {"ppo": PPO, "task": TASK, "controllers": CONTROLLERS},
            "runs": sorted(rows, key=lambda row: [str(row[name]) for name in LABELS]),
            "one_shot": by_size(sizes, errors),
            "provenance": provenance(),
        }
    )
    part = arguments.quick or arguments.iterations or len(fine) < len(runs) + len(estimates)
    keep_result(document, arguments, None if part else "enumerable_language")
    if not part:
        draw(document["runs"])
    if arguments.json:
        print(json.dumps(document, allow_nan=False))
    else:
        console = Console(width=None if sys.stdout.isatty() else 140)
        print_runs(document["runs"], console)
        print_estimates(document["one_shot"], console)
    return 0 if len(fine) == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
