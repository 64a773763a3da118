"""`crl`: environments, training, resuming, reports. `llm_env.cli` mounts these and adds `crl llm`.

What a user got wrong is one message and exit code 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from constrained_rl.errors import InputError, NonFiniteError, RankError
from constrained_rl.faults import fault_in_given_code

if TYPE_CHECKING:
    from pydantic import BaseModel

    from constrained_rl.config import RunConfig
    from constrained_rl.presets import Given

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Constrained reinforcement learning: control tasks and language models on one loop.",
)
DEBUG = {"on": False}


class SchemaForm(StrEnum):
    """How `crl schema` prints."""

    json = "json"
    markdown = "markdown"
    table = "table"


PRESET_HELP = "ppo, static_shaping, ppo_lagrangian, pid_lagrangian or scale_free"
SETTINGS_HELP = "[CONFIG.toml] key.path=value …, e.g. env.id=… seed=3 limit=4 total_steps=100000"


@app.callback()
def main_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Options before the command."""
    DEBUG["on"] = debug


@contextmanager
def resumable(folder: Path, continued: str | None = None) -> Iterator[None]:
    """Answer Ctrl-C, SIGTERM and a full disk with what continues (default: `crl resume`)."""
    from constrained_rl.checkpoint import how_to_continue, out_of_space
    from constrained_rl.logging import plain_warnings
    from constrained_rl.stopping import Stopped, stoppable

    def how() -> str:
        return continued or how_to_continue(folder)

    try:
        with plain_warnings(), stoppable():
            yield
    except KeyboardInterrupt:
        print(f"\nstopped; {how()}", file=sys.stderr)
        raise typer.Exit(130) from None
    except Stopped as stopped:
        print(f"\n{stopped}" if str(stopped) else "", file=sys.stderr)
        print(f"stopped; {how()}", file=sys.stderr)
        raise typer.Exit(0) from None
    except Exception as error:
        full = out_of_space(error, folder, continued)
        if full is None:
            raise
        raise full from error


AsJson = Annotated[bool, typer.Option("--json", help="one JSON object")]


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
    table = Table(Column("id", no_wrap=True), "limit", "costs", "what it is")
    for name, built_in in BUILT_IN.items():
        limits = ", ".join(f"{x:g}" for x in built_in.limit)
        table.add_row(name, limits, ", ".join(built_in.cost_names), built_in.description)
    Console().print(table)


@app.command("check-env")
def check_env(
    env_id: Annotated[str, typer.Argument(help="Gymnasium id, e.g. package:Name-v0")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="key=value …, settings of the environment")
    ] = None,
) -> None:
    """Check an environment's costs; exit code 2 if they cannot be trained on."""
    from constrained_rl.check import check_cmdp
    from constrained_rl.settings import merge, parse_override

    kwargs: dict[str, object] = {}
    for text in settings or []:
        kwargs = merge(kwargs, parse_override(text))
    checked = check_cmdp(env_id, kwargs=kwargs)
    Console().print(checked if sys.stdout.isatty() else Text(str(checked)), soft_wrap=True)
    if not checked.ok:
        raise typer.Exit(2)


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


def complete_presets() -> list[str]:
    """What a shell offers for a preset."""
    from constrained_rl.presets import PRESETS

    return list(PRESETS)


def complete_settings(incomplete: str) -> list[str]:
    """What a shell offers for `key.path=value`: keys, then the values of a closed set."""
    from constrained_rl.config import RunConfig
    from constrained_rl.describe import completions

    return completions(RunConfig, incomplete)


Settings = Annotated[
    list[str] | None, typer.Argument(help=SETTINGS_HELP, autocompletion=complete_settings)
]


def run_config(preset: str | None, settings: list[str]) -> RunConfig:
    """The settings of a run on the environment that they name, by default the first of `crl envs`.

    The preset (of the command line, else of the file), under the file, under the overrides.
    """
    from constrained_rl.config import RunConfig
    from constrained_rl.presets import settings_for

    given = read_settings(preset, settings)
    return settings_for(given, given.environment or RunConfig().env.id)


def read_settings(preset: str | None, settings: list[str]) -> Given:
    """What the command line says; a file that was made for another environment is named."""
    from constrained_rl.presets import Given

    return Given.read(preset, *split_settings(settings))


@app.command()
def preset(
    name: Annotated[str, typer.Argument(help=PRESET_HELP, autocompletion=complete_presets)],
    settings: Settings = None,
) -> None:
    """Print a preset as TOML, every key explained: `crl preset ppo > run.toml`.

    With env.id=… or env.file=… the settings are those that are known to work there; else they are
    the preset's own, and the file names no environment.
    """
    from constrained_rl.describe import to_commented_toml
    from constrained_rl.presets import settings_for

    given = read_settings(name, settings or [])
    unset = ("env.id",) if given.environment is None else ()
    print(to_commented_toml(settings_for(given, given.environment), unset), end="")


