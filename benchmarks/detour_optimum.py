"""Is the trained policy the optimum? Every preset on Detour-v0 against its linear program.

    python benchmarks/detour_optimum.py --seeds 100,101,102,103,104

Trains with the built-in environment's settings (tuned on seeds 0–2), evaluates the last policy
*exactly* (linear solve, no sampling), prints a table and writes results/detour_optimum.json.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from over_seeds import keeping, middle
from rich.console import Console
from rich.table import Table

import constrained_rl as crl
from constrained_rl.checkpoint import write_text
from constrained_rl.envs.problems import cmdp_of
from constrained_rl.oracle import evaluate_policy, solve
from constrained_rl.provenance import provenance

ENV = "constrained_rl/Detour-v0"
OUT = Path(__file__).parent / "results" / "detour_optimum.json"
TOLERANCE = 5.0  # per cent


def exact(agent: crl.Agent) -> tuple[float, float]:
    """Exact value and cost of the agent's stochastic policy."""
    cmdp = cmdp_of(ENV)
    states, actions = cmdp.reward.shape
    obs = torch.eye(states).unsqueeze(1)
    with torch.no_grad():
        logp = [agent.policy(obs, torch.full((states, 1), a))[0][:, 0] for a in range(actions)]
    probability = torch.stack(logp, -1).double().softmax(-1)
    value, cost = evaluate_policy(cmdp, probability.numpy())
    return float(value), float(cost[0])


def run(preset: str, seed: int) -> dict[str, Any]:
    """Train one agent and hold it against the optimum."""
    cmdp, start = cmdp_of(ENV), time.process_time()
    optimum = solve(cmdp)
    agent = {
        "pid_lagrangian": lambda: crl.pid_lagrangian(ENV, seed=seed),
        "ppo_lagrangian": lambda: crl.ppo_lagrangian(ENV, seed=seed),
        "static_shaping at λ*": lambda: crl.static_shaping(
            ENV, weight=float(optimum.multipliers[0]), seed=seed
        ),
        "ppo": lambda: crl.ppo(ENV, seed=seed),
    }[preset]()
    metrics = agent.train()
    value, cost = exact(agent)
    limit = float(cmdp.limit[0])
    return {
        "preset": preset,
        "seed": seed,
        "gap_percent": 100 * (optimum.value - value) / abs(optimum.value),
        "violation_percent": 100 * (cost - limit) / limit,
        "lambda": metrics.get("lambda/risk"),
        "cpu_seconds": time.process_time() - start,
    }


def within(row: dict[str, Any]) -> bool:
    """Within the tolerance of J* and of the limit."""
    return abs(row["gap_percent"]) < TOLERANCE and row["violation_percent"] < TOLERANCE


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="100,101,102,103,104")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    presets = ["pid_lagrangian", "ppo_lagrangian", "static_shaping at λ*", "ppo"]
    jobs = [(preset, seed) for preset in presets for seed in seeds]
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(run, *zip(*jobs, strict=True)))
    optimum = solve(cmdp_of(ENV))
    table = Table(title=f"J* = {optimum.value:.3f}, λ* = {optimum.multipliers[0]:.3f}, limit 4")
    names = ("preset", "gap % per seed", "IQM", "violation % per seed", "kept to 5 %")
    for column in (*names, "within 5 %", "CPU s"):
        table.add_column(column)
    for preset in presets:
        mine = [row for row in rows if row["preset"] == preset]
        table.add_row(
            preset,
            " ".join(f"{row['gap_percent']:.1f}" for row in mine),
            middle([row["gap_percent"] for row in mine], 1),
            " ".join(f"{row['violation_percent']:.1f}" for row in mine),
            keeping([row["violation_percent"] for row in mine], TOLERANCE),
            f"{sum(map(within, mine))} of {len(mine)}",
            f"{sorted(row['cpu_seconds'] for row in mine)[len(mine) // 2]:.0f}",
        )
    Console(width=140).print(table)
    arguments.out.parent.mkdir(exist_ok=True)
    document = {
        "value": optimum.value,
        "multiplier": float(optimum.multipliers[0]),
        "runs": rows,
        "provenance": provenance(),
    }
    write_text(arguments.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
