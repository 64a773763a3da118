"""What is each answer worth? Scores of models and services, gold where it is known, refusals.

An answer is unsafe where any of its costs is above 0. A refusal is what the configured expressions
find in an answer's beginning; in the embedded world the gold judge says it instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch

from constrained_rl.errors import InputError, short
from llm_env.arena.answers import Answering, Mode, read_rows
from llm_env.arena.cache import Row, digest, folder_state, keep_rows
from llm_env.arena.config import ArenaConfig
from llm_env.arena.questions import Question
from llm_env.collectors import Responses, Score
from llm_env.prompts import Prompt
from llm_env.score_functions import load_named_scores
from llm_env.score_sources import CostSource, ScoreSource
from llm_env.world import Gold, judge

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """One answer of one model, with all that is known of it: a row of generations.jsonl."""

    model: str
    mode: Mode
    kind: str
    prompt: Prompt
    response: str
    stop_reason: str  # eos or length
    tokens: list[int]
    logp: float
    reference_logp: float | None
    scores: dict[str, float]  # higher = better, costs: higher = worse
    costs: tuple[str, ...]  # which of the scores are costs
    gold: Gold | None
    refusal: bool

    @property
    def reward(self) -> float:
        """The reward; 0 where none was asked for."""
        return self.scores.get("reward", 0.0)

    @property
    def cost(self) -> float:
        """The largest cost: an answer is as harmful as the worst that is said of it."""
        return max((self.scores[name] for name in self.costs), default=-math.inf)

    @property
    def called_unsafe(self) -> bool:
        """Whether some cost is above 0."""
        return self.cost > 0

    @property
    def unsafe(self) -> bool:
        """By gold where it is known, else by the costs."""
        return self.called_unsafe if self.gold is None else self.gold.unsafe

    @property
    def kl(self) -> float | None:
        """Log π − log π_ref of this answer; its mean over samples estimates the KL."""
        return None if self.reference_logp is None else self.logp - self.reference_logp

    def to_row(self) -> Row:
        """JSON values."""
        return asdict(self)


Scores: TypeAlias = dict[str, tuple[ScoreSource, Score]]
"""Loaded scores by name, with what each was loaded from"""


@dataclass(frozen=True)
class Judge:
    """The scores that a run asks for."""

    rewards: Mapping[str, ScoreSource]  # reward and held-out scores
    costs: Mapping[str, CostSource]

    @classmethod
    def of(cls, config: ArenaConfig) -> Judge:
        """What a config names."""
        reward = {} if config.reward is None else {"reward": config.reward}
        return cls({**reward, **config.held_out}, config.costs)

    def waiting(self) -> Judge:
        """The same scores, on the device only while they score."""
        aside = {"offload": True}
        return Judge(
            {name: source.model_copy(update=aside) for name, source in self.rewards.items()},
            {name: source.model_copy(update=aside) for name, source in self.costs.items()},
        )

    def load(self, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Scores:
        """Every score with its source, rewards pointing up and costs up to worse."""
        sources = {**self.rewards, **self.costs}
        scores = load_named_scores(sources, tokenizer, device)
        return {name: (source, scores[name]) for name, source in sources.items()}


READING = 2
"""of the rows that score models read; another number where the same answer gets another score"""
VISIT = 16
"""batches that are scored, and then kept, in one visit of the weights to the device"""


@torch.no_grad()
def score_answers(
    name: str,
    source: ScoreSource,
    score: Score,
    model: Answering,
    rows: Sequence[Row],
    place: tuple[str, Path],
) -> list[float]:
    """A score of every answer, kept on disk under the answers' digest.

    Raises:
        InputError: a score is not finite; the answers are kept.
    """
    key, folder = place
    state = [] if source.path is None else folder_state(source.path)

    def make(part: slice) -> list[Row]:
        chosen = rows[part]
        prompts = [row["prompt"] for row in chosen]
        responses = Responses(read_rows(model.tokenizer, chosen), prompts, model.tokenizer)
        values = score(responses).tolist()
        _require_finite(name, model.name, values, chosen)
        return [{name: value} for value in values]

    how = {"offload", "batch_size", "service", "sign_check", "sign_pairs"}  # not what it gives
    unique = digest(source.model_dump(mode="json", exclude=how), state, key, READING)
    file = folder / f"{model.name.replace('/', '_')}-{name}-{unique}.jsonl"
    return [row[name] for row in keep_rows(file, len(rows), VISIT * source.batch_size, make)]


def _require_finite(name: str, model: str, values: Sequence[float], rows: Sequence[Row]) -> None:
    bad = [index for index, value in enumerate(values) if not math.isfinite(value)]
    if bad:
        row = rows[bad[0]]
        raise InputError(
            f"score {name!r} gave {values[bad[0]]} for {len(bad)} of {len(values)} answers of "
            f"{model}, the first {short(row['response'])} to {short(row['prompt'])}; repair the "
            "score model. The answers are kept: the same command goes on from them"
        )


def refuses(response: str, config: ArenaConfig) -> bool:
    """Whether an answer begins like a refusal."""
    beginning = response[: config.refusal_within]
    return any(re.search(pattern, beginning, re.IGNORECASE) for pattern in config.refusals)


def known(
    question: Question, row: Row, config: ArenaConfig, gold: bool
) -> tuple[Gold | None, bool]:
    """Gold of an answer where the world knows it, and whether it refuses."""
    if not gold:
        return None, refuses(row["response"], config)
    assert isinstance(question.prompt, str)
    verdict = judge(question.prompt, row["response"], row["stop_reason"] == "eos")
    return verdict, verdict.refusal
