"""Where rewards and costs come from: a score model on disk in one of three formats, or a service.

A source declares which way its raw number points; what training sees always has higher = better
for rewards and higher = worse for costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from constrained_rl.config import Count, Finite, Section
from llm_env.collectors import Score, by_model
from llm_env.models import DType
from llm_env.scoring import ScoreModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Direction = Literal["higher_is_better", "higher_is_worse"]


class ScoreSource(Section):
    """A score of responses."""

    path: str | None = None
    """folder of a score model"""
    url: str | None = None
    """or a scoring service (`crl llm serve-scores`)"""
    format: Literal["auto", "crl", "beaver", "classification"] = "auto"
    """of the folder: ours, PKU's, or a sequence classifier's"""
    head: Annotated[int, Field(ge=0)] = 0
    """which of its scores"""
    direction: Direction
    """what a higher raw number means"""
    dtype: DType = "float32"
    """precision of the trunk; the head is float32"""
    offload: bool = False
    """keep it in CPU memory except while it scores"""
    batch_size: Count = 64
    """responses per forward"""


class CostSource(ScoreSource):
    """A score to be bounded."""

    limit: Finite | None = None
    """upper bound on E[transform(C)]; default: align.limit"""


def load_scores(
    reward: ScoreSource,
    costs: Mapping[str, CostSource],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> tuple[Score, dict[str, Score]]:
    """The reward (higher = better) and the named costs (higher = worse) as scores of responses.

    `tokenizer` is the policy's.
    """
    found = {name: by_model(_load(source, device)) for name, source in costs.items()}
    return by_model(_load(reward, device)), found


def _load(source: ScoreSource, device: torch.device) -> ScoreModel:
    assert source.path is not None
    return ScoreModel.from_pretrained(source.path).to(device)
