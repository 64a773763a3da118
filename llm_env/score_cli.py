"""The command `crl llm serve-scores`. Heavy imports only inside it."""

from __future__ import annotations

from typing import Annotated

import typer

from constrained_rl import cli as core

SERVE_HELP = "CONFIG.toml key.path=value …, e.g. costs.harm.path=models/cost port=8008"


def serve_scores(settings: Annotated[list[str], typer.Argument(help=SERVE_HELP)]) -> None:
    """Serve score models over HTTP, for runs that name this as the url of a score."""
    from constrained_rl.logging import plain_warnings
    from constrained_rl.settings import read_layers, validate
    from llm_env.installed import require_llm

    require_llm()
    from llm_env.score_service import ServeConfig, serve

    tree, source = read_layers(*core.split_settings(settings))
    config = validate(ServeConfig, tree, source)
    with plain_warnings():
        serve(config, lambda line: print(line, flush=True))
