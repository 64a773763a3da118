"""A run on disk: start, checkpoint, stop, resume, finish.

    provenance.json  config.toml  metrics.jsonl  checkpoints/<iteration>/  best/  policy.safetensors

A folder with `config.toml` is a run that can be resumed, one with `policy.safetensors`, which is
written last, a finished run.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from constrained_rl.agent import Agent
from constrained_rl.checkpoint import (
    checkpoints,
    load_latest,
    save_checkpoint,
    write_tensors,
    write_text,
)
from constrained_rl.config import CheckpointConfig, RunConfig
from constrained_rl.devices import device_here
from constrained_rl.errors import InputError
from constrained_rl.evaluation import Evaluator
from constrained_rl.locks import LOCK, sole_writer
from constrained_rl.loggers import open_loggers, require_loggers
from constrained_rl.logging import JsonlLogger, RichLogger, keep_iterations, read_metrics
from constrained_rl.ppo import Parts, train
from constrained_rl.processes import ProcessEndedError, close_envs
from constrained_rl.protocols import Logger, Metrics
from constrained_rl.provenance import write_provenance
from constrained_rl.settings import read_run_config, require_run, to_toml
from constrained_rl.stopping import Stopped, finishing_steps
from constrained_rl.unfinished import require_episodes


def default_folder(name: str, seed: int) -> Path:
    """`runs/<name>/<UTC time>-s<seed>`."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return Path("runs") / name.replace("/", "_") / f"{stamp}-s{seed}"


BEFORE_CONFIG = {LOCK, "provenance.json", "models.json", "comparison", "rounds.txt"}
"""What is written before config.toml; alone, it is left by a run that was killed as it began."""


def refuse_used(folder: Path) -> None:
    """Raise `InputError` if something is where a run directory is to be made."""
    try:
        names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        above = next(parent for parent in folder.absolute().parents if parent.exists())
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise InputError(
            f"{folder} cannot be looked into ({error.strerror}); choose another --out"
        ) from error
    begun = BEFORE_CONFIG | {f".{name}.tmp" for name in (*BEFORE_CONFIG, "config.toml")}
    if names - begun or (folder.exists() and not folder.is_dir()):
        raise InputError(
            f"{folder} exists and is not empty; nothing was changed. Continue it with "
            f"`crl resume {folder}`, or choose another --out"
        )
    if not above.is_dir():
        raise InputError(f"{folder} cannot be made: {above} is a file; choose another --out")
    require_place(folder)


def require_place(folder: Path) -> None:
    """`InputError` unless a folder can be made, or written into, there; nothing is left behind."""
    made: list[Path] = []
    try:
        for part in reversed((folder, *folder.parents)):
            if not part.exists():
                part.mkdir()
                made.append(part)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{folder} cannot be made or written into ({error.strerror}); choose another --out"
        ) from error
    finally:
        for part in reversed(made):
            part.rmdir()


def start(config: RunConfig, folder: Path) -> Path:
    """Create a run directory, train in it to the end, and return it."""
    refuse_used(folder)
    require_loggers(config.loggers)
    agent = Agent(config)  # whatever is wrong with the config shows before a folder exists
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder):
        refuse_used(folder)  # another process may have been faster
        write_provenance(folder)
        write_text(folder / "config.toml", to_toml(agent.config))
        _finish(agent, folder)
    return folder


def resume(folder: Path) -> bool:
    """Continue a run from its last checkpoint, or from its beginning when it has none.

    Returns False when the run was finished already.
    """
    require_run(folder)
    if (folder / "policy.safetensors").exists():
        return False
    with sole_writer(folder):
        config = read_run_config(folder)
        require_loggers(config.loggers)
        here = config.model_copy(update={"device": device_here(config.device)})
        _finish(Agent(here), folder)
    return True


def _finish(agent: Agent, folder: Path) -> None:
    """Train from wherever the folder stands to the end, then write the final policy."""
    config, parts = agent.config, agent.parts
    iterations = math.ceil(config.total_steps / agent.steps_per_iteration)
    limits = {c.name: c.limit for c in parts.constraints.constraints}
    title = f"{config.preset} on {config.env.id}, seed {config.seed}"
    try:
        restore(parts, folder)
        with evaluating(agent, folder) as evaluator:
            loggers = open_loggers(config.loggers, config, folder, parts.iteration)
            every = [*loggers, RichLogger(iterations, title, limits)]
            drive(parts, iterations, folder, config.checkpoint, every, evaluator)
        keep_last(parts, folder / "checkpoints", config.checkpoint.keep)
        write_tensors(folder / "policy.safetensors", agent.policy.state_dict())
    finally:
        agent.close()


