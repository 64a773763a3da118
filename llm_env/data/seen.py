"""Are prompts that a model is measured on among those that it learned from?

What it is then measured by is partly what it remembers, so such prompts are named. What a model on
disk learned from stands in the config of the run or fit that made it, and of those before it. A
file of theirs that is gone, or that cannot be read any more, cannot be compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from constrained_rl.errors import InputError, Notice
from llm_env.data.digests import DIGEST_BYTES, prompt_digest, share_of
from llm_env.data_sources import DataSource, open_source
from llm_env.origins import config_of_maker
from llm_env.prompts import Prompt


class SeenWarning(Notice):
    """A model is measured on what it learned from."""


def name_seen(prompts: Collection[Prompt], seen: Collection[bytes], where: str, model: str) -> None:
    """Warn of prompts among those that a model learned from.

    Args:
        prompts: what it is measured on.
        seen: digests of what it learned from.
        where: what holds the prompts, as the user calls it.
        model: what learned.
    """
    shared = [prompt for prompt in prompts if prompt_digest(prompt) in seen]
    if shared:
        warnings.warn(
            f"{len(shared)} of {len(prompts)} prompts of {where} are trained on by {model}, e.g. "
            f"{shared[0]!r:.80}: what is reported is partly what it remembers; hold prompts out, "
            f"which {model} has not seen",
            SeenWarning,
            stacklevel=3,
        )


def learned_from(folder: str | Path | None) -> set[bytes]:
    """Digests of the prompts that a model on disk, and the models it was made from, learned from.

    Empty where no run or fit of ours made it.
    """
    digests: set[bytes] = set()
    visited: set[str] = set()
    while folder is not None and str(folder) not in visited:
        visited.add(str(folder))
        tree = config_of_maker(folder) or {}
        digests.update(_learned(tree))
        folder = _start(tree)
    return digests


def split_digests(digests: bytes | bytearray) -> Iterator[bytes]:
    """The digests of a source's rows, one by one."""
    for place in range(0, len(digests), DIGEST_BYTES):
        yield bytes(digests[place : place + DIGEST_BYTES])


def _learned(tree: Mapping[str, Any]) -> Iterator[bytes]:
    """Digests of the prompts of a config's training data."""
    share = 0.0 if tree.get("held_out") else float(tree.get("held_out_share", 0.0))
    imitates = tree.get("align", {}).get("ptx_coefficient", 0) > 0
    for section in ("prompts", "data", *(("demonstrations",) if imitates else ())):
        sources = tree.get(section, [])
        for source in sources if isinstance(sources, list) else []:
            for found in _digests(source):
                if section != "data" or share_of(found) >= share:
                    yield found


def _digests(source: Mapping[str, Any]) -> Iterator[bytes]:
    """Digests of a source that is still there and readable."""
    tree = {k: v for k, v in source.items() if k in ("path", "format")}
    if Path(str(tree.get("path"))).exists():
        try:
            opened = open_source(DataSource.model_validate({**tree, "max_bad": 1.0}))
        except InputError:
            return
        yield from split_digests(opened.digests)


def _start(tree: Mapping[str, Any]) -> str | None:
    """The folder that a run or fit began with."""
    starts = [tree[name] for name in ("policy", "model") if isinstance(tree.get(name), Mapping)]
    path = starts[0].get("path") if starts else tree.get("score_model")
    return None if path is None else str(path)
