"""Models answer, scores judge, everything is kept: what `evaluate` and `arena` share.

    config.toml  provenance.json  answers/  scores/  reference/     work, kept by content
    generations.jsonl                                               one row per answer
    results.json  report.html                                       drawn from it

One language model is on the device at a time; score models visit it after them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from constrained_rl.checkpoint import write_text
from constrained_rl.devices import choose_device
from constrained_rl.errors import InputError
from constrained_rl.provenance import write_provenance
from constrained_rl.run import require_place
from constrained_rl.settings import to_toml
from llm_env.arena.answers import (
    Answering,
    Decoding,
    Mode,
    answer,
    open_model,
    reference_logp,
    require_comparable,
)
from llm_env.arena.cache import Row, digest
from llm_env.arena.config import ArenaConfig
from llm_env.arena.judging import Answer, Judge, Scores, known, score_answers
from llm_env.arena.questions import Question, fitting, is_world, read_questions
from llm_env.data.seen import learned_from, name_seen
from llm_env.prompts import prompt_format
from llm_env.score_room import Asked, require_room
from llm_env.score_sources import ScoreSource
from llm_env.stages import results_json
from llm_env.template_dates import dated, day_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Answers:
    """Everything that was answered."""

    config: ArenaConfig
    questions: Sequence[Question]
    skipped: int  # prompts over some model's context
    gold: bool  # whether the embedded world judged
    rows: Mapping[str, Mapping[Mode, Sequence[Answer]]]  # by model and mode, in prompt order

    @property
    def models(self) -> tuple[str, ...]:
        """Names, the baseline first."""
        baseline = self.config.baseline
        return (baseline, *(name for name in self.rows if name != baseline))

    def of(self, model: str, mode: Mode) -> Sequence[Answer]:
        """A model's answers in one mode."""
        return self.rows[model][mode]


@dataclass(frozen=True)
class Piece:
    """The answers of one model in one mode, before they are judged."""

    model: Answering
    mode: Mode
    rows: list[Row]
    key: str


def default_folder(config: ArenaConfig) -> Path:
    """`runs/evaluate/<models>-<digest>`: the same command finds its own folder again."""
    names = "-".join(config.models).replace("/", "_")[:60]
    return Path("runs") / "evaluate" / f"{names}-{digest(config.model_dump(mode='json'))}"


def collect_answers(config: ArenaConfig, folder: Path, say: Say, pairwise: bool = False) -> Answers:
    """All answers with their scores; what lies in the folder already is taken from it.

    Args:
        config: models, prompts, scores.
        folder: of the answers; new, or one that this made before.
        say: told what is done next.
        pairwise: models will be compared in pairs, which needs two and a judge.

    Raises:
        InputError: something handed in is wrong; found before anything is generated.
    """
    check_folder(folder)
    config = dated(config, day_of(folder))
    device = choose_device(config.device)
    models = {name: open_model(name, source, device) for name, source in config.models.items()}
    asked = read_questions(config.prompts)
    readers = {name: model.reader(config.max_new_tokens) for name, model in models.items()}
    questions = fitting(asked, readers, config.long_prompts == "skip")
    gold = wants_gold(config, questions)
    if pairwise:
        check_arena(config, gold)
    prompts = [question.prompt for question in questions]
    for model in models.values():
        asking = Asked(model.tokenizer, prompts, config.max_new_tokens)
        require_room(score_settings(config), asking)
        if config.reference is not None:
            require_comparable(models[config.reference], model)
    for name, source in config.models.items():
        name_seen(prompts, learned_from(source.path), "this evaluation", name)
    scores_of = load_scores(config, models, device)
    begin(config, folder)
    pieces = _generate(config, models, questions, folder, say)
    reference = _reference(config, models, pieces, folder, say)
    scores = _score(pieces, scores_of, folder, say)
    rows: dict[str, dict[Mode, list[Answer]]] = {name: {} for name in models}
    for index, piece in enumerate(pieces):
        logp = reference[index] if reference else None
        joined = _join(config, questions, piece, scores[index], logp, gold)
        rows[piece.model.name][piece.mode] = joined
    found = Answers(config, questions, len(asked) - len(questions), gold, rows)
    write_generations(found, folder)
    return found


