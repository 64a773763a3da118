"""Typed configuration of `crl llm sft` and `crl llm score`."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from constrained_rl.sections import Count, Device, Section, Seed
from llm_env.data_sources import DataSource
from llm_env.models import ModelSource
from llm_env.score_training import ScoreConfig
from llm_env.sft import SFTConfig

Fraction = Annotated[float, Field(ge=0, lt=1)]

# The defaults of FitConfig are those of the small models of the embedded world. These are the
# published ones of Safe RLHF's scripts for 7B models (batch 16, 2e-5, cosine, warm-up 0.03).
SFT_DEFAULTS: dict[str, Any] = {"epochs": 3, "batch_size": 32, "learning_rate": 2e-5}
SCORE_DEFAULTS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 2e-5,
    "weight_decay": 0.1,
    "regularization": 0.001,
}


class FittingConfig(Section):
    """What both commands share."""

    recommended: ClassVar[dict[str, Any]]

    seed: Seed = 0
    """of the order of examples, new heads and adapters"""
    device: Device = "auto"
    """where the model lives"""
    threads: Count = 1
    """torch threads"""
    data: tuple[DataSource, ...] = Field(min_length=1)
    """what is learned from"""
    held_out: tuple[DataSource, ...] = ()
    """what the result is measured on; without any, a share of `data` by `held_out_share`"""
    held_out_share: Fraction = 0.05
    """share of the prompts of `data` that nothing is learned from; the rows of one prompt stay
    together"""
    evaluation_batch: Count = 32
    """examples per forward when the result is measured"""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, tree: Any) -> Any:  # noqa: ANN401 — what the user wrote
        """A `fit` section given in part keeps the rest of what is recommended here."""
        if isinstance(tree, dict) and isinstance(tree.get("fit", {}), dict):
            return {**tree, "fit": {**cls.recommended, **tree.get("fit", {})}}
        return tree


class SFTRunConfig(FittingConfig):
    """`crl llm sft`: maximise log π of demonstrated responses."""

    recommended: ClassVar[dict[str, Any]] = SFT_DEFAULTS
    task: Literal["sft"] = "sft"
    """which command made the folder"""
    model: ModelSource
    """start; with model.lora an adapter is trained and merged into the weights at the end"""
    fit: SFTConfig = SFTConfig(**SFT_DEFAULTS)
    """optimizer, length of examples, checkpoints"""


class ScoreRunConfig(FittingConfig):
    """`crl llm score`: a reward model, a cost model, or a cost model of several harm categories."""

    recommended: ClassVar[dict[str, Any]] = SCORE_DEFAULTS
    task: Literal["score"] = "score"
    """which command made the folder"""
    kind: Literal["reward", "cost", "costs"]
    """reward: the more helpful response scores higher; cost: the more harmful one, unsafe ones
    above zero; costs: one such score per entry of `categories`, on one trunk"""
    categories: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    """kind = "costs": each score's name and the harm categories that count as it. kind = "cost":
    one entry makes a cost model of these categories alone; none uses is_response_{0,1}_safe"""
    model: ModelSource | None = None
    """a language model whose trunk becomes the score model's"""
    score_model: str | None = None
    """or a folder with a score model that is trained on"""
    template_date: date | None = None
    """of score_model: the day that its chat template is given, if that writes the date"""
    fit: ScoreConfig = ScoreConfig(**SCORE_DEFAULTS)
    """optimizer, loss terms, length of examples, checkpoints"""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.model is None) == (self.score_model is None):
            raise ValueError(
                "give one start: model.path, a language model, or score_model, a folder with a "
                "score model"
            )
        if self.kind == "costs" and not self.categories:
            raise ValueError(
                "kind = 'costs' needs categories, e.g. [categories] violence = ['Violence', "
                "'Physical Harm']; `crl llm check-data` lists those of the data"
            )
        if self.kind == "cost" and len(self.categories) > 1:
            raise ValueError(
                "kind = 'cost' is one score: give one entry of categories, or kind = 'costs'"
            )
        if self.kind == "reward" and self.categories:
            raise ValueError("categories are of costs; leave them out for kind = 'reward'")
        return self
