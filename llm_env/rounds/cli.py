"""The command `crl llm rounds`, and what `crl resume` and `crl report` do with its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from constrained_rl import cli as core
from llm_env.rounds import MARK
from llm_env.schemas import Command, complete

HELP = "[CONFIG.toml] key.path=value …, e.g. rounds=2 annotator.kind=file"


def is_rounds(folder: Path) -> bool:
    """True where `crl llm rounds` made the folder."""
    return (folder / MARK).is_file()


def rounds(
    settings: Annotated[
        list[str] | None, typer.Argument(help=HELP, autocompletion=complete(Command.rounds))
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the rounds; must be new")] = None,
) -> None:
    """Iterated Safe RLHF: generate, red-team, label, refit, train again; with a report.

    Without a policy in the config, on the embedded world: about five minutes on one core.
    """
    from constrained_rl.run import default_folder
    from llm_env.config_files import read_config
    from llm_env.installed import require_llm
    from llm_env.rounds.config import RoundsConfig, default_tree
    from llm_env.rounds.schedule import prepare

    require_llm()
    config = read_config(RoundsConfig, settings or [], default_tree())
    folder = out or default_folder("rounds", config.seed)
    prepare(config, folder)
    finish(folder)


def finish(folder: Path) -> None:
    """Run what is missing, then summarise, report and print; or say which labels are awaited."""
    from llm_env.rounds.annotators import AwaitingLabels
    from llm_env.rounds.report import write_rounds_report
    from llm_env.rounds.results import print_results, summarize_rounds
    from llm_env.rounds.schedule import run_all

    console = Console()
    with core.resumable(folder):
        try:
            run_all(folder)
        except AwaitingLabels as awaited:
            console.print(f"{awaited}\nthen continue with: crl resume {folder}", highlight=False)
            return
        print_results(summarize_rounds(folder)[0], console)
        path = write_rounds_report(folder)
        console.print(f"report: {path}", highlight=False, soft_wrap=True)


def write_report(folder: Path) -> None:
    """Write report.html."""
    from llm_env.rounds.report import write_rounds_report

    print(f"wrote {write_rounds_report(folder)}")
