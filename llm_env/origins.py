"""Which run or fit left the model that lies in a folder, and with which config?"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from constrained_rl.settings import read_toml
from llm_env.prompts import PromptFormat

SCORE_HEAD = "score_head.safetensors"
"""beside the trunk of a score model of ours"""
MADE = ("policy", "best", "model")
"""folders in which runs and fits leave a model: RUN/policy, RUN/rounds/1/policy, FIT/model"""


def config_of_maker(folder: str | Path) -> dict[str, Any] | None:
    """The config of the run or fit that left a model in a folder; None where nothing tells it.

    It lies in the run's folder, and in the model card of what `crl llm train` exports, which goes
    with a folder that is copied.
    """
    path = Path(folder).resolve()
    for home in (path.parent, *path.parents[2:3]):
        if path.name in MADE and (home / "config.toml").is_file():
            return read_toml(home / "config.toml")
    card = path / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head, block, config = text.rpartition("```toml\n")
    if not block or "with constrained-rl:" not in head:
        return None
    try:
        return tomllib.loads(config.rstrip().removesuffix("```"))
    except tomllib.TOMLDecodeError:  # somebody edited the card
        return None


def format_of_before(folder: str | Path) -> PromptFormat | None:
    """The format of a folder that a fit or run made when folders did not say theirs, else None.

    The config of such a run holds a `prompt_format` all the same, and score models were fitted to
    strings as they are. What is made now says its format.
    """
    if (Path(folder) / SCORE_HEAD).is_file():
        return "auto"
    made = config_of_maker(folder) or {}
    sections = [made[name] for name in ("policy", "model") if isinstance(made.get(name), dict)]
    return next((s["prompt_format"] for s in sections if "prompt_format" in s), None)
