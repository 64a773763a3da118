"""What a fit shows while it runs: a line per step in metrics.jsonl, and a bar with an ETA.

Off a terminal, one plain line per tenth of the fit.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from constrained_rl.checkpoint import write_text
from constrained_rl.logging import read_metrics
from llm_env.supervised import Progress
from llm_env.token_store import DroppedWarning


@contextmanager
def fit_progress(path: Path, title: str) -> Iterator[Progress]:
    """Report steps to a JSON-lines file and on the terminal.

    A fit that continues from a checkpoint repeats the steps after it: their lines are replaced.
    """
    console = Console()
    live = console.is_terminal and "CI" not in os.environ
    bar = Bar(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        disable=not live,
    )
    task = bar.add_task(escape(title), total=None, loss="")
    begun = False

    def report(step: int, steps: int, loss: float) -> None:
        nonlocal begun
        if not begun:
            kept = [row for row in read_metrics(path) if row["step"] < step]
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
            begun = True
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "steps": steps, "loss": loss}) + "\n")
        bar.update(task, completed=step, total=steps, loss=f"{loss:.4f}")
        if not live and (step == steps or step % max(1, steps // 10) == 0):
            console.print(f"{title}: step {step} of {steps}, loss {loss:.4f}", highlight=False)

    with bar:
        yield report


@contextmanager
def plain_dropped() -> Iterator[None]:
    """Say in one line that examples were left out, without a place in our sources."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:  # noqa: ANN401
            if issubclass(category, DroppedWarning):
                print(f"warning: {message}", file=sys.stderr)
            else:
                usual(message, category, *place)

        warnings.showwarning = show  # type: ignore[assignment]
        warnings.simplefilter("always", DroppedWarning)
        yield
