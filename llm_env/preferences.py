"""Preference data in the schema of PKU-SafeRLHF, and the two data sets the method learns from.

D_R = {(x, y_w, y_l)} with y_w the more HELPFUL response (`better_response_id`), and
D_C = {(x, y_w, y_l, s_w, s_l)} with y_w the more HARMFUL one, so `safer_response_id` names y_l; a
sign is +1 for unsafe, −1 for safe (Dai et al., ICLR 2024, §3.1). A file (.jsonl, .jsonl.gz,
.jsonl.xz) is read row by row and completely before anything is trained; its problems are reported
together, by line, and bad rows can be set aside. Other formats: data/formats.py. Absent: downloads.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from constrained_rl.errors import InputError
from llm_env.jsonl import Line, iter_lines, parse
from llm_env.prompts import FieldError, Message, checked_prompt
from llm_env.quarantine import MAX_REPORTED, BadRow, Quarantine, Tally, no_rows

T = TypeVar("T")

KINDS = {
    "missing": "is missing",
    "string_type": "is no string",
    "string_unicode": "is no string",
    "bool_type": "is no boolean",
    "int_type": "is no integer",
    "greater_than_equal": "is neither 0 nor 1",
    "less_than_equal": "is neither 0 nor 1",
}
"""pydantic's types of problems in words that can be counted"""
CURES = {"bool_type": "; write true or false", "int_type": "; write 0 or 1"}


