"""The console script `crl`: the core's commands and `crl llm …`.

Heavy libraries are imported only by the command that needs them, so `--help` is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from constrained_rl import cli as core
from constrained_rl.errors import InputError

if TYPE_CHECKING:
    from llm_env.comparison.config import CompareConfig

llm = typer.Typer(no_args_is_help=True, help="Safe RLHF on language models.")
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Constrained reinforcement learning: control tasks and language models on one loop.",
    callback=core.main_options,
)
app.command()(core.envs)
app.command()(core.presets)
app.command()(core.train)
app.add_typer(llm, name="llm")

QUICK_HELP = "fewer weights, less data: a look in three minutes, not a measurement"


def is_comparison(folder: Path) -> bool:
    """True where `crl llm compare` made the folder."""
    return (folder / "comparison").is_file()


@app.command()
def resume(folder: Annotated[Path, typer.Argument(help="run directory")]) -> None:
    """Continue a run or a comparison where it stopped; nothing to do on a finished one."""
    if is_comparison(folder):
        require_llm()
        finish_comparison(folder)
    else:
        core.resume(folder)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="run directory")]) -> None:
    """Write a self-contained report.html into a run directory."""
    if is_comparison(folder):
        from llm_env.comparison.report import write_comparison_report

        print(f"wrote {write_comparison_report(folder)}")
    else:
        core.report(folder)


@llm.command()
def compare(
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="[CONFIG.toml] key.path=value …, e.g. seed=3 align.limit=0.1"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the comparison; must be new")] = None,
    quick: Annotated[bool, typer.Option("--quick", help=QUICK_HELP)] = False,
) -> None:
    """Safe RLHF against static reward shaping: everything from scratch, with a report."""
    require_llm()
    from constrained_rl.run import default_folder
    from constrained_rl.settings import merge, read_layers, validate
    from llm_env.comparison.config import QUICK, CompareConfig
    from llm_env.comparison.schedule import prepare

    tree, source = read_layers(*core.split_settings(settings or []))
    # on the defaults as a tree: a section given in part keeps the rest of what is recommended
    base = merge(CompareConfig().model_dump(mode="json"), QUICK if quick else {})
    config = validate(CompareConfig, merge(base, tree), source)
    folder = out or default_folder("compare-quick" if quick else "compare", config.seed)
    prepare(config, folder)
    announce(config, folder)
    finish_comparison(folder)


def announce(config: CompareConfig, folder: Path) -> None:
    """Say what is about to happen."""
    from llm_env.comparison.schedule import methods

    Console().print(
        f"Safe RLHF on generated text: SFT, preferences, score models, then "
        f"{len(methods(config)) - 1} RL runs, all from scratch in {folder}\n"
        f"(stop at any time; `crl resume {folder}` continues)",
        highlight=False,
    )


def finish_comparison(folder: Path) -> None:
    """Run what is missing, then summarise, report and print the table."""
    from llm_env.comparison.report import write_comparison_report
    from llm_env.comparison.results import print_summary, summarize
    from llm_env.comparison.schedule import run_all

    with core.resumable(folder):
        run_all(folder)
    console = Console()
    print_summary(summarize(folder), console)
    console.print(f"report: {write_comparison_report(folder)}", highlight=False, soft_wrap=True)


def require_llm() -> None:
    """Raise an installation hint unless transformers is there."""
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        raise InputError(
            "`crl llm` needs transformers, which is not installed; "
            'install it with: pip install "constrained-rl[llm,plot]"'
        )


def main() -> None:
    """Entry point of the console script."""
    core.run_cli(app)
