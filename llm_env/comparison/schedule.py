"""`crl llm compare`: Safe RLHF against static reward shaping, everything from scratch.

Stages that do not need each other run side by side, one process and one thread each. What is
finished is kept: calling it again on the same folder continues.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from constrained_rl.checkpoint import write_text
from constrained_rl.devices import choose_device
from constrained_rl.errors import InputError, NonFiniteError
from constrained_rl.logging import plain_warnings
from constrained_rl.provenance import write_provenance
from constrained_rl.run import refuse_used
from constrained_rl.settings import read_toml, to_toml, validate
from constrained_rl.stopping import Stopped, finishing_steps, note_sigterm, stoppable
from llm_env.comparison.config import CompareConfig
from llm_env.comparison.methods import SCORES, every_run, scores
from llm_env.comparison.progress import StageProgress

if TYPE_CHECKING:
    from llm_env.comparison.stages import Workspace


@dataclass(frozen=True)
class Task:
    """A stage: its folder under the comparison, and the stages it needs."""

    folder: str
    needs: tuple[str, ...]
    iterations: int = 0


def tasks(config: CompareConfig, only: Sequence[str] = ()) -> list[Task]:
    """All stages, or those `only` names with all that they need."""
    found = [
        Task("sft", ()),
        Task("preferences", ("sft",)),
        *(Task(f"{name}_model", ("preferences",)) for name in scores(config)),
        *(
            Task(f"runs/{run.name}", run.needs, run.align.iterations if run.align else 0)
            for run in every_run(config)
        ),
    ]
    if not only:
        return found
    wanted = set(only)
    for task in reversed(found):  # what is needed always comes before
        if task.folder in wanted:
            wanted |= set(task.needs)
    return [task for task in found if task.folder in wanted]


def run_task(folder: str, name: str) -> str:
    """Run one stage in this process, single-threaded; returns its name."""
    import torch
    from transformers.utils import logging

    from llm_env.comparison import stages

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    space = stages.Workspace(Path(folder), load_config(Path(folder)))
    try:
        with plain_warnings(), stoppable():
            run_stage(space, name)
    except (InputError, NonFiniteError) as error:
        raise type(error)(f"{name}: {error}") from error
    return name


def run_stage(space: Workspace, name: str) -> None:
    """Run the stage whose folder is `name`."""
    from llm_env.comparison import stages

    match name.split("/"):
        case ["sft"]:
            stages.run_sft(space)
        case ["preferences"]:
            stages.run_preferences(space)
        case ["runs", run]:
            stages.run_method(space, next(m for m in every_run(space.config) if m.name == run))
        case [score] if score.removesuffix("_model") in SCORES:
            stages.run_score_model(space, score.removesuffix("_model"))


def load_config(folder: Path) -> CompareConfig:
    """The resolved config of a comparison's folder.

    Raises:
        InputError: it is malformed, or lacks a key, whose default need not be what was run.
    """
    path = folder / "config.toml"
    tree = read_toml(path)
    missing = [name for name in CompareConfig.model_fields if name not in tree]
    if missing:
        found = f"lacks {', '.join(missing)}" if tree else "is empty"
        raise InputError(
            f"{path}: {found}; it is of another version, or was damaged. Restore it, or start "
            "again with crl llm compare and a new --out"
        )
    return validate(CompareConfig, tree, str(path))


def prepare(config: CompareConfig, folder: Path) -> None:
    """Write config and provenance into a new folder."""
    refuse_used(folder)
    choose_device(config.device)
    every_run(config)  # whatever is wrong with the config shows before a folder exists
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "comparison", "made by crl llm compare\n")  # tells it from other runs
    write_provenance(folder)
    write_text(folder / "config.toml", to_toml(config))  # last: now it can be resumed


def run_all(folder: Path, only: Sequence[str] = ()) -> None:
    """Run every stage that is not finished, side by side where they are independent.

    Args:
        folder: made by `prepare`.
        only: folders of stages; with any, other stages run only if these need them.
    """
    config = load_config(folder)
    workers = config.workers or available_cores()
    wanted = tasks(config, only)
    waiting = [task for task in wanted if not (folder / task.folder).exists()]
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers
    context = multiprocessing.get_context("spawn")
    with (
        StageProgress(folder, wanted) as progress,
        ProcessPoolExecutor(workers, mp_context=context, initializer=prepare_worker) as pool,
    ):
        try:
            run_tasks(folder, waiting, workers, pool, progress)
        except (KeyboardInterrupt, Stopped):
            for worker in multiprocessing.active_children():
                worker.terminate()  # SIGTERM: it ends after its step, with a checkpoint
            raise


def run_tasks(
    folder: Path,
    waiting: list[Task],
    workers: int,
    pool: ProcessPoolExecutor,
    progress: StageProgress,
) -> None:
    """Keep `workers` stages running until none is waiting, or until asked to stop."""
    running: set[Future[str]] = set()
    with finishing_steps() as stopping:  # a signal must not fall into the start of a worker
        while (waiting or running) and not stopping():
            for task in ready(waiting, folder):
                if len(running) == workers:
                    break
                waiting.remove(task)
                running.add(pool.submit(run_task, str(folder), task.folder))
            done, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                finish_task(future, folder)
            progress.refresh()


def finish_task(future: Future[str], folder: Path) -> None:
    """Raise what a stage raised, or why its process died."""
    try:
        future.result()
    except BrokenProcessPool:
        raise InputError(
            "a worker process died, most likely killed for lack of memory; what is "
            f"finished is kept: continue with `crl resume {folder}`, with fewer workers "
            "(workers=1) in its config.toml if it happens again"
        ) from None


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def prepare_worker() -> None:
    """Leave Ctrl-C to the parent, note SIGTERM, and end when the parent does, even by SIGKILL.

    A worker waits for work on a pipe whose other end it holds too, so by itself it would wait for
    ever, and one at work would write into a folder that a resumed comparison uses.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    note_sigterm()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def ready(waiting: Sequence[Task], folder: Path) -> list[Task]:
    """Stages whose needs are finished."""
    return [t for t in waiting if all((folder / need).exists() for need in t.needs)]
