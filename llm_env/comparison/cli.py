"""The commands `crl llm compare` and `schema`, and what others do with a comparison's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from constrained_rl import cli as core
from llm_env.installed import require_llm
from llm_env.schemas import Command, complete

if TYPE_CHECKING:
    from llm_env.comparison.config import CompareConfig

QUICK_HELP = "fewer weights, less data: a look in three minutes, not a measurement"
COMPARE_HELP = "[CONFIG.toml] key.path=value …, e.g. seed=3 align.limit=0.1"


def is_comparison(folder: Path) -> bool:
    """True where `crl llm compare` made the folder."""
    return (folder / "comparison").is_file()


def comparison_of(folder: Path) -> Path | None:
    """The comparison that a folder is, or lies in as `runs/<method>` does; None elsewhere."""
    around = folder.resolve().parent.parent
    return next((home for home in (folder, around) if is_comparison(home)), None)


def compare(
    settings: Annotated[
        list[str] | None,
        typer.Argument(help=COMPARE_HELP, autocompletion=complete(Command.compare)),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the comparison; must be new")] = None,
    quick: Annotated[bool, typer.Option("--quick", help=QUICK_HELP)] = False,
) -> None:
    """Safe RLHF against static reward shaping: everything from scratch, with a report."""
    require_llm()
    from constrained_rl.run import default_folder
    from constrained_rl.settings import merge
    from llm_env.comparison.config import QUICK, CompareConfig
    from llm_env.comparison.schedule import prepare
    from llm_env.config_files import read_config

    # on the defaults as a tree: a section given in part keeps the rest of what is recommended
    base = merge(CompareConfig().model_dump(mode="json"), QUICK if quick else {})
    config = read_config(CompareConfig, settings or [], base)
    folder = out or default_folder("compare-quick" if quick else "compare", config.seed)
    prepare(config, folder)
    announce(config, folder)
    finish(folder)


def announce(config: CompareConfig, folder: Path) -> None:
    """Say what is about to happen."""
    from llm_env.comparison.methods import every_run

    Console().print(
        f"Safe RLHF on generated text: SFT, preferences, score models, then "
        f"{len(every_run(config)) - 1} RL runs, all from scratch in {folder}\n"
        f"(stop at any time; `crl resume {folder}` continues)",
        highlight=False,
    )


def finish(folder: Path) -> None:
    """Run what is missing, then summarise, report and print the table."""
    require_llm()
    from llm_env.comparison.report import write_comparison_report
    from llm_env.comparison.results import print_summary, summarize
    from llm_env.comparison.schedule import run_all

    with core.resumable(folder):
        run_all(folder)
        console = Console()
        print_summary(summarize(folder), console)
        path = write_comparison_report(folder)
        console.print(f"report: {path}", highlight=False, soft_wrap=True)


def write_report(folder: Path) -> None:
    """Write report.html."""
    from llm_env.comparison.report import write_comparison_report

    print(f"wrote {write_comparison_report(folder)}")