@app.command()
def schema(
    form: Annotated[SchemaForm, typer.Option("--format", help="what to print")] = SchemaForm.json,
) -> None:
    """Describe every key of a run's config: type, bound, default, meaning."""
    from constrained_rl.config import RunConfig

    print_schema(RunConfig, form)


def print_schema(model: type[BaseModel], form: SchemaForm) -> None:
    """JSON schema for editors, a Markdown table for docs, or a table to read."""
    from constrained_rl.describe import settings_of, to_markdown

    if form is SchemaForm.json:
        print(json.dumps(model.model_json_schema(), indent=2, ensure_ascii=False))
    elif form is SchemaForm.markdown:
        print(to_markdown(model), end="")
    else:
        key, default = Column("key", no_wrap=True), Column("default", overflow="fold")
        table = Table(key, "type and bound", default, Column("meaning", overflow="fold"))
        for s in settings_of(model):
            condition = f" [dim]({escape(s.when)})[/dim]" if s.when else ""
            table.add_row(s.path, *map(escape, (s.type, s.default)), escape(s.meaning) + condition)
        Console().print(table)


@app.command()
def train(
    settings: Settings = None,
    preset: Annotated[
        str | None,
        typer.Option(help=f"{PRESET_HELP} (the default)", autocompletion=complete_presets),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="new run directory; default: runs/NAME/TIME-sSEED")
    ] = None,
) -> None:
    """Train on an environment."""
    from constrained_rl import run

    config = run_config(preset, settings or [])
    name = f"{config.preset}-{config.env.id}"
    folder = out or run.default_folder(name, config.seed)
    with resumable(folder):
        run.start(config, folder)
    Console().print(f"finished: {folder}  (plots: crl report {folder})")


Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda, cuda:N or mps; default: the run's, or what is here"),
]


@app.command()
def resume(folder: Annotated[Path, typer.Argument(help="run directory")]) -> None:
    """Continue a run from its last checkpoint; nothing to do on a finished one."""
    from constrained_rl import run

    resume_by(run.resume, folder)


def resume_by(continue_run: Callable[[Path], bool], folder: Path) -> None:
    """Continue the work in `folder` by a function that tells whether there was any left."""
    from constrained_rl.distributed import speaks

    with resumable(folder):
        continued = continue_run(folder)
    if speaks():
        done = (
            f"finished: {folder}" if continued else f"{folder} is finished already; nothing to do"
        )
        print(done)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="run directory")], device: Device = None
) -> None:
    """Write a self-contained report.html into a run directory.

    It is drawn from files, wherever they were made: --device is checked, and plays no part.
    """
    from constrained_rl.report import write_report

    require_device(device)
    print(f"wrote {write_report(folder)}")


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="run directories; seeds are averaged")],
    out: Annotated[
        Path | None, typer.Option(help="of curves.svg and curves.png; default: above all runs")
    ] = None,
) -> None:
    """Plot return, costs with their limits, and λ of one or more runs; summarize their seeds."""
    from constrained_rl.curves import read_curves, save_curves
    from constrained_rl.seed_table import seed_table, summarize_seeds

    home = runs[0] if len(runs) == 1 else Path(os.path.commonpath([r.resolve() for r in runs]))
    curves = read_curves(runs)
    for path in save_curves(curves, out or home):
        print(f"wrote {path}")
    if len(runs) > 1:
        Console().print(seed_table(summarize_seeds(curves)))


def require_device(name: str | None) -> None:
    """`InputError` for a device that does not exist or is not here."""
    from constrained_rl.devices import choose_device

    if name is not None:
        choose_device(name)


Episodes = Annotated[int, typer.Option(min=2, help="episodes, sampled and deterministic each")]
EvaluationSeed = Annotated[int, typer.Option(min=0, help="of environments and actions")]


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="run directory, or its best/")],
    episodes: Episodes = 200,
    seed: EvaluationSeed = 12345,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Play a run's last and best policy on fresh environments: return and costs, with intervals."""
    from constrained_rl.evaluation_report import evaluate_run, print_evaluations

    found = evaluate_run(folder, episodes, seed, device)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_evaluations(found, Console())


def run_cli(application: Callable[[], object]) -> None:
    """Run a typer application with this project's error convention."""
    from constrained_rl.logging import plain_warnings

    try:
        with plain_warnings():
            application()
    except (InputError, NonFiniteError, RankError) as error:
        if DEBUG["on"]:
            raise
        refuse(str(error))
    except Exception as error:
        fault = fault_in_given_code(error)
        if not DEBUG["on"] and fault is not None:
            refuse(f"{fault}; repair it, or see the whole traceback with crl --debug …")
        if not DEBUG["on"] and isinstance(error, OSError) and error.filename:
            refuse(f"{error.filename}: {error.strerror}; choose another place, or repair this one")
        raise


def refuse(message: str) -> None:
    """End with the one message and exit code 2."""
    Console(stderr=True).print(f"[red]error:[/red] {escape(message)}")
    sys.exit(2)
