"""Single-dimension preferences on disk: which of two responses is better on the whole.

The other way to ask, beside decoupled rows (`llm_env.preferences`): one label per pair, in which
each annotator has already weighed help against harm. Absent: safety labels; nobody was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from constrained_rl.checkpoint import write_text
from constrained_rl.errors import InputError
from llm_env.jsonl import iter_lines, parse
from llm_env.preferences import RewardPair
from llm_env.prompts import FieldError


class SingleRow(BaseModel):
    """Two responses to one prompt and the one that an annotator prefers overall."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: str
    """what the user said"""
    response_0: str
    """first response"""
    response_1: str
    """second response"""
    preferred_response_id: Annotated[int, Field(ge=0, le=1)]
    """the response preferred on the whole, help and harm weighed as the annotator likes"""


def single_pairs(rows: Sequence[SingleRow]) -> list[RewardPair]:
    """Pairs for a preference model: the winner is the preferred response."""
    pairs = []
    for row in rows:
        responses = (row.response_0, row.response_1)
        chosen, rejected = row.preferred_response_id, 1 - row.preferred_response_id
        pairs.append(RewardPair(row.prompt, responses[chosen], responses[rejected]))
    return pairs


def write_single(path: Path, rows: Sequence[SingleRow]) -> None:
    """Write JSON lines, atomically."""
    write_text(path, "".join(row.model_dump_json() + "\n" for row in rows))


def read_single(path: Path) -> list[SingleRow]:
    """Read what `write_single` wrote; the first bad line is named."""
    rows = []
    for line in iter_lines(path):
        try:
            rows.append(SingleRow.model_validate(parse(line)))
        except (ValidationError, FieldError) as error:
            problem = str(error).replace("\n", " ")
            raise InputError(
                f"{path}:{line.number}: {problem}; expected one JSON object with prompt, "
                "response_0, response_1 and preferred_response_id (0 or 1)"
            ) from error
    return rows
