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
from typing import Any

from constrained_rl.assembly import choose_device
from constrained_rl.checkpoint import write_text
from constrained_rl.config import ConstraintConfig, FixedConfig, GradientConfig
from constrained_rl.errors import InputError, NonFiniteError
from constrained_rl.provenance import write_provenance
from constrained_rl.run import refuse_used
from constrained_rl.settings import read_toml, to_toml, validate
from llm_env.comparison.config import PUBLISHED, CompareConfig
from llm_env.comparison.progress import StageProgress
from llm_env.config import AlignConfig


@dataclass(frozen=True)
class Method:
    """One row of the comparison."""

    name: str  # folder name
    label: str
    family: str  # "start", "dynamic" or "static"
    align: AlignConfig | None


def methods(config: CompareConfig) -> list[Method]:
    """SFT, four dynamic methods and every static weight, all from the same recommended settings."""
    recommended = config.align
    if isinstance(recommended.limit, tuple):
        raise InputError(
            f"align.limit is {recommended.limit}, but the comparison has one cost; give one number"
        )
    published: dict[str, Any] = {
        "constraint": ConstraintConfig(transform="identity"),
        "limit": config.published_limit,
    }
    lagrangian = GradientConfig(learning_rate=0.3, initial=1.0)
    bound = f"E[C] ≤ {config.published_limit:g}".replace("-", "−")
    share = f"P(C > 0) ≤ {recommended.limit:g}"
    dynamic: list[tuple[str, str, dict[str, Any]]] = [
        ("pid-share", f"PID-Lagrangian, {share}", {}),
        ("ppo-share", f"PPO-Lagrangian, {share}", {"multiplier": lagrangian}),
        ("pid-mean", f"PID-Lagrangian, {bound}", published | {"multiplier": config.mean_pid}),
        ("ppo-mean", f"PPO-Lagrangian, {bound} (published)", published | {"multiplier": PUBLISHED}),
    ]
    found = [Method("sft", "SFT", "start", None)]
    found += [
        Method(name, label, "dynamic", recommended.model_copy(update=update))
        for name, label, update in dynamic
    ]
    for weight in config.weights:
        label = f"static ν = {weight:g}" + (" (standard RLHF)" if weight == 0 else "")
        update = {
            "constraint": ConstraintConfig(transform="identity"),
            "multiplier": FixedConfig(weight=weight),
        }
        align = recommended.model_copy(update=update)
        found.append(Method(f"static-{weight:g}", label, "static", align))
    return found


@dataclass(frozen=True)
class Task:
    """A stage: its folder under the comparison, and the stages it needs."""

    folder: str
    needs: tuple[str, ...]
    iterations: int = 0


def tasks(config: CompareConfig) -> list[Task]:
    """All stages."""
    scores = ("reward_model", "cost_model")
    return [
        Task("sft", ()),
        Task("preferences", ("sft",)),
        *(Task(name, ("preferences",)) for name in scores),
        *(
            Task(f"runs/{m.name}", scores, m.align.iterations if m.align else 0)
            for m in methods(config)
        ),
    ]


def run_task(folder: str, name: str) -> str:
    """Run one stage in this process, single-threaded; returns its name."""
    import torch
    from transformers.utils import logging

    from llm_env.comparison import stages

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    space = stages.Workspace(Path(folder), load_config(Path(folder)))
    try:
        match name.split("/"):
            case ["sft"]:
                stages.run_sft(space)
            case ["preferences"]:
                stages.run_preferences(space)
            case ["runs", run]:
                method = next(m for m in methods(space.config) if m.name == run)
                stages.run_method(space, run, method.align)
            case ["reward_model"]:
                stages.run_score_model(space, "reward")
            case ["cost_model"]:
                stages.run_score_model(space, "cost")
    except (InputError, NonFiniteError) as error:
        raise type(error)(f"{name}: {error}") from error
    return name


def load_config(folder: Path) -> CompareConfig:
    """The resolved config of a comparison's folder."""
    path = folder / "config.toml"
    return validate(CompareConfig, read_toml(path), str(path))


def prepare(config: CompareConfig, folder: Path) -> None:
    """Write config and provenance into a new folder."""
    refuse_used(folder)
    choose_device(config.device)
    methods(config)  # whatever is wrong with the config shows before a folder exists
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.toml", to_toml(config))
    write_provenance(folder)
    write_text(folder / "comparison", "made by crl llm compare\n")  # tells it from other runs


def run_all(folder: Path) -> None:
    """Run every stage that is not finished, side by side where they are independent."""
    config = load_config(folder)
    workers = config.workers or available_cores()
    waiting = [task for task in tasks(config) if not (folder / task.folder).exists()]
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers
    context = multiprocessing.get_context("spawn")
    with (
        StageProgress(folder, tasks(config)) as progress,
        ProcessPoolExecutor(workers, mp_context=context, initializer=prepare_worker) as pool,
    ):
        try:
            run_tasks(folder, waiting, workers, pool, progress)
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def run_tasks(
    folder: Path,
    waiting: list[Task],
    workers: int,
    pool: ProcessPoolExecutor,
    progress: StageProgress,
) -> None:
    """Keep `workers` stages running until none is waiting."""
    running: set[Future[str]] = set()
    while waiting or running:
        for task in ready(waiting, folder):
            if len(running) == workers:
                break
            waiting.remove(task)
            running.add(pool.submit(run_task, str(folder), task.folder))
        done, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
        for future in done:
            try:
                future.result()  # raises what the stage raised
            except BrokenProcessPool:
                raise InputError(
                    "a worker process died, most likely killed for lack of memory; what is "
                    f"finished is kept: continue with `crl resume {folder}`, with fewer workers "
                    "(workers=1) in its config.toml if it happens again"
                ) from None
        progress.refresh()


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def prepare_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it does, even by SIGKILL.

    A worker waits for work on a pipe whose other end it holds too, so by itself it would wait for
    ever, and one at work would write into a folder that a resumed comparison uses.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def ready(waiting: Sequence[Task], folder: Path) -> list[Task]:
    """Stages whose needs are finished."""
    return [t for t in waiting if all((folder / need).exists() for need in t.needs)]
