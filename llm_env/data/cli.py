"""The command `crl llm check-data`. Heavy libraries are imported when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def check_data(
    file: Annotated[
        Path, typer.Argument(help="a file or folder: .jsonl, .jsonl.gz/.xz, .json, .parquet, .txt")
    ],
    form: Annotated[
        str, typer.Option("--format", help="of its rows; default: by the fields of the first")
    ] = "auto",
    quarantine: Annotated[
        Path | None, typer.Option(help="new file for the bad rows, one JSON object each")
    ] = None,
    max_bad: Annotated[float, typer.Option(help="share of rows that may be bad, 0 … 1")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Check training data, set bad rows aside, and say what the good ones hold."""
    import sys

    from constrained_rl.settings import validate
    from llm_env.data_sources import DataSource
    from llm_env.preference_check import check_source, key_values, table

    source = validate(DataSource, {"path": str(file), "format": form}, "check-data")
    statistics = check_source(source, max_bad, quarantine)
    if as_json:
        print(statistics.to_json())
    elif sys.stdout.isatty():
        Console().print(table(statistics))
    else:
        for name, value in key_values(statistics):
            print(name, value)
