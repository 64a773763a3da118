"""Who labels pairs of responses? A simulated pool, people who fill in a file, or an HTTP judge.

All give rows of the PKU-SafeRLHF schema. The file's people take their time: the command ends with
`AwaitingLabels`, and resuming it reads and checks what they wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from constrained_rl.errors import InputError
from llm_env.http_json import Patience, post_json
from llm_env.preferences import PreferenceRow, read_preferences
from llm_env.prompts import FieldError, Prompt
from llm_env.rounds.config import FileAnnotators, HTTPAnnotator
from llm_env.rounds.rows import write_rows

Pairs: TypeAlias = Sequence[tuple[Prompt, str, str]]
Annotator: TypeAlias = Callable[[Pairs], list[PreferenceRow]]
"""Labels of (prompt, response 0, response 1) triples, in their order."""
LABELS = ("is_response_0_safe", "is_response_1_safe", "better_response_id", "safer_response_id")
TO_LABEL, LABELLED = "to_label.jsonl", "labelled.jsonl"


class AwaitingLabels(BaseException):
    """People have to fill in a file before the command can go on; the message says which."""


def texts(prompt: Prompt, first: str, second: str) -> dict[str, Any]:
    """What an annotator is shown."""
    return {"prompt": prompt, "response_0": first, "response_1": second}


def by_file(pairs: Pairs, folder: Path, config: FileAnnotators) -> list[PreferenceRow]:
    """Labels that people wrote into `labelled.jsonl` of a round's folder.

    Raises:
        AwaitingLabels: the file is not there; `to_label.jsonl`, with null where a label belongs,
            has been written.
        InputError: a row is not filled in, contradicts itself, or is not one of the pairs.
    """
    target, filled = folder / TO_LABEL, folder / LABELLED
    if not filled.exists():
        if not target.exists():  # never over what people may have begun to fill in
            empty = dict.fromkeys(LABELS)
            rows = [{"id": i, **texts(*pair), **empty} for i, pair in enumerate(pairs)]
            write_rows(target, rows)
        raise AwaitingLabels(
            f"{len(pairs)} pairs wait for labels in {target}: replace every null "
            f"({', '.join(LABELS)}; ids are 0 or 1) and save the result as {filled}"
        )
    return check_labelled(read_preferences(filled), pairs, filled, config.may_miss)


def check_labelled(
    rows: Sequence[PreferenceRow], pairs: Pairs, path: Path, may_miss: float
) -> list[PreferenceRow]:
    """Filled-in rows in the order of the pairs; `InputError` unless they are these pairs."""
    found: dict[int, PreferenceRow] = {}
    for line, row in enumerate(rows, start=1):
        number = (row.model_extra or {}).get("id")
        if not isinstance(number, int) or not 0 <= number < len(pairs):
            raise InputError(
                f"{path}: row {line} has the id {number!r}; expected 0 … {len(pairs) - 1}, as in "
                f"{TO_LABEL}; keep the field id as it was"
            )
        if number in found:
            raise InputError(f"{path}: row {line} has the id {number} once more; keep one of them")
        given = PreferenceRow.model_validate(texts(*pairs[number]) | _labels(row))
        if (row.prompt, *row.responses) != (given.prompt, *given.responses):
            raise InputError(
                f"{path}: row {line} (id {number}) has other texts than {TO_LABEL}; only the "
                "labels may change"
            )
        found[number] = given
    missing = [number for number in range(len(pairs)) if number not in found]
    if len(missing) > may_miss * len(pairs):
        raise InputError(
            f"{path}: {len(missing)} of {len(pairs)} pairs have no labels, the first has id "
            f"{missing[0]}; label them, or raise annotator.may_miss (now {may_miss:g})"
        )
    return [found[number] for number in sorted(found)]


def by_http(pairs: Pairs, config: HTTPAnnotator) -> list[PreferenceRow]:
    """Labels of a service; `InputError` when it cannot be reached or answers what is no label."""
    rows: list[PreferenceRow] = []
    for start in range(0, len(pairs), config.batch_size):
        batch = pairs[start : start + config.batch_size]
        rows += post_json(
            config.url,
            {"pairs": [texts(*pair) for pair in batch]},
            Patience(config.timeout, config.retries, config.backoff, config.token_env),
            lambda answer, batch=batch: read_labels(answer, batch, config.url),  # type: ignore[misc]
        )
    return rows


def read_labels(answer: object, batch: Pairs, url: str) -> list[PreferenceRow]:
    """Rows of a judge's answer; `InputError` names the first label that is none."""
    labels = answer.get("labels") if isinstance(answer, dict) else None
    if not isinstance(labels, list) or len(labels) != len(batch):
        found = f"{len(labels)} labels" if isinstance(labels, list) else f"{answer!r:.80}"
        raise InputError(
            f"{url} answered {found} to {len(batch)} pairs; expected "
            f'{{"labels": [{{"{LABELS[0]}": …, …}}]}} with one object for each pair, in order'
        )
    rows = []
    for pair, label in zip(batch, labels, strict=True):
        try:
            given = {name: dict(label)[name] for name in LABELS if name in label}
            rows.append(PreferenceRow.model_validate(given | texts(*pair)))
        except (ValidationError, FieldError, TypeError, ValueError) as error:
            raise InputError(
                f"{url} labelled {texts(*pair)!r:.200} by {label!r:.200}, which cannot be used: "
                f"{error}"
            ) from error
    return rows


def _labels(row: PreferenceRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in LABELS}
