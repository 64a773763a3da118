"""Training of reward and cost models on preferences, and their accuracies.

The losses are those of preference_losses.py; both responses of a pair pass the model in one batch,
each scored at its last token, the eos. Absent: statistics of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from constrained_rl.config import Count, NonNegative, Positive
from constrained_rl.errors import InputError
from llm_env.policy import context_length
from llm_env.preference_losses import (
    cost_model_loss,
    ranking_accuracy,
    reward_model_loss,
    sign_accuracy,
)
from llm_env.preferences import CostPair, RewardPair
from llm_env.scoring import ScoreModel, score_texts
from llm_env.supervised import FitConfig, Progress, fit
from llm_env.tokens import check_tokenizer, encode_texts, pad

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ScoreConfig(FitConfig):
    """Settings of reward- and cost-model training."""

    epochs: Count = 1
    """passes over the pairs"""
    learning_rate: Positive = 3e-3
    """peak step size of AdamW; 2e-5 for pretrained models of billions of parameters"""
    regularization: NonNegative = 0.0
    """μ, weight of the mean squared score"""
    ranking: bool = True
    """cost model: keep the term that orders the two responses"""
    sign: bool = True
    """cost model: keep the terms that place responses on their side of zero"""


@dataclass(frozen=True)
class Accuracy:
    """How often a score model agrees with the labels, as shares."""

    ranking: float
    sign: float | None  # None for reward models, which have no zero


def train_score_model(
    model: ScoreModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[RewardPair] | Sequence[CostPair],
    kind: Literal["reward", "cost"],
    config: ScoreConfig,
    generator: torch.Generator,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> list[float]:
    """Train a score model in place; return the loss of every step.

    With a folder for checkpoints, a fit that was interrupted continues from the newest in it.
    """
    _check_kind(pairs, kind)
    check_tokenizer(tokenizer)
    limit = config.max_tokens or context_length(model.backbone.config)
    prompts = [pair.prompt for pair in pairs]
    first, second = (
        encode_texts(tokenizer, prompts, [pair.responses[which] for pair in pairs], limit)
        for which in (0, 1)
    )

    def loss(batch: list[int]) -> Tensor:
        rows = [first[i] for i in batch] + [second[i] for i in batch]
        score = model.end_score(*pad(rows, tokenizer.pad_token_id, left=False))[:, 0]
        higher, lower = score.chunk(2)
        return pair_loss([pairs[i] for i in batch], higher, lower, config)

    lengths = [max(len(a), len(b)) for a, b in zip(first, second, strict=True)]
    return fit(model, lengths, loss, config, generator, progress, checkpoint, pairs)


def pair_loss(
    pairs: Sequence[RewardPair | CostPair],
    higher: Tensor,  # [B] score of y_w: chosen, or more harmful
    lower: Tensor,  # [B] score of y_l
    config: ScoreConfig,
) -> Tensor:
    """Loss of scored pairs, all of one kind."""
    costs = [pair for pair in pairs if isinstance(pair, CostPair)]
    if not costs:
        return reward_model_loss(higher, lower, config.regularization)
    return cost_model_loss(
        higher,
        lower,
        *_signs(costs, higher.device),
        config.regularization,
        ranking=config.ranking,
        sign=config.sign,
    )


def score_accuracy(
    model: ScoreModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[RewardPair] | Sequence[CostPair],
    batch_size: int = 64,
) -> Accuracy:
    """Ranking accuracy, and for cost pairs the sign accuracy over both responses of each pair."""
    prompts = [pair.prompt for pair in pairs]
    higher, lower = (
        score_texts(model, tokenizer, prompts, [pair.responses[i] for pair in pairs], batch_size)
        for i in (0, 1)
    )
    costs = [pair for pair in pairs if isinstance(pair, CostPair)]
    sign = None
    if costs:
        sign = sign_accuracy(torch.cat([higher, lower]), torch.cat(_signs(costs, higher.device)))
    return Accuracy(ranking_accuracy(higher, lower), sign)


def _signs(pairs: Sequence[CostPair], device: torch.device) -> tuple[Tensor, Tensor]:
    """Signs of the more and of the less harmful responses, each [B]."""
    more = torch.tensor([float(pair.more_harmful_sign) for pair in pairs], device=device)
    less = torch.tensor([float(pair.less_harmful_sign) for pair in pairs], device=device)
    return more, less


def _check_kind(pairs: Sequence[RewardPair] | Sequence[CostPair], kind: str) -> None:
    """Refuse pairs of the other kind: their first response means the opposite."""
    expected = {"reward": RewardPair, "cost": CostPair}[kind]
    if not all(isinstance(pair, expected) for pair in pairs):
        raise InputError(
            f"training a {kind} model needs {expected.__name__} elements, found "
            f"{type(pairs[0]).__name__}; use {kind}_pairs(rows)"
        )
