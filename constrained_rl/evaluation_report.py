"""`crl evaluate RUN`: a run's last and best policy, played afresh, as JSON or as a table."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from constrained_rl.agent import Agent
from constrained_rl.errors import Notice
from constrained_rl.evaluation import MODES, Evaluation
from constrained_rl.feasibility import kept
from constrained_rl.processes import close_envs
from constrained_rl.seeds import Seeds
from constrained_rl.statistics import Interval


def evaluate_run(
    folder: Path, episodes: int, seed: int, device: str | None = None
) -> dict[str, Any]:
    """Evaluate `folder` and its `best/`, sampled and deterministic, on the same episodes."""
    folders = {"last": folder, "best": folder / "best"}
    if not (folder / "config.toml").is_file():
        folders = {folder.name: folder}
    rows = []
    for which, place in folders.items():
        if place != folder and not place.is_dir():
            continue  # no evaluation was feasible, or none was asked for
        agent = Agent.read(place, device=device)
        count = min(episodes, agent.config.env.num_envs)
        _warn_of_seen_seeds(seed, count, agent.collector.under_way.seeds)
        envs = agent.separate_environments(count)
        unfinished = which == "last" and not (folder / "policy.safetensors").is_file()
        at = f" (iteration {agent.parts.iteration})" if which == "best" or unfinished else ""
        for mode, deterministic in MODES.items():
            found = agent.play(envs, episodes, deterministic, seed)
            rows.append({"policy": which + at, "mode": mode} | describe(found))
        close_envs(envs)
        agent.close()
    return {"run": str(folder), "seed": seed, "policies": rows}


def _warn_of_seen_seeds(seed: int, count: int, seeds: Seeds) -> None:
    use = seeds.given_to(seed, count)
    if use is not None:
        warnings.warn(
            f"--seed {seed} plays episodes of {use}, which had a say in which policy this is; for "
            f"fresh ones give another, such as --seed {seeds.free(count)}",
            Notice,
            stacklevel=3,
        )


def describe(found: Evaluation) -> dict[str, Any]:
    """An evaluation as plain numbers with 95 % intervals."""
    intervals = found.intervals()
    return {
        "episodes": len(found),
        "return": asdict(intervals["return"]),
        "length": asdict(intervals["length"]),
        "cost": {name: asdict(intervals[f"cost/{name}"]) for name in found.cost_names},
        "constraints": [
            {
                "name": c.name,
                "transform": c.transform,
                "quantity": c.quantity,
                "limit": c.limit,
                "estimate": asdict(intervals[f"estimate/{c.name}"]),
                "kept": kept(intervals[f"estimate/{c.name}"].value, c.limit),
            }
            for c in found.constraints
        ],
        "feasible": found.feasible,
    }


def print_evaluations(found: dict[str, Any], console: Console) -> None:
    """One line per policy and mode: return and every constrained cost with its limit."""
    rows = found["policies"]
    title = f"{found['run']}: {rows[0]['episodes']} episodes, seed {found['seed']}, ± 95%"
    table = Table(title=title, title_justify="left")
    table.add_column("policy", overflow="fold")
    table.add_column("actions", no_wrap=True)
    table.add_column("return", justify="right")
    bounded = [c["name"] for c in rows[0]["constraints"]]
    free = [name for name in rows[0]["cost"] if name not in bounded]
    for constraint in rows[0]["constraints"]:
        table.add_column(f"{constraint['name']} ≤ {constraint['limit']:g}", justify="right")
    for name in free:
        table.add_column(f"cost {name}", justify="right")
    table.add_column("length", justify="right")
    for row in rows:
        estimates = [
            f"{'[green]' if c['kept'] else '[red]'}{interval_text(c['estimate'])}[/]"
            for c in row["constraints"]
        ]
        table.add_row(
            row["policy"],
            row["mode"],
            interval_text(row["return"]),
            *estimates,
            *(interval_text(row["cost"][name]) for name in free),
            interval_text(row["length"]),
        )
    console.print(table)


def interval_text(found: dict[str, float]) -> str:
    """`1.23 ± 0.12`: Student's t intervals are symmetric."""
    interval = Interval(**found)
    return f"{interval.value:.3g} ± {interval.high - interval.value:.1g}"
