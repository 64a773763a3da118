"""`crl`: environments, training, resuming, reports. `llm_env.cli` mounts these and adds `crl llm`.

What a user got wrong is one message and exit code 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from constrained_rl.errors import InputError, NonFiniteError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Constrained reinforcement learning: control tasks and language models on one loop.",
)
DEBUG = {"on": False}

SETTINGS_HELP = "[CONFIG.toml] key.path=value …, e.g. env.id=… seed=3 limit=4 total_steps=100000"


@app.callback()
def main_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Options before the command."""
    DEBUG["on"] = debug


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Answer Ctrl-C with the command that continues."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nstopped; continue with: crl resume {folder}", file=sys.stderr)
        raise typer.Exit(130) from None


def split_settings(settings: list[str]) -> tuple[Path | None, list[str]]:
    """Separate the optional config file from the overrides."""
    files = [s for s in settings if "=" not in s]
    if len(files) > 1:
        raise InputError(f"found {len(files)} config files ({', '.join(files)}); give at most one")
    return (Path(files[0]) if files else None), [s for s in settings if "=" in s]


@app.command()
def envs() -> None:
    """List the built-in environments (one plain id per line when piped)."""
    from constrained_rl.envs import BUILT_IN

    if not sys.stdout.isatty():
        for name in BUILT_IN:
            print(name)
        return
    table = Table("id", "default limit", "costs", "what it is")
    for name, built_in in BUILT_IN.items():
        limits = ", ".join(f"{x:g}" for x in built_in.limit)
        table.add_row(name, limits, ", ".join(built_in.cost_names), built_in.description)
    Console().print(table)


@app.command()
def presets() -> None:
    """List the algorithms (one plain name per line when piped)."""
    from constrained_rl.presets import SUMMARIES

    if not sys.stdout.isatty():
        print("\n".join(SUMMARIES))
        return
    table = Table("preset", "what it does")
    for name, summary in SUMMARIES.items():
        table.add_row(name, summary)
    Console().print(table)


@app.command()
def train(
    settings: Annotated[list[str] | None, typer.Argument(help=SETTINGS_HELP)] = None,
    preset: Annotated[
        str, typer.Option(help="ppo, static_shaping, ppo_lagrangian or pid_lagrangian")
    ] = "pid_lagrangian",
    out: Annotated[Path | None, typer.Option(help="run directory; must be new")] = None,
) -> None:
    """Train on an environment."""
    from constrained_rl import run
    from constrained_rl.config import RunConfig
    from constrained_rl.presets import defaults
    from constrained_rl.settings import merge, read_layers, validate

    tree, source = read_layers(*split_settings(settings or []))
    section = tree.get("env", {})
    env_id = section.get("id") if isinstance(section, dict) else None
    base = defaults(preset, env_id if isinstance(env_id, str) else RunConfig().env.id)
    config = validate(RunConfig, merge(base, tree), source)
    name = f"{config.preset}-{config.env.id}"
    folder = out or run.default_folder(name, config.seed)
    with resumable(folder):
        run.start(config, folder)
    Console().print(f"finished: {folder}  (plots: crl report {folder})")


@app.command()
def resume(folder: Annotated[Path, typer.Argument(help="run directory")]) -> None:
    """Continue a run from its last checkpoint; nothing to do on a finished one."""
    from constrained_rl import run

    with resumable(folder):
        continued = run.resume(folder)
    print(f"finished: {folder}" if continued else f"{folder} is finished already; nothing to do")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="run directory")]) -> None:
    """Write a self-contained report.html into a run directory."""
    from constrained_rl.report import write_report

    print(f"wrote {write_report(folder)}")


def run_cli(application: Callable[[], object]) -> None:
    """Run a typer application with this project's error convention."""
    try:
        application()
    except (InputError, NonFiniteError) as error:
        if DEBUG["on"]:
            raise
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}")
        sys.exit(2)
