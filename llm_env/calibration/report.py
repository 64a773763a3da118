"""What `crl llm calibrate` gives: a summary, calibration.json and calibration.html."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from constrained_rl.checkpoint import write_text
from constrained_rl.page import write_page
from llm_env.calibration.evidence import Evidence
from llm_env.calibration.page import build_page
from llm_env.calibration.results import Calibration
from llm_env.calibration.wording import (
    chosen,
    confirmation,
    limit_rows,
    paste,
    quality_rows,
    rounded,
    sentence,
    warnings,
)
from llm_env.terminal import print_table


def publish(found: Calibration, evidence: Evidence, folder: Path | None, as_json: bool) -> None:
    """Write into `folder` if there is one, and print a summary or the one JSON object."""
    page = None if folder is None else write_outputs(found, evidence, folder)
    if as_json:
        print(to_json(found))
        return
    console = Console()
    print_calibration(found, console)
    where = "give --out DIR for a page with the figures" if page is None else f"page: {page}"
    say(console, where)


def write_outputs(found: Calibration, evidence: Evidence, folder: Path) -> Path:
    """Write calibration.json and calibration.html; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "calibration.json", to_json(found) + "\n")
    return write_page(build_page(found, evidence), folder / "calibration.html")


def to_json(found: Calibration) -> str:
    """One object: the proposal, then everything it rests on."""
    best = chosen(found)
    head = {
        "propose": None
        if best is None
        else {"align.limit": rounded(best), "align.constraint.transform": best.form},
        "sentence": sentence(found),
        "confirmation": confirmation(found),
        "not_covered": warnings(found),
    }
    return json.dumps(head | asdict(found), indent=1, allow_nan=False, ensure_ascii=False)


def print_calibration(found: Calibration, console: Console) -> None:
    """The sentence, what to paste, and the table of limits; plain text when piped."""
    say(console, sentence(found))
    if (said := confirmation(found)) is not None:
        say(console, said)
    best = chosen(found)
    if best is not None:
        say(console, f"\n  {paste(found, best)}\n")
    header, rows = quality_rows(found)
    print_table(console, header, rows, text_columns=len(header))
    for form in dict.fromkeys((found.form, *([best.form] if best else []))):
        console.print()
        header, rows = limit_rows(found, found.proposals[form])
        print_table(console, header, rows, text_columns=len(header))
    console.print()
    for text in warnings(found):
        say(console, text)


def say(console: Console, text: str) -> None:
    """A line as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
