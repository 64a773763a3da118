"""The console script `crl`: the core's commands and `crl llm …`.

Heavy libraries are imported only by the command that needs them, so `--help` is quick.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from constrained_rl import cli as core
from constrained_rl.errors import InputError
from llm_env import score_cli as scores
from llm_env.arena import cli as arena
from llm_env.fitting import cli as fitting
from llm_env.rounds import cli as rounds

if TYPE_CHECKING:
    from llm_env.comparison.config import CompareConfig

llm = typer.Typer(no_args_is_help=True, help="Safe RLHF on language models.")
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Constrained reinforcement learning: control tasks and language models on one loop.",
    callback=core.main_options,
)
app.command()(core.envs)
app.command("check-env")(core.check_env)
app.command()(core.presets)
app.command()(core.preset)
app.command()(core.schema)
app.command()(core.train)
app.command()(core.plot)
app.add_typer(llm, name="llm")
llm.command("evaluate")(arena.evaluate)
llm.command("arena")(arena.arena)
llm.command("chat")(arena.chat)
llm.command("sft")(fitting.sft)
llm.command("score")(fitting.score)
llm.command("rounds")(rounds.rounds)
llm.command("serve-scores")(scores.serve_scores)

QUICK_HELP = "fewer weights, less data: a look in three minutes, not a measurement"


def is_comparison(folder: Path) -> bool:
    """True where `crl llm compare` made the folder."""
    return (folder / "comparison").is_file()


def comparison_of(folder: Path) -> Path | None:
    """The comparison that a folder is, or lies in as `runs/<method>` does; None elsewhere."""
    around = folder.resolve().parent.parent
    return next((home for home in (folder, around) if is_comparison(home)), None)


def is_training_run(folder: Path) -> bool:
    """True where `crl llm train` made the folder."""
    from constrained_rl.settings import read_toml

    path = folder / "config.toml"
    return path.is_file() and "reward" in read_toml(path)


def is_fitting(folder: Path) -> bool:
    """True where `crl llm sft` or `crl llm score` made the folder."""
    from constrained_rl.settings import read_toml

    path = folder / "config.toml"
    return path.is_file() and "task" in read_toml(path)


@app.command()
def resume(folder: Annotated[Path, typer.Argument(help="run directory")]) -> None:
    """Continue a run or a comparison where it stopped; nothing to do on a finished one."""
    if is_comparison(folder):
        require_llm()
        finish_comparison(folder)
    elif rounds.is_rounds(folder):
        require_llm()
        rounds.finish(folder)
    elif is_training_run(folder):
        require_llm()
        from llm_env.training import run

        core.resume_by(run.resume, folder)
    elif is_fitting(folder):
        require_llm()
        from llm_env.fitting.run import resume as continue_fit

        core.resume_by(continue_fit, folder)
    else:
        core.resume(folder)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="run directory")]) -> None:
    """Write a self-contained report.html into a run directory."""
    if is_comparison(folder):
        from llm_env.comparison.report import write_comparison_report

        print(f"wrote {write_comparison_report(folder)}")
    elif rounds.is_rounds(folder):
        require_llm()
        rounds.write_report(folder)
    elif is_training_run(folder):
        from llm_env.training.report import write_training_report

        print(f"wrote {write_training_report(folder)}")
    else:
        core.report(folder)


@app.command()
def evaluate(
    folder: Annotated[
        Path, typer.Argument(help="run, its best/, a comparison, or one of its runs")
    ],
    episodes: core.Episodes = 200,
    seed: core.EvaluationSeed = 12345,
    as_json: core.AsJson = False,
) -> None:
    """Try a run's policies afresh: new episodes, or new prompts; with intervals."""
    home = comparison_of(folder)
    if home is None:
        core.evaluate(folder, episodes, seed, as_json)
        return
    require_llm()
    from llm_env.comparison.fresh import evaluate_comparison, print_fresh

    found = evaluate_comparison(folder, home, episodes, seed)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_fresh(found, Console())


def complete_comparison(incomplete: str) -> list[str]:
    """What a shell offers for a comparison's `key.path=value`."""
    from constrained_rl.describe import completions
    from llm_env.comparison.config import CompareConfig

    return completions(CompareConfig, incomplete)


COMPARE_HELP = "[CONFIG.toml] key.path=value …, e.g. seed=3 align.limit=0.1"


