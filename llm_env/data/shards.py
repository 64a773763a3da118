"""Which files does a path mean, and what are their rows, whatever the files are?

    .jsonl  .jsonl.gz  .jsonl.xz  .json (an array, or lines)  .txt (a prompt per line)  .parquet

A folder means all such files in it, in the order of their names; one that holds several splits
(train and test) is refused, since nobody wants to train on both. Whatever a shard is, its rows come
as lines of JSON, so that one reader checks them all. Absent: downloads, nested folders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from constrained_rl.errors import InputError
from llm_env.jsonl import DECODER, Line, iter_lines
from llm_env.prompts import FieldError

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".json", ".txt", ".parquet")
SPLITS = {"train": "train", "test": "test", "valid": "test", "eval": "test", "dev": "test"}
"""beginnings of file names, and whether they are meant for training"""


@dataclass(frozen=True)
class Shard:
    """Rows that can be read once, in order."""

    name: str
    lines: Callable[[], Iterator[Line]]
    plain: Path | None = None
    """the file, where its lines are found again by their offsets"""


def shards_of(path: str | Path) -> list[Shard]:
    """The shards that a path means.

    Raises:
        InputError: a folder without data files, or with several splits.
    """
    path = Path(path)
    if not path.is_dir():
        return [_shard(path)]
    files = sorted(
        p for p in path.iterdir() if p.is_file() and p.name.endswith(ENDINGS) and p.name[0] != "."
    )
    if not files:
        found = ", ".join(sorted(p.name for p in path.iterdir())[:5])
        raise InputError(
            f"{path}: is a folder without data: expected files that end in {', '.join(ENDINGS)}, "
            f"found {found or 'nothing'}"
        )
    splits = {
        kind: file.name
        for file in files
        for beginning, kind in SPLITS.items()
        if file.name.lower().startswith(beginning)
    }
    if len(splits) > 1:
        raise InputError(
            f"{path}: holds several splits ({', '.join(splits.values())}); name the file that is "
            "meant, or put the shards of one split into a folder of their own"
        )
    return [_shard(file) for file in files]


def shard_of_objects(rows: Iterable[Mapping[str, Any]], name: str) -> Shard:
    """Rows from Python: a `datasets.Dataset`, a list, a generator of dicts."""
    return Shard(name, lambda: (_as_line(i, row) for i, row in enumerate(rows, start=1)))


def _shard(path: Path) -> Shard:
    match path.suffix:
        case ".parquet":
            return Shard(str(path), lambda: _parquet(path))
        case ".txt":
            return Shard(str(path), lambda: map(_prompt_line, iter_lines(path)))
        case ".json":
            return Shard(str(path), lambda: _json(path))
        case ".gz" | ".xz":
            return Shard(str(path), lambda: iter_lines(path))
    return Shard(str(path), lambda: iter_lines(path), path if path.is_file() else None)


def _as_line(number: int, row: object) -> Line:
    """A row as JSON. Columns that JSON does not know (times) become text; none is read."""
    data = json.dumps(row, default=str, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return Line(number, data, len(data))


def _prompt_line(line: Line) -> Line:
    """A line of text as a row with a prompt; one that is no UTF-8 stays, and is found bad."""
    try:
        text = line.data.decode("utf-8")
    except UnicodeDecodeError:
        return line
    return _as_line(line.number, {"prompt": text})


def _json(path: Path) -> Iterator[Line]:
    """Rows of an array, which is read as a whole; or JSON lines under another name."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if not text.lstrip().startswith("["):
            yield from iter_lines(path)
            return
        rows = DECODER.decode(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError, FieldError) as error:
        raise InputError(
            f"{path}: is no JSON array ({error}); a file that was cut off ends like this, copy it "
            "again"
        ) from error
    yield from (_as_line(number, row) for number, row in enumerate(rows, start=1))


def _parquet(path: Path) -> Iterator[Line]:
    """Rows of a parquet file, some hundred at a time.

    Read, not mapped: a mapped file that is cut off meanwhile would kill the process.
    """
    parquet = _require_pyarrow(path)
    number = 0
    try:
        with parquet.ParquetFile(path, memory_map=False) as file:
            for batch in file.iter_batches(batch_size=512):
                for row in batch.to_pylist():
                    number += 1
                    yield _parquet_line(number, row)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read (after row {number}: {reason})") from error
    except ValueError as error:  # pyarrow's ArrowInvalid is one
        raise InputError(
            f"{path}: is no parquet file, or an incomplete one (after row {number}: "
            f"{str(error).splitlines()[0]}); copy it again"
        ) from error


def _parquet_line(number: int, row: object) -> Line:
    """A row whose bytes are UTF-8 text; one with other bytes stays, and is found bad."""
    try:
        return _as_line(number, _texts(row))
    except UnicodeDecodeError as error:
        return Line(number, error.object, len(error.object))


def _texts(value: object) -> object:
    """A value of a row with its bytes, at any depth, as text."""
    match value:
        case bytes():
            return value.decode("utf-8")
        case dict():
            return {key: _texts(inner) for key, inner in value.items()}
        case list():
            return [_texts(inner) for inner in value]
    return value


def _require_pyarrow(path: Path) -> Any:  # noqa: ANN401 — a module without types
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            f"{path}: reading parquet needs pyarrow, which is not installed; install it with: "
            'pip install "constrained-rl[data]"'
        ) from None
    return parquet
