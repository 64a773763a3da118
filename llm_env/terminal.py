"""Tables of text on a terminal; tab-separated lines where the output goes into a pipe.

A table that is too wide for the terminal is turned: its columns become rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

SHORT = 24
"""characters of a cell that stays on one line: a number with its interval"""


def print_table(
    console: Console,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = "",
    text_columns: int = 1,
) -> None:
    """Print rows under a header; the first `text_columns` are aligned left, others right."""
    if not console.is_terminal:
        for row in (header, *rows):
            console.file.write("\t".join(row) + "\n")  # rich would turn tabs into spaces
        return
    whole = [header, *rows]
    turned = [list(column) for column in zip(*whole, strict=True)]
    ways: list[tuple[Sequence[Sequence[str]], int]] = [(whole, text_columns)]
    if all(len(cell) <= SHORT for row in rows for cell in row):
        ways.append((turned, 1))  # sentences are read in columns that wrap
    fitting = (table for lines, n in ways if _fits(table := _table(lines, title, n), console))
    lines, n = ways[-1]
    console.print(next(fitting, _table(lines, title, n, wrap=True)))


def _fits(table: Table, console: Console) -> bool:
    """Whether every number stays whole."""
    wide = console.options.update(max_width=10_000)
    return console.measure(table, options=wide).maximum <= console.width


def _table(
    whole: Sequence[Sequence[str]], title: str, text_columns: int, wrap: bool = False
) -> Table:
    """Header and rows as a table whose short columns do not wrap."""
    header, *rows = whole
    table = Table(title=title or None, title_justify="left", pad_edge=False)
    for k, (name, *cells) in enumerate(zip(header, *rows, strict=True)):
        longest = max(map(len, cells), default=0)
        broken = name if len(name) <= longest else "\n".join(name.rsplit(" ", 1))
        justify: JustifyMethod = "left" if k < text_columns else "right"
        table.add_column(
            Text(broken), justify=justify, no_wrap=not wrap and longest <= SHORT, overflow="fold"
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table
