"""From a folder of rounds to results.json and a table on the terminal. Nothing is scored here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from constrained_rl.checkpoint import write_text
from constrained_rl.errors import InputError
from constrained_rl.logging import read_metrics
from constrained_rl.statistics import Interval
from llm_env.rounds.evaluation import (
    MODES,
    Answer,
    EvaluationPrompt,
    Judged,
    read_answers,
    read_judged,
    read_prompts,
)
from llm_env.rounds.rows import read_rows
from llm_env.rounds.schedule import load_config, tasks
from llm_env.rounds.space import Space
from llm_env.rounds.summaries import (
    Change,
    Ratings,
    Summary,
    change,
    chosen,
    gold,
    labelled_unsafe,
    rate_by_annotators,
    rate_by_scores,
    summarize,
)
from llm_env.stages import read_seconds, results_json


@dataclass(frozen=True)
class Group:
    """One model's responses in one mode to one group of prompts."""

    summary: Summary
    labelled_unsafe: Interval | None  # by annotators, of first sampled responses
    change: Change | None  # against round 1


@dataclass(frozen=True)
class ModelResult:
    """The start model (0) or the policy of a round."""

    number: int
    label: str
    groups: dict[str, Group]  # "sampled/all", "sampled/adversarial", "greedy/all", …
    lam: float | None
    kl: float | None  # to the model its RL started from
    pairs: int | None  # labelled in its round
    red_team: int | None  # prompts


@dataclass(frozen=True)
class Results:
    """All of a folder of rounds, as in results.json."""

    seed: int
    embedded: bool
    models: tuple[ModelResult, ...]
    ratings: tuple[Ratings, ...]
    score_models: dict[str, dict[str, dict[str, float | None]]]  # folder → round's pairs → shares
    seconds: dict[str, float]


@dataclass(frozen=True)
class Said:
    """What all models said to the same prompts, read from disk."""

    prompts: list[EvaluationPrompt]
    answers: list[list[Answer]]  # by model
    judged: list[Judged]


def read_said(folder: Path, models: int) -> Said:
    """Read the evaluation; `InputError` while it is not finished."""
    if not (folder / "evaluation/judged").is_dir():
        raise InputError(
            f"{folder}: the rounds are not finished, there is nothing to compare yet; continue "
            f"them with crl resume {folder}"
        )
    answers = [read_answers(folder, k) for k in range(models)]
    return Said(read_prompts(folder), answers, read_judged(folder))


def summarize_rounds(folder: Path) -> tuple[Results, Said]:
    """Summarize finished rounds and write `results.json` beside them."""
    config = load_config(folder)
    said = read_said(folder, config.rounds + 1)
    results = Results(
        seed=config.seed,
        embedded=config.policy is None,
        models=tuple(summarize_model(folder, said, k) for k in range(config.rounds + 1)),
        ratings=tuple(rate(said, config.seed, config.policy is None)),
        score_models=read_accuracies(folder, config.rounds),
        seconds=read_seconds(folder, [task.folder for task in tasks(Space(folder, config))]),
    )
    write_text(folder / "results.json", results_json(asdict(results)) + "\n")
    return results, said


def label_of(number: int) -> str:
    """Name of a model."""
    return f"round {number}" if number else "start model"


def summarize_model(folder: Path, said: Said, number: int) -> ModelResult:
    """One model: its responses and the last line of its training."""
    groups = {
        f"{mode}/{'adversarial' if adversarial else 'all'}": group(said, number, mode, adversarial)
        for mode in MODES
        for adversarial in (False, True)
    }
    home = folder / "rounds" / str(number)
    rows = read_metrics(home / "policy/metrics.jsonl") if number else []
    last = rows[-1] if rows else {}
    return ModelResult(
        number=number,
        label=label_of(number),
        groups=groups,
        lam=last.get("lambda/cost"),
        kl=last.get("kl/reference"),
        pairs=_lines(home / "preferences/train.jsonl") if number else None,
        red_team=_lines(home / "red_team/prompts.jsonl") if number else None,
    )


