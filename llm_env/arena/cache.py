"""How is finished work kept? One file per piece, named by everything it depends on.

A piece is found again exactly when model, prompts and settings are the same, so nothing stale can
be read, and what changed is made anew. Lines are appended as they are finished: a killed process
loses the batch it was in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from constrained_rl.checkpoint import write_text
from constrained_rl.errors import InputError

Row = dict[str, Any]


def digest(*parts: object) -> str:
    """Twelve hex digits of everything that decides a result; parts are JSON values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def folder_state(path: str) -> list[list[object]]:
    """Names, sizes and times of a model folder's files: what tells that it was changed."""
    files = sorted(p for p in Path(path).rglob("*") if p.is_file())
    return [
        [str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns]
        for p in files
        if p.suffix in {".safetensors", ".bin", ".json", ".model", ".jinja", ".txt"}
    ]


def keep_rows(path: Path, total: int, batch: int, make: Callable[[slice], list[Row]]) -> list[Row]:
    """All rows of a piece of work, those that are in the file already taken from it.

    Args:
        path: of the finished JSON-lines file; its beginning lies beside it meanwhile.
        total: number of rows.
        batch: rows that are made at once; the last batch may be smaller.
        make: the rows of a slice.
    """
    if path.is_file():
        return read_rows(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    rows = _whole_rows(partial)
    rows = rows[: len(rows) // batch * batch]
    write_text(partial, _lines(rows))
    with partial.open("a", encoding="utf-8") as file:
        for start in range(len(rows), total, batch):
            made = make(slice(start, min(start + batch, total)))
            file.write(_lines(made))
            file.flush()
            rows += made
    partial.replace(path)
    return rows


def read_rows(path: Path) -> list[Row]:
    """Rows of a JSON-lines file."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error}); delete it, and the same command makes it again"
        ) from error


def _whole_rows(partial: Path) -> list[Row]:
    """Rows up to the first that was cut off."""
    if not partial.is_file():
        return []
    rows: list[Row] = []
    for line in partial.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
