"""The console script `crl`: the core's commands and `crl llm …`.

Heavy libraries are imported only by the command that needs them, so `--help` is quick.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from constrained_rl import certificate_cli as certificate
from constrained_rl import cli as core
from constrained_rl.solve_cli import solve
from llm_env import folders
from llm_env import score_cli as scores
from llm_env.arena import cli as arena
from llm_env.calibration import cli as calibration
from llm_env.comparison import cli as comparison
from llm_env.data import cli as data
from llm_env.fitting import cli as fitting
from llm_env.installed import require_llm
from llm_env.one_shot import cli as one_shot
from llm_env.rounds import cli as rounds
from llm_env.schemas import Command, config_of
from llm_env.training import cli as training

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
app.command()(solve)
app.add_typer(llm, name="llm")
llm.command()(comparison.compare)
llm.command("check-data")(data.check_data)
llm.command()(fitting.sft)
llm.command()(fitting.score)
llm.command()(calibration.calibrate)
llm.command()(one_shot.dual)
llm.command()(training.plan)
llm.command()(training.train)
llm.command()(rounds.rounds)
llm.command()(arena.evaluate)
llm.command()(arena.arena)
llm.command()(arena.chat)
llm.command("serve-scores")(scores.serve_scores)


@llm.command()
def schema(
    command: Annotated[
        Command, typer.Argument(help="whose config; arena and plan read evaluate's and train's")
    ] = Command.compare,
    form: Annotated[
        core.SchemaForm, typer.Option("--format", help="what to print")
    ] = core.SchemaForm.json,
) -> None:
    """Describe every key of a command's config: type, bound, default, meaning."""
    require_llm()
    core.print_schema(config_of(command), form)


@app.command()
def resume(folder: Annotated[Path, typer.Argument(help="run directory")]) -> None:
    """Continue what a command began in a folder; nothing to do on a finished one."""
    folders.kind_of(folder).resume(folder)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="run directory")], device: core.Device = None
) -> None:
    """Write a self-contained report.html into a run directory.

    It is drawn from files, wherever they were made: --device is checked, and plays no part.
    """
    core.require_device(device)
    folders.kind_of(folder).report(folder)


@app.command()
def evaluate(
    folder: Annotated[
        Path, typer.Argument(help="run, its best/, a comparison, or one of its runs")
    ],
    episodes: core.Episodes = 200,
    seed: core.EvaluationSeed = 12345,
    device: core.Device = None,
    as_json: core.AsJson = False,
) -> None:
    """Try a run's policies afresh: new episodes, or new prompts; with intervals."""
    home = comparison.comparison_of(folder)
    if home is None:
        folders.refuse_evaluation(folder)
        core.evaluate(folder, episodes, seed, device, as_json)
        return
    require_llm()
    from llm_env.comparison.fresh import evaluate_comparison, print_fresh

    found = evaluate_comparison(folder, home, episodes, seed, device)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_fresh(found, Console())


@app.command()
def certify(
    folder: Annotated[Path, typer.Argument(help="run, its best/, or a run of a language model")],
    confidence: certificate.Confidence = 0.95,
    method: certificate.MethodName = None,
    bounds: certificate.Bounds = None,
    samples: certificate.Samples = None,
    seed: certificate.CertificateSeed = 271_828,
    deterministic: certificate.Deterministic = False,
    prompts: Annotated[
        Path | None, typer.Option(help="for a language model: other prompts than the run's own")
    ] = None,
    device: core.Device = None,
    as_json: core.AsJson = False,
) -> None:
    """Certify that a trained policy keeps its limits; exit code 0: it does, 1: not shown.

    The run's own constraints are tested on episodes or prompts that the policy was not chosen by;
    the result is also written as certificate.json into the run, and its report shows it.
    """
    home = folders.training_of(folder)
    if home is None:
        folders.refuse_certificate(folder, prompts)
        certificate.certify(
            folder, confidence, method, bounds, samples, seed, deterministic, device, as_json
        )
        return
    require_llm()
    from constrained_rl.certificate import Request
    from llm_env.training.certificate import certify_training

    chosen = certificate.method_of(method)
    request = Request(confidence, chosen, bounds, samples, seed, deterministic, device)
    certificate.issue(certify_training(folder, home, request, prompts), as_json)


def main() -> None:
    """Entry point of the console script."""
    from llm_env.quiet import quiet_libraries

    quiet_libraries()

    # `env.id=my_env:Name-v0` finds my_env.py in the folder one works in, as `python -m` would; a
    # console script does not have it on its path. At the end: it must not hide a package.
    if "" not in sys.path:
        sys.path.append("")
    # the deepspeed launcher adds this; the environment says it too
    sys.argv = [word for word in sys.argv if not word.startswith("--local_rank")]
    if not _is_rank():
        core.run_cli(app)
        return
    try:
        of_rank(core.run_cli)(app)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            raise
        _leave(ended.code or 0)
    _leave(0)


def _is_rank() -> bool:
    """Whether a launcher started this process as one of several."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    from constrained_rl.distributed import LAUNCHER

    return all(name in os.environ for name in LAUNCHER)


def _leave(code: int) -> None:
    """End a rank's process without C++'s destructors.

    Gloo's threads outlive a job whose groups were left (`distributed.joined`); where C++ destroys
    them as the process ends, it aborts now and then, and a finished job would be a failed one.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def of_rank(function: Callable[..., None]) -> Callable[..., None]:
    """Where torchrun started this process, it learns of the exception that ends it."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return function
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(function)
