"""Which prompts are asked, of which class each is, and do they fit every model's context?

Classes come from the rows' `category` or `kind`, else from the embedded world, which knows its own
prompts. A prompt that does not fit one model is asked of none, so that all answer the same ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from constrained_rl.errors import InputError
from llm_env.data_sources import DataSource, read_prompts
from llm_env.jsonl import iter_lines, parse
from llm_env.prompts import FieldError, Prompt, checked_prompt
from llm_env.tokens import encode_prompts
from llm_env.world import find_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLASS_FIELDS = ("category", "kind")
NO_CLASS = ""
"""class of a prompt that has none"""


@dataclass(frozen=True)
class Question:
    """A prompt and its class."""

    prompt: Prompt
    kind: str = NO_CLASS


@dataclass(frozen=True)
class Reader:
    """What decides whether a prompt fits a model."""

    tokenizer: PreTrainedTokenizerBase
    room: int  # tokens a prompt may have


def read_questions(sources: Sequence[DataSource]) -> list[Question]:
    """Distinct prompts of all sources with their classes; `InputError` if there is none."""
    for source in sources:
        if not Path(source.path).exists():
            raise InputError(f"prompt file {source.path} does not exist; check the path")
    # weights that repeat prompts are for training; an evaluation asks each once
    prompts = list({_key(prompt): prompt for prompt in read_prompts(sources)}.values())
    if not prompts:
        places = ", ".join(source.path for source in sources)
        raise InputError(f"{places}: no prompts found; give at least one, one per line or row")
    classes = _classes(sources)
    return [
        Question(prompt, classes.get(_key(prompt)) or _world_kind(prompt)) for prompt in prompts
    ]


def is_world(questions: Sequence[Question]) -> bool:
    """Whether the embedded world knows every prompt."""
    return all(_world_kind(question.prompt) for question in questions)


def fitting(
    questions: Sequence[Question], readers: Mapping[str, Reader], skip: bool
) -> list[Question]:
    """Questions that leave room for an answer in every model's context.

    Raises:
        InputError: some do not and `skip` is off, or none does.
    """
    too_long: dict[int, str] = {}
    for name, reader in readers.items():
        prompts = [question.prompt for question in questions]
        _, attention = encode_prompts(reader.tokenizer, prompts, sys.maxsize)
        for index, length in enumerate(attention.sum(1).tolist()):
            if length > reader.room:
                found = f"{length} tokens for {name}, which has room for {reader.room}"
                too_long.setdefault(index, found)
    if too_long and not skip:
        first = min(too_long)
        raise InputError(
            f"{len(too_long)} of {len(questions)} prompts leave no room for an answer, the first "
            f"(prompt {first}) with {too_long[first]}; lower max_new_tokens, shorten them, or set "
            "long_prompts=skip"
        )
    if len(too_long) == len(questions):
        raise InputError("no prompt leaves room for an answer; lower max_new_tokens")
    return [question for index, question in enumerate(questions) if index not in too_long]


def _classes(sources: Sequence[DataSource]) -> dict[str, str]:
    """Classes that rows of JSON-lines files carry, by prompt."""
    found: dict[str, str] = {}
    for source in sources:
        path = Path(source.path)
        if not path.is_file() or ".jsonl" not in path.suffixes:
            continue
        for row in _objects(path):
            named = [value for field in CLASS_FIELDS if isinstance(value := row.get(field), str)]
            if named:
                found.setdefault(_key(_asked(row)), named[0])
    return found


def _objects(path: Path) -> Iterator[dict[str, object]]:
    """Rows that are JSON objects; `read_prompts` has said what is wrong with others."""
    for line in iter_lines(path):
        try:
            row = parse(line)
        except FieldError:
            continue
        if isinstance(row, dict):
            yield row


def _asked(row: Mapping[str, object]) -> object:
    """The prompt of a row as `read_prompts` gives it; what cannot be one stays as it is."""
    asked, messages = row.get("prompt"), row.get("messages")
    if asked is None and isinstance(messages, list):
        asked = messages[:-1]
    try:
        return checked_prompt(asked)
    except FieldError:
        return asked


def _key(prompt: object) -> str:
    """What two equal prompts have in common."""
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def _world_kind(prompt: Prompt) -> str:
    """The class of a prompt of the embedded world, else none."""
    if not isinstance(prompt, str):
        return NO_CLASS
    try:
        return find_prompt(prompt).kind
    except InputError:
        return NO_CLASS