@llm.command()
def compare(
    settings: Annotated[
        list[str] | None,
        typer.Argument(help=COMPARE_HELP, autocompletion=complete_comparison),
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


TRAIN_HELP = "CONFIG.toml key.path=value …, e.g. align.iterations=200 distributed.zero=3"


@llm.command()
def train(
    settings: Annotated[list[str], typer.Argument(help=TRAIN_HELP)],
    out: Annotated[Path | None, typer.Option(help="run directory; must be new")] = None,
) -> None:
    """Constrained RL of a model on disk, against score models, on one process or many."""
    require_llm()
    from constrained_rl.distributed import speaks
    from constrained_rl.run import default_folder
    from constrained_rl.settings import read_layers, validate
    from llm_env.training.config import TrainConfig
    from llm_env.training.run import start

    tree, source = read_layers(*core.split_settings(settings))
    config = validate(TrainConfig, tree, source)
    folder = out or default_folder("llm-train", config.seed)
    with core.resumable(folder):
        folder = start(config, folder)
    if speaks():
        Console().print(f"finished: {folder}/policy  (plots: crl report {folder})")


@llm.command()
def plan(
    settings: Annotated[list[str], typer.Argument(help=TRAIN_HELP)],
    ranks: Annotated[int | None, typer.Option(min=1, help="default: WORLD_SIZE, or 1")] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="longest prompt; default: of the config's prompts")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="GiB for each rank; default: what this machine has")
    ] = None,
    margin: Annotated[float, typer.Option(help="share of it to keep free, 0 … 1")] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Does a training config fit into memory? Nothing is loaded; exit code 2 if it does not."""
    require_llm()
    from constrained_rl.settings import read_layers, validate
    from llm_env.plan.command import Asked, plan_command
    from llm_env.training.config import TrainConfig

    tree, source = read_layers(*core.split_settings(settings))
    config = validate(TrainConfig, tree, source)
    if not plan_command(config, Asked(ranks, prompt_tokens, memory, margin), as_json):
        raise typer.Exit(2)


@llm.command()
def schema(
    form: Annotated[
        core.SchemaForm, typer.Option("--format", help="what to print")
    ] = core.SchemaForm.json,
) -> None:
    """Describe every key of a comparison's config: type, bound, default, meaning."""
    require_llm()
    from llm_env.comparison.config import CompareConfig

    core.print_schema(CompareConfig, form)


@llm.command("check-data")
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


@llm.command()
def calibrate(
    comparison: Annotated[
        Path | None, typer.Argument(help="folder that `crl llm compare` made")
    ] = None,
    cost_model: Annotated[
        Path | None, typer.Option(help="your own: folder that ScoreModel.save_pretrained wrote")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="labelled preference rows for it")] = None,
    model: Annotated[Path | None, typer.Option(help="starting language model")] = None,
    prompts: Annotated[Path | None, typer.Option(help="prompts for it, one per line")] = None,
    agreement: Annotated[
        float | None, typer.Option(help="share of responses that two people label alike")
    ] = None,
    transform: Annotated[
        str, typer.Option(help="what is bounded: indicator, probability or identity")
    ] = "indicator",
    target: Annotated[float, typer.Option(help="wanted share of unsafe responses")] = 0.05,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest response")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="of sampling and of the bootstrap")] = 0,
    out: Annotated[Path | None, typer.Option(help="folder of the page and the numbers")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Propose a limit: what limits mean, by the cost model's calibration on labelled data."""
    require_llm()
    from llm_env.calibration.evidence import OwnModels, read_evidence
    from llm_env.calibration.report import publish
    from llm_env.calibration.summary import calibrate, check_request

    form = check_request(transform, target)
    own = None
    if cost_model is not None and data is not None:
        own = OwnModels(cost_model, data, model, prompts, agreement, max_new_tokens, seed)
    elif any(option is not None for option in (cost_model, data, model, prompts, agreement)):
        raise InputError("your own models need both --cost-model and --data")
    evidence = read_evidence(comparison, own)
    publish(calibrate(evidence, form, target, seed=seed), evidence, out or comparison, as_json)


def announce(config: CompareConfig, folder: Path) -> None:
    """Say what is about to happen."""
    from llm_env.comparison.methods import every_run

    Console().print(
        f"Safe RLHF on generated text: SFT, preferences, score models, then "
        f"{len(every_run(config)) - 1} RL runs, all from scratch in {folder}\n"
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
        path = write_comparison_report(folder)
        console.print(f"report: {path}", highlight=False, soft_wrap=True)


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
    import sys

    from llm_env.quiet import quiet_libraries

    quiet_libraries()

    # `env.id=my_env:Name-v0` finds my_env.py in the folder one works in, as `python -m` would; a
    # console script does not have it on its path. At the end: it must not hide a package.
    if "" not in sys.path:
        sys.path.append("")
    # the deepspeed launcher adds this; the environment says it too
    sys.argv = [word for word in sys.argv if not word.startswith("--local_rank")]
    of_rank(core.run_cli)(app)


def of_rank(function: Callable[..., None]) -> Callable[..., None]:
    """Where torchrun started this process, it learns of the exception that ends it."""
    import os

    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return function
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(function)
