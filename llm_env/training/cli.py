"""The commands `crl llm train` and `plan`. Heavy libraries are imported when one is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from constrained_rl import cli as core
from llm_env.installed import require_llm
from llm_env.schemas import Command, complete

TRAIN_HELP = "CONFIG.toml key.path=value …, e.g. align.iterations=200 distributed.zero=3"
Settings = Annotated[
    list[str], typer.Argument(help=TRAIN_HELP, autocompletion=complete(Command.train))
]


def train(
    settings: Settings,
    out: Annotated[Path | None, typer.Option(help="run directory; must be new")] = None,
) -> None:
    """Constrained RL of a model on disk, against score models, on one process or many."""
    require_llm()
    from constrained_rl.distributed import speaks
    from constrained_rl.run import default_folder
    from llm_env.config_files import read_config
    from llm_env.training.config import TrainConfig
    from llm_env.training.run import start

    config = read_config(TrainConfig, settings)
    folder = out or default_folder("llm-train", config.seed)
    with core.resumable(folder):
        folder = start(config, folder)
    if speaks():
        Console().print(f"finished: {folder}/policy  (plots: crl report {folder})")


def plan(
    settings: Settings,
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
    from llm_env.config_files import read_config
    from llm_env.plan.command import Asked, plan_command
    from llm_env.training.config import TrainConfig

    config = read_config(TrainConfig, settings)
    if not plan_command(config, Asked(ranks, prompt_tokens, memory, margin), as_json):
        raise typer.Exit(2)
