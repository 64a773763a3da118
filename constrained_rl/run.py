"""A run on disk: start, checkpoint, resume, finish.

    config.toml  provenance.json  metrics.jsonl  checkpoints/<iteration>/  policy.safetensors

`policy.safetensors` is written last: a folder that has it is a finished run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from constrained_rl.agent import Agent
from constrained_rl.checkpoint import load_latest, save_checkpoint, write_tensors, write_text
from constrained_rl.config import CheckpointConfig, RunConfig
from constrained_rl.errors import InputError
from constrained_rl.logging import JsonlLogger, RichLogger, keep_iterations
from constrained_rl.ppo import Parts, train
from constrained_rl.protocols import Logger
from constrained_rl.provenance import write_provenance
from constrained_rl.settings import read_toml, to_toml, validate


def default_folder(name: str, seed: int) -> Path:
    """`runs/<name>/<UTC time>-s<seed>`."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return Path("runs") / name.replace("/", "_") / f"{stamp}-s{seed}"


def refuse_used(folder: Path) -> None:
    """Raise `InputError` if something is where a run directory is to be made."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} exists and is not empty; nothing was changed. Continue it with "
            f"`crl resume {folder}`, or choose another --out"
        )


def start(config: RunConfig, folder: Path) -> Path:
    """Create a run directory, train in it to the end, and return it."""
    refuse_used(folder)
    agent = Agent(config)  # whatever is wrong with the config shows before a folder exists
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.toml", to_toml(agent.config))
    write_provenance(folder)
    _finish(agent, folder)
    return folder


def resume(folder: Path) -> bool:
    """Continue a run from its last checkpoint, or from its beginning when it has none.

    Returns False when the run was finished already.
    """
    if not (folder / "config.toml").is_file():
        raise InputError(
            f"{folder} is not a run directory: it has no config.toml; "
            "give the folder that `crl train --out` made"
        )
    if (folder / "policy.safetensors").exists():
        return False
    config = validate(RunConfig, read_toml(folder / "config.toml"), str(folder / "config.toml"))
    _finish(Agent(config), folder)
    return True


def _finish(agent: Agent, folder: Path) -> None:
    """Train from wherever the folder stands to the end, then write the final policy."""
    config, parts = agent.config, agent.parts
    iterations = math.ceil(config.total_steps / agent.steps_per_iteration)
    limits = {c.name: c.limit for c in parts.constraints.constraints}
    title = f"{config.preset} on {config.env.id}, seed {config.seed}"
    live = RichLogger(iterations, title, limits)
    try:
        drive(parts, iterations, folder, config.checkpoint, config.seed, [live])
    finally:
        agent.close()
    write_tensors(folder / "policy.safetensors", agent.policy.state_dict())


def drive(
    parts: Parts,
    iterations: int,
    folder: Path,
    checkpoint: CheckpointConfig,
    seed: int,
    loggers: Sequence[Logger] = (),
) -> None:
    """Run the loop in a folder: restore, log to metrics.jsonl, checkpoint on fixed iterations."""
    state = load_latest(folder / "checkpoints")
    if state is not None:
        parts.load_state_dict(state)
    keep_iterations(folder / "metrics.jsonl", parts.iteration)
    every = [JsonlLogger(folder / "metrics.jsonl"), *loggers]
    try:
        for metrics in train(parts, iterations):
            for logger in every:
                logger.log(parts.iteration, metrics)
            if parts.iteration % checkpoint.every == 0:
                # Environments that cannot save their state restart here, resumed or not.
                parts.collector.at_checkpoint(seed * 1_000_003 + parts.iteration)
                root = folder / "checkpoints"
                save_checkpoint(root, parts.iteration, parts.state_dict(), checkpoint.keep)
    finally:
        for logger in every:
            logger.close()
