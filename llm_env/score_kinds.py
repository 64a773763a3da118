"""Is a score used as what it is? A reward is higher for what is better, a cost for what is worse.

A folder that was fitted here says what it is (`kind` in score_head.json). A Beaver folder that
calls itself a cost is one; one that calls itself a reward may be either, since the released v1.0
cost model does. Other folders say nothing, and a few pairs scored at load must do (sign_check.py).
The declared direction decides how a number is used, so that is what may not contradict the folder,
nor another use of the same number. The negative of a cost as a reward (higher_is_worse) is fine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from constrained_rl.errors import InputError
from llm_env.score_files import read_json
from llm_env.score_formats import Role
from llm_env.score_rows import Format
from llm_env.score_sources import ScoreSource
from llm_env.scoring import ABOUT_FILE
from llm_env.sign_check import Direction

POINTS: dict[Role, Direction] = {"reward": "higher_is_better", "cost": "higher_is_worse"}
"""what a higher number means"""
MEANS: dict[Direction, str] = {"higher_is_better": "better", "higher_is_worse": "worse"}


class Use(Protocol):
    """A score that was asked for."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def role(self) -> Role:
        """What it is used as."""

    @property
    def source(self) -> ScoreSource:
        """Where it comes from, and the declared direction."""


def stated_kind(folder: Path, form: Format) -> Role | None:
    """What a folder says that its score is; None where it does not say."""
    if form == "crl":
        about = read_json(folder / ABOUT_FILE) if (folder / ABOUT_FILE).is_file() else {}
        told = about.get("kind")
        # fits wrote no kind once, but called their only head by it
        named = about.get("names") if told is None else [told]
        return next((role for role in POINTS if named == [role]), None)
    if form == "beaver" and (folder / "config.json").is_file():
        return "cost" if read_json(folder / "config.json").get("score_type") == "cost" else None
    return None


def require_direction(use: Use, kind: Role | None) -> None:
    """`InputError` where a source declares the other direction than its folder's kind has."""
    declared = use.source.direction
    if kind is None or declared == POINTS[kind]:
        return
    right = f'declare direction = "{POINTS[kind]}"'
    if use.role != kind:
        right = (
            f"Give a {use.role} model's folder here (were two folders swapped?), or, if its "
            f"negative is meant, {right}"
        )
    raise InputError(
        f"{use.role} {use.name!r}: {use.source.path} is a {kind} model (kind={kind}), whose higher "
        f'numbers are {MEANS[POINTS[kind]]}, but its direction is declared as "{declared}". '
        + (right[0].upper() + right[1:])
    )


def require_one_direction(uses: Sequence[Use]) -> None:
    """`InputError` where one number is the reward, higher = better, and a cost, higher = worse."""
    seen: dict[str, Use] = {}
    for use in uses:
        first = seen.setdefault(_identity(use), use)
        if first.role != use.role and first.source.direction != use.source.direction:
            reward, cost = (first, use) if first.role == "reward" else (use, first)
            raise InputError(
                f"reward {reward.name!r} and cost {cost.name!r} are one and the same score, of "
                f"{use.source.path or use.source.url}, which cannot be both better and worse when "
                "it is higher; give each its own folder, or a head of its own: head = …"
            )


def _identity(use: Use) -> str:
    """Equal for uses of one number."""
    source = use.source
    if source.path is None:
        return json.dumps([source.url, use.name if source.head is None else source.head])
    return json.dumps([str(Path(source.path).resolve()), source.head or 0])
