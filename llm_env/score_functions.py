"""From score sources to functions: on generated responses for training, on texts for everybody.

What is asked of one trunk or service for one batch is computed once.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llm_env.collectors import Responses, Score
from llm_env.prompts import Prompt
from llm_env.score_loading import Column, Origin, Wanted, load_columns
from llm_env.score_sources import CostSource, ScoreSource, role_of
from llm_env.sign_check import Direction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_scores(
    reward: ScoreSource,
    costs: Mapping[str, CostSource],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> tuple[Score, dict[str, Score]]:
    """The reward (higher = better) and the named costs (higher = worse) as scores of responses.

    Args:
        reward: what is maximised.
        costs: what is bounded, by name.
        tokenizer: the policy's.
        device: where score models compute.

    Raises:
        InputError: a folder, head, tokenizer or service is not what the source says; a sign check
            failed whose `sign_check` is "error".
    """
    wanted = [Wanted("reward", "reward", reward)]
    wanted += [Wanted(name, "cost", source) for name, source in costs.items()]
    first, *rest = _as_scores(load_columns(wanted, tokenizer, device))
    return first, dict(zip(costs, rest, strict=True))


def load_named_scores(
    sources: Mapping[str, ScoreSource],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> dict[str, Score]:
    """Any number of scores by name: a `CostSource` points up to worse, others up to better."""
    wanted = [Wanted(name, role_of(source), source) for name, source in sources.items()]
    return dict(zip(sources, _as_scores(load_columns(wanted, tokenizer, device)), strict=True))


class TextScores:
    """Scores of texts, without a policy: {name: [B]}, each trunk forwarded once."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = tuple(columns)
        self.directions: dict[str, Direction] = {c.wanted.name: c.wanted.points for c in columns}
        """what a higher number means, by name"""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, Tensor]:
        """Score [B] of each response to its prompt, by name."""
        origins = {id(column.origin): column.origin for column in self._columns}
        found = {key: origin.texts(prompts, responses) for key, origin in origins.items()}
        return {c.wanted.name: c.of(found[id(c.origin)]) for c in self._columns}

    def readable(self, texts: Sequence[str]) -> dict[str, float]:
        """Share of the words of texts that each score's tokenizer keeps."""
        return {c.wanted.name: c.origin.readable(texts) for c in self._columns}


def load_text_scores(
    sources: Mapping[str, ScoreSource],
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> TextScores:
    """Scores of texts by name; `tokenizer` is the policy's, where a source asks for it."""
    wanted = [Wanted(name, role_of(source), source) for name, source in sources.items()]
    return TextScores(load_columns(wanted, tokenizer, device))


def _as_scores(columns: Sequence[Column]) -> list[Score]:
    """Columns as functions of responses; those of one origin share its computation."""
    shared = {id(column.origin): _OncePerBatch(column.origin) for column in columns}
    return [_score(column, shared[id(column.origin)]) for column in columns]


def _score(column: Column, once: _OncePerBatch) -> Score:
    return lambda responses: column.of(once(responses))


class _OncePerBatch:
    """Remembers the scores of the last batch of responses, for the other columns."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._last: weakref.ref[Responses] | None = None
        self._scores = torch.empty(0)

    def __call__(self, responses: Responses) -> Tensor:  # [B, S]
        if self._last is None or self._last() is not responses:
            self._scores = self._origin.responses(responses)
            self._last = weakref.ref(responses)
        return self._scores
