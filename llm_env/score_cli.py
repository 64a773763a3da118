"""The command `crl llm serve-scores`. Heavy imports only inside it."""

from __future__ import annotations

from typing import Annotated

import typer

from llm_env.schemas import Command, complete

SERVE_HELP = "CONFIG.toml key.path=value …, e.g. costs.harm.path=models/cost port=8008"


def serve_scores(
    settings: Annotated[
        list[str], typer.Argument(help=SERVE_HELP, autocompletion=complete(Command.serve_scores))
    ],
) -> None:
    """Serve score models over HTTP, for runs that name this as the url of a score."""
    from constrained_rl.logging import plain_warnings
    from llm_env.config_files import read_config
    from llm_env.installed import require_llm

    require_llm()
    from llm_env.score_service import ServeConfig, serve

    config = read_config(ServeConfig, settings)
    with plain_warnings():
        serve(config, lambda line: print(line, flush=True))
