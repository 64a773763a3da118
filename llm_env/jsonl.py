"""Lines of a JSON-lines file, one at a time, in bounded memory: plain, `.gz` or `.xz`.

A byte-order mark at the start and CR LF line ends are accepted; blank lines are skipped, but they
count as lines. JSON is read strictly: duplicate keys, NaN, Infinity, numbers beyond float64 and
lone surrogates are problems, since they do not survive being read and written again.
Absent: what the objects mean (preferences.py).
"""

from __future__ import annotations

import gzip
import json
import lzma
import math
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase, BufferedReader, FileIO
from pathlib import Path
from typing import NoReturn

from constrained_rl.errors import InputError
from llm_env.prompts import FieldError

MAX_LINE_BYTES = 16 * 2**20
"""longest line that is read; a longer one is a bad row"""
KEPT_BYTES = 4096  # of a line that is too long
BOM = b"\xef\xbb\xbf"
COMPRESSED = {b"\x1f\x8b": ".gz", b"\xfd7zXZ\x00": ".xz"}
DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Line:
    """A line that is not blank."""

    number: int  # 1-based, blank lines counted
    data: bytes  # without its line end; the first KEPT_BYTES where it was too long
    length: int  # bytes, line end included
    offset: int = field(default=0, compare=False)  # of its first byte, in the decompressed file

    @property
    def is_cut(self) -> bool:
        """Whether the line was longer than is read."""
        return self.length > MAX_LINE_BYTES


def iter_lines(path: str | Path) -> Iterator[Line]:
    """Lines of a file in order.

    Raises:
        InputError: the file cannot be read, is a directory, or is a damaged archive.
    """
    path, number, offset = Path(path), 0, 0
    try:
        with _open(path) as file:
            while data := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                line = _line(file, number, data, offset)
                offset = line.offset + line.length
                if line.data.strip():
                    yield line
    except DAMAGED as error:
        raise InputError(
            f"{path}: is a damaged or incomplete archive (after line {number}: {error}); "
            "copy it again"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}){_hint(path)}") from error


def parse(line: Line) -> object:
    """JSON value of a line.

    Raises:
        FieldError: the line is no JSON, or JSON that does not survive a round trip.
    """
    if line.is_cut:
        reason = (
            f"is {line.length / 2**20:.1f} MiB long, the limit is {MAX_LINE_BYTES // 2**20} MiB; "
            f"raw holds its first {KEPT_BYTES} bytes"
        )
        raise FieldError("line", "is too long", reason)
    try:
        text = line.data.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 (byte {error.start}: {error.reason})"
        raise FieldError("line", "is not UTF-8", reason) from error
    try:
        value: object = DECODER.decode(text)
    except FieldError:
        raise
    except json.JSONDecodeError as error:
        reason = f"is not JSON (column {error.colno}: {error.msg})"
        raise FieldError("line", "is not JSON", reason) from error
    except RecursionError as error:
        raise FieldError("line", "is nested too deeply", "is nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise FieldError("line", "is not JSON", f"is not JSON ({error})") from error
    if "\\ud" in text or "\\uD" in text:
        _refuse_lone_surrogates(value)
    return value


def _open(path: Path) -> BufferedIOBase:
    """The file's bytes, decompressed by the ending of its name."""
    wanted = path.suffix if path.suffix in COMPRESSED.values() else None
    if path.is_file():  # a pipe cannot be looked at twice
        with path.open("rb") as file:
            head = file.read(6)
        found = next((end for magic, end in COMPRESSED.items() if head.startswith(magic)), None)
        if head and found != wanted:
            raise InputError(
                f"{path}: the name says {wanted or 'plain text'}, the content is "
                f"{found or 'no such archive'}; rename the file"
            )
    if wanted == ".gz":
        return gzip.open(path)
    if wanted == ".xz":
        return lzma.open(path)
    return BufferedReader(FileIO(path), 2**20)


def _line(file: BufferedIOBase, number: int, data: bytes, offset: int) -> Line:
    """A line of the file; what is too long is skipped up to its end in pieces."""
    if number == 1 and data.startswith(BOM):
        data, offset = data.removeprefix(BOM), len(BOM)
    length = len(data)
    if length <= MAX_LINE_BYTES:
        return Line(number, data.rstrip(b"\r\n"), length, offset)
    kept = data[:KEPT_BYTES]
    while data and not data.endswith(b"\n"):
        data = file.readline(2**20)
        length += len(data)
    return Line(number, kept, length, offset)


def _hint(path: Path) -> str:
    """What to do about a directory."""
    if not path.is_dir():
        return ""
    names = sorted(p.name for p in path.iterdir() if ".jsonl" in p.suffixes)[:3]
    return f"; name a file in it{': ' + ', '.join(names) if names else ''}"


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object whose keys are all different."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise FieldError(
            json.dumps(twice[:60])[1:-1],
            "occurs twice",
            "occurs twice in one object; which one is meant is unknown",
        )
    return found


def _finite(text: str) -> float:
    """A float64."""
    number = float(text)
    if not math.isfinite(number):
        _refuse_constant(text)
    return number


def _refuse_constant(text: str) -> NoReturn:
    """NaN, Infinity and 1e999 are no JSON numbers."""
    raise FieldError(
        "line", "is not finite", f"holds {text[:60]}, which is no finite number; write null"
    )


def _refuse_lone_surrogates(value: object) -> None:
    """Half of an escaped pair is no character, and no UTF-8 file can hold it."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise FieldError(
            "line",
            "holds a lone surrogate",
            rf"holds \u{half:04x}, half of a surrogate pair, which is no character",
        ) from error


DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_finite, parse_constant=_refuse_constant
)
