r"""Bad rows: what is said of each, how they are counted, and the file that they are set aside in.

One JSON object per bad row: `line` (1-based), `field`, `reason`, `raw` (the line's text), `also`
(further problems, when there are any), `file` (where there are several). Bytes that are no UTF-8
appear in `raw` as \xNN and exactly in `raw_base64`. Absent: repairs.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from filecmp import cmp
from pathlib import Path
from typing import IO, Self

from constrained_rl.errors import InputError
from llm_env.prompts import FieldError

MAX_REPORTED = 10  # bad rows in an error message


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    line: int
    problems: tuple[FieldError, ...]  # at least one
    raw: bytes
    file: str | None = None  # where a source has several

    def to_json(self) -> str:
        """The row's object in a quarantine file, in ASCII, hence valid UTF-8."""
        first, *rest = self.problems
        record: dict[str, object] = {
            "line": self.line,
            "field": first.field,
            "reason": first.reason,
            "raw": self.raw.decode("utf-8", "backslashreplace"),
        }
        if self.file is not None:
            record["file"] = self.file
        if rest:
            record["also"] = [str(problem) for problem in rest]
        try:
            self.raw.decode("utf-8")
        except UnicodeDecodeError:
            record["raw_base64"] = base64.b64encode(self.raw).decode("ascii")
        return json.dumps(record)


@dataclass
class Tally:
    """Good and bad rows of one file or folder, counted while it is read."""

    path: Path
    good: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # first problem of each bad row
    first: list[str] = field(default_factory=list)  # of the first few: file:line: field: reason

    @property
    def bad(self) -> int:
        """Number of bad rows."""
        return self.reasons.total()

    @property
    def share(self) -> float:
        """Bad rows among all; 0 of none."""
        return self.bad / max(1, self.good + self.bad)

    def add(self, row: BadRow) -> None:
        """Count a bad row."""
        problem = row.problems[0]
        self.reasons[f"{problem.field}: {problem.kind}"] += 1
        if len(self.first) < MAX_REPORTED:
            self.first.append(f"{row.file or self.path}:{row.line}: {problem}")

    def require(self, max_bad: float, quarantine: Path | None) -> None:
        """Raise `InputError` unless there are rows and few enough of them are bad."""
        total = self.good + self.bad
        if total == 0:
            raise InputError(no_rows(self.path))
        if self.share <= max_bad and self.good:
            return
        allowed = "none of them can be used" if self.good == 0 else f"allowed are {max_bad:.4g}"
        where = "" if quarantine is None else f"; they are set aside in {quarantine}"
        hidden = self.bad - len(self.first)
        more = [f"… and {hidden} more"] if hidden else []
        head = f"{self.path}: {self.bad} of {total} rows are bad (a share of {self.share:.4g}), "
        raise InputError("\n".join([f"{head}{allowed}{where}", *self.first, *more]))


def no_rows(path: str | Path) -> str:
    """What is said of an empty file."""
    row = "prompt" if str(path).endswith(".txt") else "JSON object"
    return f"{path}:1: the file holds no rows; expected one {row} per line"


class Quarantine:
    """A new file of bad rows that appears whole, when the file they come from has been read.

    One that says the same already stays: a resumed run reads its data again, and so does each rank.
    """

    def __init__(self, path: Path, source: Path) -> None:
        if path.resolve() == source.resolve():
            raise InputError(f"{path}: is the file that is being read; name a new one")
        if not path.parent.is_dir():
            raise InputError(f"{path.parent}: is no folder; make it first")
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        """Open a file beside the final name."""
        with self._writing():
            self._file = self._temporary.open("w", encoding="ascii", newline="\n")
        return self

    def write(self, row: BadRow) -> None:
        """Set a row aside."""
        assert self._file is not None
        with self._writing():
            self._file.write(row.to_json() + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Give the file its name, or remove it when the reading did not come to its end."""
        assert self._file is not None
        try:
            with self._writing(), self._file as file:
                file.flush()
                os.fsync(file.fileno())
            if kind is None:
                self._refuse_another()
                self._temporary.replace(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _refuse_another(self) -> None:
        there = self._path.exists() or self._path.is_symlink()
        if there and not (self._path.is_file() and cmp(self._path, self._temporary, shallow=False)):
            raise InputError(
                f"{self._path}: exists already and holds something else; remove it or name another "
                "file, nothing is overwritten"
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Say which file could not be written."""
        try:
            yield
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written ({error.strerror})") from error