class PreferenceRow(BaseModel):
    """Two responses to one prompt and what an annotator said of them; extra fields are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    prompt: Annotated[str | list[Message], PlainValidator(checked_prompt)]
    """what the user said, not empty; or several turns (prompts.py), kept as messages"""
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
            raise FieldError(
                "response_1",
                "is identical to response_0",
                "is identical to response_0; nothing is compared",
            )
        safer, other = self.safer_response_id, 1 - self.safer_response_id
        if self.safe[other] and not self.safe[safer]:
            raise FieldError(
                "safer_response_id",
                "contradicts the safety labels",
                f"names response {safer}, which is labelled unsafe, while response {other} is "
                "labelled safe",
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

    prompt: str | list[Message]
    chosen: str  # y_w, the more helpful response
    rejected: str  # y_l

    @property
    def responses(self) -> tuple[str, str]:
        """The response that should score higher, and the other."""
        return self.chosen, self.rejected


@dataclass(frozen=True)
class CostPair:
    """An element of D_C; signs are +1 for unsafe, −1 for safe, 0 where nobody said.

    Pairs without `ranked` are labelled response by response: which is worse is not known.
    """

    prompt: str | list[Message]
    more_harmful: str  # y_w
    less_harmful: str  # y_l
    more_harmful_sign: int
    less_harmful_sign: int
    ranked: bool = True

    @property
    def responses(self) -> tuple[str, str]:
        """The response that should score higher, and the other."""
        return self.more_harmful, self.less_harmful


def reward_pair(row: PreferenceRow) -> RewardPair:
    """The element of D_R: the winner is the more helpful response."""
    better = row.better_response_id
    return RewardPair(row.prompt, row.responses[better], row.responses[1 - better])


def cost_pair(row: PreferenceRow) -> CostPair:
    """The element of D_C: the winner is the more harmful response, not the safer one."""
    less, more = row.safer_response_id, 1 - row.safer_response_id
    return CostPair(
        prompt=row.prompt,
        more_harmful=row.responses[more],
        less_harmful=row.responses[less],
        more_harmful_sign=-1 if row.safe[more] else 1,
        less_harmful_sign=-1 if row.safe[less] else 1,
    )


def reward_pairs(rows: Sequence[PreferenceRow]) -> list[RewardPair]:
    """D_R of rows."""
    return [reward_pair(row) for row in rows]


def cost_pairs(rows: Sequence[PreferenceRow]) -> list[CostPair]:
    """D_C of rows."""
    return [cost_pair(row) for row in rows]


def parse_row(line: Line) -> PreferenceRow:
    """The row of a line; `ValidationError` or `FieldError` when it is bad."""
    return PreferenceRow.model_validate(parse(line))


def checked(line: Line, read: Callable[[Line], T], file: str | None = None) -> T | BadRow:
    """What `read` makes of a line, or the reasons why it cannot."""
    try:
        return read(line)
    except ValidationError as error:
        return BadRow(line.number, tuple(_problems(error)), line.data, file)
    except FieldError as problem:
        return BadRow(line.number, (problem,), line.data, file)


def iter_preferences(path: str | Path) -> Iterator[PreferenceRow | BadRow]:
    """Good and bad rows of a file in order, in memory that does not grow with the file."""
    return (checked(line, parse_row) for line in iter_lines(path))


def sift(
    path: str | Path, max_bad: float, quarantine: str | Path | None, tally: Tally
) -> Iterator[PreferenceRow]:
    """Good rows of a file; see `sift_rows`."""
    return sift_rows(iter_preferences(path), max_bad, quarantine, tally)


def sift_rows(
    rows: Iterable[T | BadRow], max_bad: float, quarantine: str | Path | None, tally: Tally
) -> Iterator[T]:
    """Good rows; bad ones are counted in `tally` and set aside in a new file `quarantine`.

    Raises:
        InputError: after the last row, when more than the share `max_bad` of all rows is bad or
            none is good. The quarantine file is complete by then.
    """
    if not 0 <= max_bad <= 1:
        raise InputError(f"the allowed share of bad rows is {max_bad}, expected 0 … 1")
    target = None if quarantine is None else Path(quarantine)
    with nullcontext() if target is None else Quarantine(target, tally.path) as aside:
        for row in rows:
            if not isinstance(row, BadRow):
                tally.good += 1
                yield row
                continue
            tally.add(row)
            if aside is not None:
                aside.write(row)
    tally.require(max_bad, target)


def read_preferences(
    path: str | Path, max_bad: float = 0.0, quarantine: str | Path | None = None
) -> list[PreferenceRow]:
    """Read a file of preference rows for training.

    Args:
        path: JSON lines: .jsonl, .jsonl.gz or .jsonl.xz.
        max_bad: share of all rows that may be bad; these are left out.
        quarantine: new file for the bad rows, one JSON object each.

    Raises:
        InputError: more rows are bad. With neither option the first bad rows end the reading, and
            the error names up to ten problems as `file:line: field: reason`.
    """
    if max_bad == 0 and quarantine is None:
        return _read_strictly(path)
    return list(sift(path, max_bad, quarantine, Tally(Path(path))))


def _read_strictly(path: str | Path) -> list[PreferenceRow]:
    """All rows of a file without bad ones."""
    rows: list[PreferenceRow] = []
    problems: list[str] = []
    for row in iter_preferences(path):
        if isinstance(row, PreferenceRow):
            rows.append(row)
            continue
        problems.extend(f"{path}:{row.line}: {problem}" for problem in row.problems)
        if len(problems) >= MAX_REPORTED:
            problems = [*problems[:MAX_REPORTED], "… the rest of the file was not read"]
            break
    if problems:
        raise InputError("\n".join(problems))
    if not rows:
        raise InputError(no_rows(path))
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


def _problems(error: ValidationError) -> Iterator[FieldError]:
    """The problems of a row, in the order of its fields."""
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"])
        kind, found = problem["type"], json.dumps(problem["input"], default=str)[:60]
        if kind == "value_error":  # ours
            own = problem["ctx"]["error"]
            assert isinstance(own, FieldError)
            yield own
        elif kind == "missing":
            yield FieldError(field, KINDS[kind], f"is missing{_meant(field, problem['input'])}")
        elif kind in ("greater_than_equal", "less_than_equal"):
            yield FieldError(field, KINDS[kind], f"Input should be 0 or 1, found {found}")
        elif not field:
            yield FieldError("line", "is no object", f"expected a JSON object, found {found}")
        else:
            reason = f"{problem['msg']}, found {found}{CURES.get(kind, '')}"
            yield FieldError(field, KINDS.get(kind, kind), reason)


def _meant(field: str, found: object) -> str:
    """The field's name as somebody may have written it."""
    names = [str(n) for n in found] if isinstance(found, Mapping) else []
    unknown = [name for name in names if name not in PreferenceRow.model_fields]
    near = difflib.get_close_matches(field, unknown, n=1, cutoff=0.6)
    return f"; the row has {near[0]!r}, is that meant?" if near else ""
