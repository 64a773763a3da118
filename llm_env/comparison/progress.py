"""Progress of a comparison, read from what its stages write; one bar with ETA for all of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class StageTask(Protocol):
    """What progress needs to know of a stage."""

    @property
    def folder(self) -> str:
        """Folder under the comparison."""

    @property
    def iterations(self) -> int:
        """RL iterations, 0 for other stages."""


OTHER = {"sft": 40.0, "preferences": 20.0}
"""Weight of the other stages, in RL iterations; those not named count 15."""


class StageProgress:
    """Shows the share of all work that is done and which stages are running."""

    def __init__(self, folder: Path, tasks: Sequence[StageTask]) -> None:
        self._folder, self._tasks = folder, tasks
        self._console = Console()
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            disable=not self._console.is_terminal or "CI" in os.environ,
        )
        self._bar = self._progress.add_task("starting", total=sum(map(self._weight, tasks)))
        self._finished = {t.folder for t in tasks if (folder / t.folder).exists()}

    def __enter__(self) -> Self:
        """Start the display."""
        self._progress.start()
        self.refresh()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the display."""
        self._progress.stop()

    @staticmethod
    def _weight(task: StageTask) -> float:
        return float(task.iterations) or OTHER.get(task.folder, 15.0)

    def refresh(self) -> None:
        """Read the stages' files and show where they are."""
        completed, running = 0.0, []
        for task in self._tasks:
            share = self._share(task)
            completed += share * self._weight(task)
            if 0 < share < 1:
                running.append(task.folder.removeprefix("runs/"))
            if share == 1 and task.folder not in self._finished:
                self._finished.add(task.folder)
                seconds = json.loads((self._folder / task.folder / "time.json").read_text())
                self._progress.console.print(
                    f"  done {task.folder:24} {seconds['wall']:6.1f} s", highlight=False
                )
        text = " ‖ ".join(running) or "starting"
        self._progress.update(self._bar, completed=completed, description=text)

    def _share(self, task: StageTask) -> float:
        folder = self._folder / task.folder
        if folder.exists():
            return 1.0
        work = folder.with_name(f".{folder.name}")
        for name in ("metrics.jsonl", "progress.jsonl"):
            line = _last_line(work / name)
            if line is not None:
                if "step" in line:
                    return 0.99 * line["step"] / line["steps"]
                return 0.95 * line["iteration"] / max(1, task.iterations)
        return 0.01 if work.exists() else 0.0


def _last_line(path: Path) -> dict[str, float] | None:
    """Last complete JSON line of a file that another process is writing."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        found: dict[str, float] = json.loads(lines[-1])
    except (OSError, IndexError, json.JSONDecodeError):
        return None
    return found
