"""Which config does a `crl llm` command read? One table, for schemas, completion and documents.

Each config is imported when it is asked for, so that `--help` stays quick.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from pydantic import BaseModel


class Command(StrEnum):
    """Commands that read a config."""

    compare = "compare"
    sft = "sft"
    score = "score"
    train = "train"
    rounds = "rounds"
    evaluate = "evaluate"
    serve_scores = "serve-scores"


def config_of(command: Command) -> type[BaseModel]:
    """The config of a command; `arena` reads that of evaluate."""
    match command:
        case Command.compare:
            from llm_env.comparison.config import CompareConfig

            return CompareConfig
        case Command.sft:
            from llm_env.fitting.config import SFTRunConfig

            return SFTRunConfig
        case Command.score:
            from llm_env.fitting.config import ScoreRunConfig

            return ScoreRunConfig
        case Command.train:
            from llm_env.training.config import TrainConfig

            return TrainConfig
        case Command.rounds:
            from llm_env.rounds.config import RoundsConfig

            return RoundsConfig
        case Command.evaluate:
            from llm_env.arena.config import ArenaConfig

            return ArenaConfig
        case Command.serve_scores:
            from llm_env.score_service import ServeConfig

            return ServeConfig


def complete(command: Command) -> Callable[[str], list[str]]:
    """What a shell offers for a command's `key.path=value`."""

    def offer(incomplete: str) -> list[str]:
        from constrained_rl.describe import completions

        return completions(config_of(command), incomplete)

    return offer
