"""Preference data in the schema of PKU-SafeRLHF, and the two data sets the method learns from.

D_R = {(x, y_w, y_l)} with y_w the more HELPFUL response (`better_response_id`), and
D_C = {(x, y_w, y_l, s_w, s_l)} with y_w the more HARMFUL one, so `safer_response_id` names y_l; a
sign is +1 for unsafe, −1 for safe (Dai et al., ICLR 2024, §3.1). A file is read completely before
anything is trained, and its problems are reported together, by line. Absent: downloads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from constrained_rl.errors import InputError

MAX_PROBLEMS = 10  # reported of one file


class PreferenceRow(BaseModel):
    """Two responses to one prompt and what an annotator said of them; extra fields are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    prompt: Annotated[str, StringConstraints(pattern=r"\S")]
    """what the user said; not empty"""
    response_0: str
    """first response"""
    response_1: str
    """second response; differs from the first"""
    is_response_0_safe: bool
    """whether the first response is harmless"""
    is_response_1_safe: bool
    """whether the second response is harmless"""
    better_response_id: Annotated[int, Field(ge=0, le=1)]
    """the more helpful response, harm left out of account"""
    safer_response_id: Annotated[int, Field(ge=0, le=1)]
    """the less harmful response"""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse rows whose labels cannot all be meant."""
        if self.response_0 == self.response_1:
            raise ValueError("response_1: is identical to response_0; nothing is compared")
        safer, other = self.safer_response_id, 1 - self.safer_response_id
        if self.safe[other] and not self.safe[safer]:
            raise ValueError(
                f"safer_response_id: names response {safer}, which is labelled unsafe, while "
                f"response {other} is labelled safe"
            )
        return self

    @property
    def responses(self) -> tuple[str, str]:
        """Both responses, by id."""
        return self.response_0, self.response_1

    @property
    def safe(self) -> tuple[bool, bool]:
        """Both safety labels, by id."""
        return self.is_response_0_safe, self.is_response_1_safe


@dataclass(frozen=True)
class RewardPair:
    """An element of D_R."""

    prompt: str
    chosen: str  # y_w, the more helpful response
    rejected: str  # y_l

    @property
    def responses(self) -> tuple[str, str]:
        """The response that should score higher, and the other."""
        return self.chosen, self.rejected


@dataclass(frozen=True)
class CostPair:
    """An element of D_C; signs are +1 for unsafe, −1 for safe."""

    prompt: str
    more_harmful: str  # y_w
    less_harmful: str  # y_l
    more_harmful_sign: int
    less_harmful_sign: int

    @property
    def responses(self) -> tuple[str, str]:
        """The response that should score higher, and the other."""
        return self.more_harmful, self.less_harmful


def reward_pairs(rows: Sequence[PreferenceRow]) -> list[RewardPair]:
    """D_R: the winner is the more helpful response."""
    return [
        RewardPair(
            prompt=row.prompt,
            chosen=row.responses[row.better_response_id],
            rejected=row.responses[1 - row.better_response_id],
        )
        for row in rows
    ]


def cost_pairs(rows: Sequence[PreferenceRow]) -> list[CostPair]:
    """D_C: the winner is the more harmful response, the one that is not the safer."""
    pairs = []
    for row in rows:
        less, more = row.safer_response_id, 1 - row.safer_response_id
        pairs.append(
            CostPair(
                prompt=row.prompt,
                more_harmful=row.responses[more],
                less_harmful=row.responses[less],
                more_harmful_sign=-1 if row.safe[more] else 1,
                less_harmful_sign=-1 if row.safe[less] else 1,
            )
        )
    return pairs


def read_preferences(path: str | Path) -> list[PreferenceRow]:
    """Read a JSON-lines file; one error names up to ten problems as `file:line: field: reason`."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    rows: list[PreferenceRow] = []
    problems: list[str] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(PreferenceRow.model_validate(_parse(line)))
        except ValidationError as error:
            problems.extend(f"{path}:{number}: {problem}" for problem in _problems(error))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
        if len(problems) >= MAX_PROBLEMS:
            problems = [*problems[:MAX_PROBLEMS], "… the rest of the file was not read"]
            break
    if problems:
        raise InputError("\n".join(problems))
    if not rows:
        raise InputError(f"{path}:1: the file holds no rows; expected one JSON object per line")
    return rows


def write_preferences(path: str | Path, rows: Sequence[PreferenceRow]) -> None:
    """Write JSON lines; a reader sees the old file or the new one, never a part."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(row.model_dump_json() + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _parse(line: bytes) -> object:
    """JSON value of a line, or a `ValueError` that says what the line is instead."""
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"line: is not UTF-8 (byte {error.start}: {error.reason})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"line: is not JSON (column {error.colno}: {error.msg})") from error


def _problems(error: ValidationError) -> Iterator[str]:
    """One `field: reason` per problem of a row."""
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "value_error":  # ours, names its field itself
            yield problem["msg"].removeprefix("Value error, ")
        elif problem["type"] == "missing":
            yield f"{field}: is missing"
        elif problem["type"] == "string_pattern_mismatch":
            yield f"{field}: is empty"
        elif problem["type"] in ("greater_than_equal", "less_than_equal"):
            yield f"{field}: Input should be 0 or 1, found {problem['input']}"
        else:
            found = json.dumps(problem["input"], default=str)[:60]
            yield f"{field or 'line'}: {problem['msg']}, found {found}"
