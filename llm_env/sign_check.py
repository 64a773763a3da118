"""Does a score point the way its config says? A few pairs that leave no doubt, scored at load.

A cost must be higher for the unsafe response of a pair, a reward for the helpful one. A model whose
sign was mistaken trains the opposite of what is wanted without any error: a public leaderboard
once showed a released cost model upside down (reward-bench #75). The verdict goes by 3/4 of all
pairs, in order or reversed; equal scores are neither. A fair coin has 9 of 12 or more in order with
probability 0.07. A model that cannot read the pairs (the embedded
world's, a word-level vocabulary) is not checked, which is said. Absent: how good the score is.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, TypeAlias

from torch import Tensor

from constrained_rl.errors import InputError, Notice
from llm_env.preferences import PreferenceRow, cost_pairs, read_preferences, reward_pairs
from llm_env.prompts import Message

SignPolicy: TypeAlias = Literal["error", "warn", "off"]
Direction: TypeAlias = Literal["higher_is_better", "higher_is_worse"]
Pair: TypeAlias = tuple[str | list[Message], str, str]
"""prompt, the response that should score higher, the other"""
Verdict: TypeAlias = Literal["in order", "reversed", "undecided", "unreadable"]
MOST = 0.75
"""share of the pairs that makes a verdict"""
READABLE = 0.9
"""share of words that a tokenizer must be able to write back"""
OTHER: dict[Direction, Direction] = {
    "higher_is_better": "higher_is_worse",
    "higher_is_worse": "higher_is_better",
}


class ScoreWarning(Notice):
    """A score may not mean what the config says."""


@dataclass(frozen=True)
class SignCheck:
    """What came of one check."""

    name: str  # of the score
    role: Literal["reward", "cost"]
    direction: Direction  # as declared
    agree: int  # pairs in the order that is expected
    against: int  # pairs in the other
    pairs: int
    readable: float  # share of the words that the model's tokenizer keeps

    @property
    def verdict(self) -> Verdict:
        """In one word."""
        if self.readable < READABLE:
            return "unreadable"
        if self.agree >= MOST * self.pairs:
            return "in order"
        return "reversed" if self.against >= MOST * self.pairs else "undecided"

    def __str__(self) -> str:
        wanted = "unsafe response higher" if self.role == "cost" else "helpful response higher"
        found = f"{self.agree} of {self.pairs} pairs have the {wanted}, {self.against} the other"
        begin = f"sign check of {self.role} {self.name!r}"
        match self.verdict:
            case "unreadable":
                return (
                    f"{begin} could not be made: its tokenizer keeps {self.readable:.0%} of the "
                    "words of the shipped pairs; give pairs that it can read (sign_pairs = a file "
                    'of preference rows), or say that you know the sign (sign_check = "off")'
                )
            case "reversed":
                return (
                    f'{begin}: {found} under direction = "{self.direction}", so the score seems to '
                    f'point the other way; try direction = "{OTHER[self.direction]}"'
                )
            case "undecided":
                return (
                    f"{begin}: {found}, which decides nothing; the score may be of something else "
                    "(another head, another prompt format, one harm category). Give pairs of what "
                    "it should tell apart (sign_pairs = a file of preference rows), or leave the "
                    'check out (sign_check = "off")'
                )
        return f"{begin}: {found}"


def check_sign(
    name: str,
    role: Literal["reward", "cost"],
    direction: Direction,
    score: Callable[[Sequence[str | list[Message]], Sequence[str]], Tensor],
    readable: Callable[[Sequence[str]], float],
    pairs: Sequence[Pair],
) -> SignCheck:
    """Score pairs and count how many are in order.

    Args:
        name: of the score.
        role: reward or cost.
        direction: as declared in the config.
        score: [B] of prompts and responses, already pointing the way training sees it.
        readable: share of the words of texts that the score's tokenizer keeps.
        pairs: what to score.
    """
    share = readable([response for _, high, low in pairs for response in (high, low)])
    if share < READABLE:
        return SignCheck(name, role, direction, 0, 0, len(pairs), share)
    prompts = [prompt for prompt, _, _ in pairs]
    scores = score(prompts * 2, [high for _, high, _ in pairs] + [low for _, _, low in pairs])
    higher, lower = scores.chunk(2)
    agree, against = int((higher > lower).sum()), int((higher < lower).sum())
    return SignCheck(name, role, direction, agree, against, len(pairs), share)


def enforce(check: SignCheck, policy: SignPolicy) -> None:
    """Warn or raise where the check did not find the pairs in order."""
    if check.verdict == "in order" or policy == "off":
        return
    if policy == "error":
        raise InputError(str(check))
    warnings.warn(str(check), ScoreWarning, stacklevel=3)


def sign_pairs(role: Literal["reward", "cost"], path: str | None = None) -> list[Pair]:
    """Pairs for a check: shipped ones, or those of a file that say which response should win.

    Raises:
        InputError: the file is no preference data, or holds no pair with one safe and one unsafe
            response (cost).
    """
    rows = _shipped()[role] if path is None else read_preferences(path)
    if role == "reward":
        return [(pair.prompt, pair.chosen, pair.rejected) for pair in reward_pairs(rows)]
    mixed = [row for row in rows if row.is_response_0_safe != row.is_response_1_safe]
    if not mixed:
        raise InputError(
            f"{path}: none of {len(rows)} rows has one safe and one unsafe response, so no pair "
            "says which way a cost should point; add some"
        )
    return [(pair.prompt, pair.more_harmful, pair.less_harmful) for pair in cost_pairs(mixed)]


@cache
def _shipped() -> dict[str, list[PreferenceRow]]:
    """The pairs of sign_pairs.json."""
    text = files("llm_env").joinpath("sign_pairs.json").read_text(encoding="utf-8")
    return {
        role: [PreferenceRow.model_validate(row) for row in rows]
        for role, rows in json.loads(text).items()
    }
