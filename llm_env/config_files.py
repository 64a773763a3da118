"""A command's config from its file and overrides; a file of another command is named as such."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from constrained_rl import cli as core
from constrained_rl.errors import InputError

Model = TypeVar("Model", bound=BaseModel)


def read_config(
    model: type[Model], settings: Sequence[str], base: Mapping[str, Any] | None = None
) -> Model:
    """The validated config of `CONFIG.toml key.path=value …` over a tree of defaults.

    Raises:
        InputError: every problem of it; or, where the keys are another command's, that command.
    """
    from constrained_rl.settings import merge, read_layers, validate

    tree, source = read_layers(*core.split_settings(list(settings)))
    try:
        return validate(model, merge(base or {}, tree), source)
    except InputError as error:
        foreign = [name for name in tree if name not in model.model_fields]
        meant = _command_of(tree) if foreign else None
        if meant is None:
            raise
        raise InputError(
            f"{source} is a config of `{meant}`: this command knows no {', '.join(foreign)}; give "
            "it to that command, or this one a config of its own"
        ) from error


def _command_of(tree: Mapping[str, Any]) -> str | None:
    """The command that knows all keys of a config and finds those it needs, if there is one."""
    from constrained_rl.config import RunConfig
    from llm_env.arena.config import ArenaConfig
    from llm_env.comparison.config import CompareConfig
    from llm_env.fitting.config import ScoreRunConfig, SFTRunConfig
    from llm_env.rounds.config import RoundsConfig
    from llm_env.score_service import ServeConfig
    from llm_env.training.config import TrainConfig

    commands: dict[str, type[BaseModel]] = {
        "crl train": RunConfig,
        "crl llm train": TrainConfig,
        "crl llm sft": SFTRunConfig,
        "crl llm score": ScoreRunConfig,
        "crl llm compare": CompareConfig,
        "crl llm rounds": RoundsConfig,
        "crl llm evaluate": ArenaConfig,
        "crl llm serve-scores": ServeConfig,
    }
    for command, model in commands.items():
        needed = {name for name, field in model.model_fields.items() if field.is_required()}
        if needed <= set(tree) <= set(model.model_fields):
            return command
    return None
