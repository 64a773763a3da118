"""A command's config from its file and overrides; a file of another command is named as such."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from constrained_rl import cli as core
from constrained_rl.errors import InputError
from llm_env.schemas import Command, config_of

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

    commands: dict[str, type[BaseModel]] = {"crl train": RunConfig}
    commands |= {f"crl llm {command}": config_of(command) for command in Command}
    for command, model in commands.items():
        needed = {name for name, field in model.model_fields.items() if field.is_required()}
        if needed <= set(tree) <= set(model.model_fields):
            return command
    return None
