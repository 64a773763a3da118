"""JSON lines that the stages of rounds write for each other; people bring files of another kind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from constrained_rl.checkpoint import write_text


def write_rows(path: Path, rows: Iterable[object]) -> None:
    """Write one JSON value per line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[Any]:
    """Read what `write_rows` wrote."""
    # not splitlines: U+2028 and its like are no line ends in JSON
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