@contextmanager
def evaluating(agent: Agent, folder: Path) -> Iterator[Evaluator]:
    """Evaluate on environments of their own; the best feasible agent is saved in `best/`."""
    config = agent.config.evaluation
    if config.every == 0:
        yield Evaluator(config, agent.evaluate, lambda _: None)
        return
    count = min(config.num_envs, config.episodes, agent.envs.num_envs)
    envs = agent.separate_environments(count)
    try:
        yield Evaluator(
            config,
            lambda deterministic: agent.play(envs, config.episodes, deterministic),
            lambda _: agent.save(folder / "best"),
        )
    finally:
        close_envs(envs)


def restore(parts: Parts, folder: Path) -> None:
    """Continue from the newest intact checkpoint, if there is any."""
    state = load_latest(folder / "checkpoints")
    if state is not None:
        parts.load_state_dict(state)


def drive(
    parts: Parts,
    iterations: int,
    folder: Path,
    checkpoint: CheckpointConfig,
    loggers: Sequence[Logger] = (),
    evaluator: Evaluator | None = None,
) -> None:
    """Run the loop in a folder: restore, evaluate, log to metrics.jsonl, checkpoint.

    Checkpoints fall on fixed iterations. Asked to stop, it ends after the iteration under way with
    a checkpoint. Of several ranks, all of which must see the folder, the
    first writes, while the others wait for it; `evaluator` says the same on all of them.
    """
    world = parts.world
    if parts.iteration == 0:
        restore(parts, folder)
    world.on_first(lambda: keep_iterations(folder / "metrics.jsonl", parts.iteration))
    root = folder / "checkpoints"
    with ExitStack() as stack:
        every = [JsonlLogger(folder / "metrics.jsonl"), *loggers] if world.first else []
        for logger in every:
            stack.callback(logger.close)
        stopping = stack.enter_context(finishing_steps())
        if evaluator is not None:
            past = read_metrics(folder / "metrics.jsonl") if world.first else []
            evaluator.remember(parts.evaluator, world.same(past))
            if evaluator.exhausted:  # the process ended before it wrote the policy
                return
        stack.enter_context(stopping_with_processes(root, stopping))
        for metrics in train(parts, iterations):
            require_episodes(parts, iterations)
            if evaluator is not None:
                metrics |= evaluator(parts.iteration, parts.iteration == iterations)
                parts.evaluator = evaluator.state
            world.on_first(partial(log_to, every, parts.iteration, metrics))
            keep_or_stop(parts, root, checkpoint, world.any(stopping()))
            if evaluator is not None and evaluator.exhausted:
                break


def log_to(loggers: Sequence[Logger], iteration: int, metrics: Metrics) -> None:
    """Log an iteration."""
    for logger in loggers:
        logger.log(iteration, metrics)


def keep_or_stop(parts: Parts, root: Path, checkpoint: CheckpointConfig, stop: bool) -> None:
    """Write the checkpoint that is due; asked to `stop`, one in any case."""
    if stop or parts.iteration % checkpoint.every == 0:
        write_checkpoint(parts, root, checkpoint.keep)
    if stop:
        raise Stopped


def keep_last(parts: Parts, root: Path, keep: int) -> None:
    """A checkpoint of the last iteration, whether it is due or not: who loads the run goes on."""
    saved = checkpoints(root)
    if not saved or int(saved[-1].name) < parts.iteration:
        write_checkpoint(parts, root, keep)


def write_checkpoint(parts: Parts, root: Path, keep: int) -> None:
    """Write a checkpoint of this iteration."""
    state = parts.state_dict()  # by all ranks: each may hold a part of it
    parts.world.on_first(lambda: save_checkpoint(root, parts.iteration, state, keep))


@contextmanager
def stopping_with_processes(root: Path, stopping: Callable[[], bool]) -> Iterator[None]:
    """A signal to the whole process group ends the environment's processes too: no mistake."""
    try:
        yield
    except ProcessEndedError as ended:
        if not stopping():
            raise
        saved = checkpoints(root)
        stands = int(saved[-1].name) if saved else 0
        raise Stopped(
            "the environment's processes were stopped too: "
            f"the run continues after iteration {stands}"
        ) from ended
