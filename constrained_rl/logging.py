"""Loggers observe a run: JSON lines on disk, a live table on the terminal.

Deleting every logger changes no parameter. Off a terminal, one plain line per tenth of the run.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from constrained_rl.checkpoint import write_text
from constrained_rl.distributed import speaks
from constrained_rl.errors import InputError, Notice
from constrained_rl.feasibility import kept


class JsonlLogger:
    """Appends one JSON object per iteration to a file and flushes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append `metrics`; `OSError` with the file's name when the disk is full."""
        try:
            self._file.write(json.dumps(dict(metrics)) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read a metrics file; blank lines and a last line cut short by a kill are left out.

    Raises:
        InputError: another line is not a row; the file is left as it is.
    """
    if not path.exists():
        return []
    *lines, cut = path.read_bytes().split(b"\n")
    rows = [_row(line, f"line {n} of {path}") for n, line in enumerate(lines, 1) if line.strip()]
    with suppress(InputError):
        rows += [_row(cut, "the last line")] if cut.strip() else []
    return rows


def _row(line: bytes, place: str) -> dict[str, float]:
    """A row of a metrics file."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # bytes that are no text are a ValueError too
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"{place} is no row of metrics (a JSON object): {line[:40]!r}; nothing was changed. "
            "Restore the line, or delete it, then give the same command again"
        )
    return found


def keep_iterations(path: Path, last: int) -> None:
    """Drop rows after iteration `last`: they will be run again.

    Warns where rows 1…`last` are not all there, once each and in order.
    """
    if not path.exists():
        return
    rows = [row for row in read_metrics(path) if row.get("iteration", 0) <= last]
    found = [row.get("iteration", 0) for row in rows]
    if found != list(range(1, last + 1)):
        pairs = enumerate(zip_longest(found, range(1, last + 1)), 1)
        number, (there, due) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
        warnings.warn(
            f"{path} has {len(found)} rows up to the checkpoint of iteration {last}: row {number} "
            f"is of iteration {there}, where {due} was expected. The run goes on, as its state is "
            "in the checkpoint; plots and tables have what the file has",
            Notice,
            stacklevel=2,
        )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.read_bytes() != text.encode():
        write_text(path, text)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print a `Notice` as one line without a place in our sources; of several ranks, once.

    The same text again, from a model that is loaded a second time say, is not repeated.
    """
    with warnings.catch_warnings():
        usual = warnings.showwarning
        said: set[str] = set()

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:  # noqa: ANN401
            if issubclass(category, Notice):
                if speaks() and str(message) not in said:
                    said.add(str(message))
                    print(f"warning: {message}", file=sys.stderr)
            else:
                usual(message, category, *place)

        warnings.showwarning = show  # type: ignore[assignment]
        warnings.simplefilter("always", Notice)
        yield


class RichLogger:
    """Live table of return, costs, estimates against their limits, λ and KL, with an ETA."""

    def __init__(
        self,
        total: int,
        title: str,
        limits: Mapping[str, float],
        console: Console | None = None,
    ) -> None:
        self._console = console or Console()
        self._title, self._total, self._limits = title, total, dict(limits)
        self._live: Live | None = None
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task("iterations", total=total)
        if self._console.is_terminal and "CI" not in os.environ:
            self._live = Live(self._progress, console=self._console, refresh_per_second=4)
            self._live.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the newest iteration."""
        if self._live is not None:
            self._progress.update(self._task, completed=step)
            self._live.update(Group(self._table(metrics), self._progress))
        elif step % max(1, self._total // 10) == 0 or step == self._total:
            line = self._line(step, metrics)
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last table on the screen."""
        if self._live is not None:
            self._live.stop()

    def _table(self, metrics: Mapping[str, float]) -> Table:
        table = Table(title=self._title, title_justify="left")
        table.add_column("quantity")
        table.add_column("value", justify="right")
        table.add_column("limit", justify="right")
        for name, text, limit, color in self._rows(metrics):
            table.add_row(escape(name), Text(text, color), limit)
        return table

    def _rows(self, metrics: Mapping[str, float]) -> Sequence[tuple[str, str, str, str]]:
        """Name, value, limit and color of each line."""
        rows: list[tuple[str, str, str, str]] = []
        shown = ("return/", "cost/", "estimate/", "lambda/", "kl/", "entropy", "episode/")
        for name, value in metrics.items():
            if not name.startswith(shown):
                continue
            limit = self._limits.get(name.removeprefix("estimate/"))
            if limit is None or not name.startswith("estimate/"):
                rows.append((name, f"{value:.4g}", "", ""))
            else:
                color = "green" if kept(value, limit) else "red"
                rows.append((name, f"{value:.4g}", f"≤ {limit:g}", color))
        seconds = sum(v for k, v in metrics.items() if k.startswith("time/"))
        rows.append(("time/iteration", f"{seconds:.3g} s", "", ""))
        return rows

    def _line(self, step: int, metrics: Mapping[str, float]) -> str:
        parts = [f"{name} {text}" for name, text, *_ in self._rows(metrics)]
        return f"[{step}/{self._total}] " + "  ".join(parts)
