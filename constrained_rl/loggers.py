"""Loggers that a run has only when its config asks for them: CSV, TensorBoard, W&B, trackio.

Each continues a resumed run: what came after iteration `last` is run again, so it is dropped, or
where a tracker cannot drop it, logged again with the same values. Packages are imported when used.
"""

from __future__ import annotations

import csv
import io
import secrets
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from constrained_rl.checkpoint import write_text
from constrained_rl.config import LoggerName
from constrained_rl.errors import InputError
from constrained_rl.protocols import Logger


def require_loggers(names: Sequence[LoggerName]) -> None:
    """Raise `InputError` if the package of a logger is missing."""
    for name in names:
        if name != "csv" and find_spec(name) is None:
            raise InputError(
                f"loggers asks for {name}, which is not installed; install it with "
                f"`pip install {name}`, or take it out of loggers"
            )


def open_loggers(
    names: Sequence[LoggerName], settings: BaseModel, folder: Path, last: int
) -> list[Logger]:
    """The named loggers for the run in `folder`, whose iterations ≤ `last` stand."""
    found: list[Logger] = []
    for name in dict.fromkeys(names):
        match name:
            case "csv":
                found.append(CsvLogger(folder / "metrics.csv", last))
            case "tensorboard":
                found.append(TensorBoardLogger(folder / "tensorboard", last))
            case "wandb" | "trackio":
                found.append(TrackerLogger(import_module(name), folder, settings))
    return found


class CsvLogger:
    """One row per iteration under a header; a metric that appears later becomes a new column.

    Then the file is written anew, atomically, with empty cells in the rows before.
    """

    def __init__(self, path: Path, last: int) -> None:
        self._path = path
        columns, rows = read_csv(path)
        self._columns = columns
        if path.exists():
            self._write([row for row in rows if int(row["iteration"]) <= last])
        self._file = path.open("a", encoding="utf-8", newline="")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append `metrics`."""
        new = [name for name in metrics if name not in self._columns]
        if new:
            self._file.close()
            _, rows = read_csv(self._path)
            self._columns = [*self._columns, *new]
            self._write(rows)
            self._file = self._path.open("a", encoding="utf-8", newline="")
        self._file.write(self._lines([metrics]))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, rows: Sequence[Mapping[str, object]]) -> None:
        header = dict(zip(self._columns, self._columns, strict=True))
        write_text(self._path, self._lines([header, *rows]) if self._columns else "")

    def _lines(self, rows: Sequence[Mapping[str, object]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue()


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file; a row cut short by a kill is left out."""
    if not path.exists():
        return [], []
    whole = path.read_bytes().rpartition(b"\n")[0]
    try:
        header, *rows = csv.reader(io.StringIO(whole.decode(), newline=""), strict=True)
    except ValueError as error:
        header, rows = [], []
        if whole:
            raise _bad_csv(path, str(error)) from error
    except csv.Error as error:
        raise _bad_csv(path, str(error)) from error
    found = [dict(zip(header, row, strict=False)) for row in rows if row]
    for line, (row, cells) in enumerate(zip(found, filter(None, rows), strict=True), 2):
        if len(cells) != len(header) or not row.get("iteration", "").isdecimal():
            raise _bad_csv(path, f"row {line} does not fit its header: {','.join(cells)[:40]!r}")
    return header, found


def _bad_csv(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} is damaged ({what}); nothing was changed. Restore it, or delete it: "
        "metrics.jsonl holds the same numbers"
    )


class TensorBoardLogger:
    """Scalars over iterations, for `tensorboard --logdir`."""

    def __init__(self, folder: Path, last: int) -> None:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        # the reader drops what an earlier process wrote from `purge_step` on
        self._writer = writer(str(folder), purge_step=last + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write `metrics` at `step`, to disk: a kill must not take what a checkpoint covers."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class TrackerLogger:
    """W&B, or trackio, which has the same interface: `module.init`, `run.log`, `run.finish`.

    Online or offline is the tracker's own setting (WANDB_MODE=offline). A resumed run keeps its id;
    iterations after its last checkpoint are logged again with the same values.
    """

    def __init__(self, module: ModuleType, folder: Path, config: BaseModel) -> None:
        name = f"{folder.resolve().name}-{run_id(folder)}"
        settings: dict[str, Any] = {"name": name, "resume": "allow"}
        if module.__name__ == "wandb":
            # no console capture, no code, no git: what a run depends on is in its config
            quiet = module.Settings(console="off", disable_git=True, disable_code=True)
            settings |= {"id": run_id(folder), "dir": str(folder), "settings": quiet}
        try:
            self._run = module.init(
                project="constrained-rl", config=config.model_dump(mode="json"), **settings
            )
        except Exception as error:
            raise InputError(
                f"{module.__name__} does not start: {error}; log in to it, choose its offline mode "
                f"(WANDB_MODE=offline), or take {module.__name__} out of loggers"
            ) from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send `metrics`."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Wait until everything is written."""
        self._run.finish()


def run_id(folder: Path) -> str:
    """A random name of the run in `folder`, made once: trackers know a resumed run by it."""
    path = folder / "run_id"
    if not path.exists():
        write_text(path, secrets.token_hex(6) + "\n")
    return path.read_text(encoding="utf-8").strip()
