"""What a fit is made of, whatever is fitted, and the rows it learns from or is measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from constrained_rl.errors import InputError
from llm_env.data.seen import name_seen, split_digests
from llm_env.data_sources import held_out, open_source
from llm_env.fitting.config import FittingConfig
from llm_env.supervised import Progress

T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """A fit that is ready to begin."""

    title: str
    about: dict[str, Any]
    """rows and where they come from"""
    train: Callable[[torch.Generator, Progress, Path], list[float]]
    """(order of the examples, report, folder of checkpoints) → loss of every step"""
    measure: Callable[[], dict[str, Any] | None]
    """on held-out rows; None without any"""
    save: Callable[[Path], None]


def read_parts(
    config: FittingConfig, read: Callable[..., Sequence[T]]
) -> tuple[Sequence[T], Sequence[T], dict[str, Any]]:
    """Examples to learn from, examples to measure on, and what to note of them."""
    opened = [open_source(source) for source in config.data]
    if config.held_out:
        others = [open_source(source) for source in config.held_out]
        train, test = read(opened), read(others)
        name_seen(
            [row.prompt for found in others for row in found.rows],
            {seen for found in opened for seen in split_digests(found.digests)},
            "held_out",
            "this fit",
        )
    elif config.held_out_share:
        of_train, of_test = held_out(config.held_out_share)
        train, test = read(opened, of_train), read(opened, of_test)
    else:
        train, test = read(opened), ()
    if not train:
        raise InputError(
            f"held_out_share = {config.held_out_share:g} leaves nothing to learn from: the data "
            "have too few prompts; name held_out data, or set held_out_share = 0"
        )
    about = {
        "examples": len(train),
        "held_out": len(test),
        "sources": [
            {"path": found.source.path, "format": found.format, "rows": len(found.rows)}
            for found in opened
        ],
    }
    return train, test, about
