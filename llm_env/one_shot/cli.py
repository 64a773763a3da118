"""The command `crl llm dual`. Heavy libraries are imported when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llm_env.schemas import Command, complete

DUAL_HELP = "CONFIG.toml key.path=value … of the training run, e.g. align.limit=0.05"


def dual(
    settings: Annotated[
        list[str] | None,
        typer.Argument(help=DUAL_HELP, autocompletion=complete(Command.train)),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="starting language model")] = None,
    prompts: Annotated[
        list[Path] | None, typer.Option(help=".txt, .jsonl[.gz|.xz], .parquet; repeat")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="score model folder or http://… : higher is better")
    ] = None,
    cost: Annotated[
        list[str] | None, typer.Option(help="SCORE or NAME=SCORE: higher is worse; repeat")
    ] = None,
    score_tokenizer: Annotated[
        str | None, typer.Option(help="folder, or policy: where scores come without their own")
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="responses to each prompt")] = 128,
    count: Annotated[int, typer.Option(min=2, help="prompts asked, at most")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="of sampling and of the bootstrap")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Estimate λ before training, from the starting model's own responses (one-shot dual)."""
    from llm_env.installed import require_llm

    require_llm()
    from transformers.utils import logging

    from constrained_rl.logging import plain_warnings
    from llm_env.one_shot.estimate import estimate, require_trust
    from llm_env.one_shot.report import as_json as to_json
    from llm_env.one_shot.report import print_estimate
    from llm_env.one_shot.request import Options, read_request
    from llm_env.one_shot.sampling import Drawing, draw
    from llm_env.stages import results_json

    logging.disable_progress_bar()
    options = Options(model, prompts or (), reward, cost or (), score_tokenizer)
    config = read_request(settings or (), options)
    with plain_warnings():
        drawn = draw(config, Drawing(count, samples, seed))
    found = estimate(drawn.problem, seed=seed)
    require_trust(found, samples)
    if as_json:
        print(results_json(to_json(found, drawn)))
    else:
        print_estimate(found, drawn, Console())
