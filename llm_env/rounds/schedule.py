"""`crl llm rounds`: which stages there are, in which order; what is finished is kept.

Stages follow each other in one process: each needs the one before, and each may use the whole
device. Calling it again on the same folder continues.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from constrained_rl.checkpoint import write_text
from constrained_rl.devices import choose_device
from constrained_rl.errors import InputError, NonFiniteError
from constrained_rl.provenance import write_provenance
from constrained_rl.run import refuse_used
from constrained_rl.settings import read_toml, to_toml, validate
from llm_env.comparison.progress import StageProgress
from llm_env.data_sources import read_prompts
from llm_env.lora import check_lora
from llm_env.models import read_config
from llm_env.policy import prompt_room, trunk_of
from llm_env.prompt_lengths import prompts_within
from llm_env.rounds import MARK, evaluation, stages
from llm_env.rounds.config import (
    AdversarialRedTeam,
    FileRedTeam,
    GeneratorRedTeam,
    RoundsConfig,
)
from llm_env.rounds.red_team import ROUND, load_function
from llm_env.rounds.space import Space
from llm_env.template_dates import dated, today


@dataclass(frozen=True)
class Task:
    """A stage: its folder under the whole, and what makes it."""

    folder: str
    run: Callable[[], None]
    iterations: int = 0


def tasks(space: Space) -> list[Task]:
    """All stages in their order."""
    config = space.config
    found: list[Task] = []
    if space.embedded:
        found.append(Task("start", lambda: stages.run_start(space)))
    for number in range(1, config.rounds + 1):
        found += round_tasks(space, number)
    found += score_tasks(space, config.rounds, space.folder / "unified")
    found.append(Task("evaluation/prompts", lambda: evaluation.run_prompts(space)))
    for model in range(config.rounds + 1):
        found.append(
            Task(f"evaluation/model-{model}", lambda k=model: evaluation.run_answers(space, k))  # type: ignore[misc]
        )
    found.append(Task("evaluation/judged", lambda: evaluation.run_judged(space)))
    return found


def round_tasks(space: Space, number: int) -> list[Task]:
    """The stages of one round."""
    folder = f"rounds/{number}"
    return [
        Task(f"{folder}/red_team", lambda: stages.run_red_team(space, number)),
        Task(f"{folder}/pairs", lambda: stages.run_pairs(space, number)),
        Task(f"{folder}/preferences", lambda: stages.run_preferences(space, number)),
        *score_tasks(space, number, space.round(number)),
        Task(
            f"{folder}/policy",
            lambda: stages.run_policy(space, number),
            space.config.align.iterations,
        ),
    ]


def score_tasks(space: Space, number: int, folder: Path) -> list[Task]:
    """Both score models of one folder, on the labels of rounds 1 … `number`."""
    base = folder.relative_to(space.folder)
    kinds: tuple[stages.Kind, stages.Kind] = ("reward", "cost")
    return [
        Task(
            f"{base}/{kind}_model",
            lambda kind=kind: stages.run_score_model(space, kind, number, folder),  # type: ignore[misc]
        )
        for kind in kinds
    ]


def prepare(config: RoundsConfig, folder: Path) -> None:
    """Write config and provenance into a new folder, once everything it names can be read."""
    refuse_used(folder)
    config = dated(config, today())
    check(Space(folder, config))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / MARK, "made by crl llm rounds\n")
    write_provenance(folder)
    write_text(folder / "config.toml", to_toml(config))  # last: now it can be resumed


def check(space: Space) -> None:
    """Read everything that the config names, before anything expensive begins."""
    config = space.config
    choose_device(config.device)
    match config.red_team:
        case GeneratorRedTeam():
            load_function(config.red_team.function)
        case FileRedTeam(sources=sources):  # those of each round may be written meanwhile
            read_prompts([source for source in sources if ROUND not in source.path])
        case AdversarialRedTeam(candidates=candidates):
            read_prompts(candidates)
    if config.policy is not None:
        prompts = [*space.prompts, *space.evaluation_prompts]
        room = prompt_room(read_config(config.policy), config.align.max_new_tokens)
        prompts_within(space.tokenizer, prompts, room)
        if config.demonstrations:
            space.demonstrations  # noqa: B018
        check_lora(config.policy, config.policy.lora)
        check_lora(config.policy, config.policy.lora, trunk_of)  # of the critic
        space.model(0)


def load_config(folder: Path) -> RoundsConfig:
    """The resolved config of a folder of rounds.

    Raises:
        InputError: it is malformed, or lacks a key, whose default need not be what was run.
    """
    path = folder / "config.toml"
    tree = read_toml(path)
    optional = {"policy"}  # left out where there is none
    missing = [name for name in RoundsConfig.model_fields if name not in {*tree, *optional}]
    if missing:
        found = f"lacks {', '.join(missing)}" if tree else "is empty"
        raise InputError(
            f"{path}: {found}; it is of another version, or was damaged. Restore it, or start "
            "again with crl llm rounds and a new --out"
        )
    return validate(RoundsConfig, tree, str(path))


def run_all(folder: Path) -> None:
    """Run every stage that is not finished.

    Raises:
        AwaitingLabels: people have to fill in a file first.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    space = Space(folder, load_config(folder))
    torch.set_num_threads(space.config.threads)
    wanted = tasks(space)
    with StageProgress(folder, wanted) as progress, polled(progress.refresh):
        for task in wanted:
            if not (folder / task.folder).exists():
                run_task(folder, task)


def run_task(folder: Path, task: Task) -> None:
    """Run one stage; its name is part of what is said of bad input."""
    (folder / task.folder).parent.mkdir(parents=True, exist_ok=True)
    try:
        task.run()
    except (InputError, NonFiniteError) as error:
        raise type(error)(f"{task.folder}: {error}") from error


@contextmanager
def polled(refresh: Callable[[], None], seconds: float = 0.5) -> Iterator[None]:
    """Call `refresh` now and then in a thread of its own, and once at the end."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(seconds):
            refresh()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        refresh()
