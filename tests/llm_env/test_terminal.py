"""Tables as a terminal and a pipe get them."""

import io

import pytest
from rich.console import Console

from llm_env.terminal import print_table

HEADER = ["model", "unsafe % (gold)", "helpful (gold)", "mean reward R"]
ROWS = [
    ["start", "26.7 (17.1–39.0)", "1.72 (±0.47)", "-0.25 (±0.32)"],
    ["pid-share", "0.0 (0.0–6.0)", "2.08 (±0.26)", "0.61 (±0.12)"],
]


def shown(width, header=HEADER, rows=ROWS, terminal=True, **options):
    file = io.StringIO()
    print_table(Console(file=file, force_terminal=terminal, width=width), header, rows, **options)
    return file.getvalue()


def test_a_pipe_gets_lines_with_tabs():
    assert shown(40, terminal=False).splitlines() == ["\t".join(row) for row in (HEADER, *ROWS)]


@pytest.mark.parametrize("width", [200, 80, 52])
def test_every_number_stays_whole_where_it_can(width):
    text = shown(width, title="greedy answers")
    assert all(cell in text for row in ROWS for cell in row)
    lines = text.splitlines()
    turned = any("26.7" in line and "0.0 (0.0" in line for line in lines)
    assert turned == (width == 52)


def test_nothing_is_lost_on_the_narrowest_terminal():
    text = shown(44)
    assert "…" not in text
    assert all(part in text for part in ("26.7", "39.0", "pid", "0.12"))


def test_sentences_wrap_in_their_column():
    text = shown(40, ["check", "what it says"], [["AUC", "well above one half, " * 4]])
    assert text.count("well") == 4