def group(said: Said, number: int, mode: str, adversarial: bool) -> Group:
    """One model, one mode, one group of prompts."""
    mine, first = (chosen(said.answers[k], mode, said.prompts, adversarial) for k in (number, 1))
    votes = labelled_unsafe(said.judged, number, said.prompts, adversarial)
    return Group(
        summarize(mine),
        votes if mode == "sampled" else None,
        change(mine, first, seed=0) if number != 1 else None,
    )


def rate(said: Said, seed: int, embedded: bool) -> list[Ratings]:
    """Elo by every judge there is; by the unified score models where nobody else judges."""
    names = [label_of(k) for k in range(len(said.answers))]
    first = [_first_samples(answers) for answers in said.answers]
    found = []
    if embedded:
        table = [[gold(a) for a in samples] for samples in first]
        help_, harm = (
            np.array([[getattr(g, name) for g in row] for row in table]).T
            for name in ("helpfulness", "harm")
        )
        found.append(rate_by_scores("gold", names, help_, harm, seed))
    if said.judged:
        judge = "annotators" if embedded else "judge"
        found.append(rate_by_annotators(judge, names, said.judged, seed))
    if not embedded:
        reward, cost = (
            np.array([[getattr(a, name) for a in samples] for samples in first]).T
            for name in ("reward", "cost")
        )
        found.append(rate_by_scores("unified score models", names, reward, cost, seed))
    return found


def _first_samples(answers: Sequence[Answer]) -> list[Answer]:
    """The first sampled response to each prompt, in the order of the prompts."""
    found: dict[int, Answer] = {}
    for answer in answers:
        if answer.mode == "sampled":
            found.setdefault(answer.prompt, answer)
    return [found[prompt] for prompt in sorted(found)]


def read_accuracies(folder: Path, rounds: int) -> dict[str, dict[str, dict[str, float | None]]]:
    """Held-out accuracies of every score model, by the round of the pairs."""
    homes = [*(f"rounds/{k}" for k in range(1, rounds + 1)), "unified"]
    return {
        f"{home}/{kind}": json.loads((folder / home / f"{kind}_model/accuracy.json").read_text())
        for home in homes
        for kind in ("reward", "cost")
    }


def _lines(path: Path) -> int:
    return len(read_rows(path))


def print_results(results: Results, console: Console) -> None:
    """The main table on a terminal, within 100 columns."""
    title = "sampled at temperature 1; adv.: the prompts on which round 1's model answers worst"
    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column("model", no_wrap=True)
    names = ["C > 0 %\nall", "C > 0 %\nadv."]
    if results.embedded:
        names = ["unsafe %\nall", "unsafe %\nadv.", "helpful\nall", "helpful\nadv."]
    names += [f"Elo helpful:\n{r.judge}" for r in results.ratings]
    names += [f"Elo harmless:\n{r.judge}" for r in results.ratings]
    for name in names:
        table.add_column(name, justify="right")
    for model in results.models:
        table.add_row(model.label, *cells(model, results.ratings))
    console.print(table)


def cells(model: ModelResult, ratings: Sequence[Ratings]) -> list[str]:
    """One model's line of the terminal table."""
    everything, hard = (model.groups[f"sampled/{name}"].summary for name in ("all", "adversarial"))
    if everything.gold is not None and hard.gold is not None:
        found = [f"{100 * s.unsafe.value:.1f}" for s in (everything.gold, hard.gold)]
        found += [f"{s.helpfulness.value:.2f}" for s in (everything.gold, hard.gold)]
    else:
        found = [f"{100 * s.model_unsafe.value:.1f}" for s in (everything, hard)]
    found += [f"{r.helpfulness[model.label].value:.0f}" for r in ratings]
    return found + [f"{r.harmlessness[model.label].value:.0f}" for r in ratings]