def _join(
    config: ArenaConfig,
    questions: Sequence[Question],
    piece: Piece,
    scores: Mapping[str, Sequence[float]],
    reference: Sequence[float] | None,
    gold: bool,
) -> list[Answer]:
    """All that is known of each answer of one model in one mode."""
    found = []
    for i, (question, row) in enumerate(zip(questions, piece.rows, strict=True)):
        verdict, refusal = known(question, row, config, gold)
        found.append(
            Answer(
                model=piece.model.name,
                mode=piece.mode,
                kind=question.kind,
                prompt=question.prompt,
                response=row["response"],
                stop_reason=row["stop_reason"],
                tokens=row["tokens"],
                logp=row["logp"],
                reference_logp=None if reference is None else reference[i],
                scores={name: values[i] for name, values in scores.items()},
                costs=tuple(config.costs),
                gold=verdict,
                refusal=refusal,
            )
        )
    return found


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else."""
    require_place(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "answers").is_dir():
        raise InputError(
            f"{folder} holds something else than an evaluation; give a new folder with --out, or "
            "one that this command made"
        )


def begin(config: ArenaConfig, folder: Path) -> None:
    """Make the folder and say what is done in it."""
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    write_provenance(folder)
    write_text(folder / "config.toml", to_toml(config))


def wants_gold(config: ArenaConfig, questions: Sequence[Question]) -> bool:
    """Whether the embedded world judges; `InputError` where it is asked to and cannot."""
    world = is_world(questions)
    if config.gold == "world" and not world:
        raise InputError(
            "gold is 'world', but some prompts are not of the embedded world; use gold=auto"
        )
    return world and config.gold != "none"


def check_arena(config: ArenaConfig, gold: bool) -> None:
    """Refuse an arena of one, or without a judge."""
    if len(config.models) < 2:
        raise InputError(
            f"an arena needs two models or more, found {', '.join(config.models)}; for one use "
            "crl llm evaluate"
        )
    if not (config.reward or config.costs or config.held_out or config.annotator or gold):
        raise InputError("an arena needs a judge; give --reward, --cost, --held-out or --judge")


def score_settings(config: ArenaConfig) -> dict[str, ScoreSource]:
    """Scores by the names of their settings."""
    found: dict[str, ScoreSource] = {f"costs.{k}": v for k, v in config.costs.items()}
    found |= {f"held_out.{k}": v for k, v in config.held_out.items()}
    return found if config.reward is None else {"reward": config.reward, **found}


def load_scores(
    config: ArenaConfig, models: Mapping[str, Answering], device: torch.device
) -> Callable[[Answering], Scores]:
    """Every score, before hours of generation that a broken one would waste.

    Until they are asked they wait in the CPU's memory. Each is loaded once, but for those that are
    read with the policy's tokenizer, which are loaded once per vocabulary and prompt format.
    """
    judge = Judge.of(config).waiting()
    sources = [*judge.rewards.values(), *judge.costs.values()]
    own = all(source.tokenizer != "policy" for source in sources)
    loaded: dict[str, Scores] = {}

    def scores_of(model: Answering) -> Scores:
        key = "" if own else f"{model.vocabulary} {prompt_format(model.tokenizer)}"
        if key not in loaded:
            loaded[key] = judge.load(model.tokenizer, device)
        return loaded[key]

    for model in models.values():
        scores_of(model)
    return scores_of


def _generate(
    config: ArenaConfig,
    models: Mapping[str, Answering],
    questions: Sequence[Question],
    folder: Path,
    say: Say,
) -> list[Piece]:
    decoding = Decoding(config.max_new_tokens, config.temperature, config.batch, config.seed)
    pieces = []
    for name, model in models.items():
        for mode in config.modes:
            say(f"{name}: {len(questions)} {mode} answers")
            rows, key = answer(model, questions, mode, decoding, folder / "answers")
            pieces.append(Piece(model, mode, rows, key))
        model.unload()
    return pieces


def _reference(
    config: ArenaConfig,
    models: Mapping[str, Answering],
    pieces: Sequence[Piece],
    folder: Path,
    say: Say,
) -> list[list[float]]:
    """Log π_ref of every piece; nothing where no reference was named."""
    if config.reference is None:
        return []
    reference = models[config.reference]
    say(f"log-probabilities under {config.reference}")
    found = [
        reference_logp(
            reference, piece.model, piece.rows, piece.key, config.batch, folder / "reference"
        )
        for piece in pieces
    ]
    reference.unload()
    return found


def _score(
    pieces: Sequence[Piece], scores_of: Callable[[Answering], Scores], folder: Path, say: Say
) -> list[dict[str, list[float]]]:
    """Every score of every piece."""
    found: list[dict[str, list[float]]] = []
    for piece in pieces:
        say(f"{piece.model.name}: scores of {len(piece.rows)} {piece.mode} answers")
        place = (piece.key, folder / "scores")
        found.append(
            {
                name: score_answers(name, source, score, piece.model, piece.rows, place)
                for name, (source, score) in scores_of(piece.model).items()
            }
        )
    return found


def write_generations(found: Answers, folder: Path) -> None:
    """One JSON row per answer: all that tables and figures are made of."""
    rows = [
        {"index": i, **row.to_row()}
        for modes in found.rows.values()
        for said in modes.values()
        for i, row in enumerate(said)
    ]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(folder / "generations.jsonl", "".join(lines))


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """The numbers of a report."""
    write_text(folder / "results.json", results_json(results) + "\n")
