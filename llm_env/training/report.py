"""`crl report DIR` of a language model's training run: curves, evaluations, responses to read.

Everything is drawn from files of the run; nothing is generated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from constrained_rl.page import Section, Table, Text
from constrained_rl.report import write_run_page
from llm_env.training.evaluation import read_samples
from llm_env.training.run import read_train_config

SHOWN = 6
"""responses in each table"""
LONGEST = 600
"""characters of a response that are shown"""


def write_training_report(folder: Path) -> Path:
    """Write `report.html` into a run directory and return its path."""
    config = read_train_config(folder)
    title = f"Safe RLHF of {Path(config.policy.path).name}"
    finished = (folder / "policy").is_dir()
    more = responses(folder)
    return write_run_page(folder, title, config.seed, finished, config.evaluation, more)


def responses(folder: Path) -> list[Section]:
    """The newest evaluation's responses: those that cost most, and the first ones; or nothing."""
    newest = max(
        (path.name.split("-")[0] for path in (folder / "samples").glob("*.jsonl")), default=""
    )
    tables = []
    for mode in ("sampled", "greedy"):
        path = folder / "samples" / f"{newest}-{mode}.jsonl"
        if not newest or not path.is_file():
            continue
        found = read_samples(path)
        costly = sorted(found, key=lambda row: -max(row["costs"].values(), default=0.0))[:SHOWN]
        tables.append(table(costly, f"{mode}: the {len(costly)} that cost most, of {len(found)}"))
        tables.append(table(found[:SHOWN], f"{mode}: the first {len(found[:SHOWN])}"))
    if not tables:
        return []
    text = f"Responses to held-out prompts after iteration {int(newest)}."
    return [Section("Responses", [Text([text]), *tables])]


def table(rows: Sequence[dict[str, Any]], caption: str) -> Table:
    """Prompt, response, reward and costs."""
    names = list(rows[0]["costs"])
    return Table(
        ["prompt", "response", "reward", *names],
        [
            [
                said(last_turn(row["prompt"])),
                said(row["response"]),
                f"{row['reward']:.2f}",
                *(f"{row['costs'][name]:.2f}" for name in names),
            ]
            for row in rows
        ],
        caption,
        text_columns=2,
    )


def last_turn(prompt: Any) -> str:  # noqa: ANN401  a string, or turns as they were handed in
    """What the user said last."""
    if isinstance(prompt, str):
        return prompt
    turn = prompt[-1]
    return turn if isinstance(turn, str) else str(turn["content"])


def said(text: str) -> Markup:
    """A text of bounded length, set as speech."""
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text)} characters)"
    return Markup('<span class="said">{}</span>').format(shown)
