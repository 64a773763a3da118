"""The commands `crl llm sft` and `crl llm score`. Heavy libraries are imported when one is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from constrained_rl import cli as core
from llm_env.schemas import Command, complete

if TYPE_CHECKING:
    from llm_env.fitting.config import ScoreRunConfig, SFTRunConfig

SFT_HELP = "CONFIG.toml key.path=value …, e.g. fit.epochs=1 model.lora.rank=8"
SCORE_HELP = "CONFIG.toml key.path=value …, e.g. kind=reward fit.max_tokens=512"


def sft(
    settings: Annotated[
        list[str], typer.Argument(help=SFT_HELP, autocompletion=complete(Command.sft))
    ],
    out: Annotated[Path | None, typer.Option(help="folder; must be new")] = None,
) -> None:
    """Supervised fine-tuning of a model on disk: a resumable folder with the result in model/."""
    from llm_env.installed import require_llm

    require_llm()
    from llm_env.fitting.config import SFTRunConfig

    _start(SFTRunConfig, settings, out, "llm-sft")


def score(
    settings: Annotated[
        list[str], typer.Argument(help=SCORE_HELP, autocompletion=complete(Command.score))
    ],
    out: Annotated[Path | None, typer.Option(help="folder; must be new")] = None,
) -> None:
    """Fit a reward model, a cost model, or one cost model with a score per harm category."""
    from llm_env.installed import require_llm

    require_llm()
    from llm_env.fitting.config import ScoreRunConfig

    _start(ScoreRunConfig, settings, out, "llm-score")


def _start(
    model: type[SFTRunConfig | ScoreRunConfig], settings: list[str], out: Path | None, name: str
) -> None:
    """Fit from a config file and overrides, and say where the result is."""
    from constrained_rl.run import default_folder
    from llm_env.config_files import read_config
    from llm_env.fitting.run import start

    config = read_config(model, settings)
    folder = out or default_folder(name, config.seed)
    with core.resumable(folder):
        start(config, folder)
    Console().print(f"finished: {folder}/model", highlight=False, soft_wrap=True)
