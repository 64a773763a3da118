"""Typed configuration of `crl llm compare`: Safe RLHF against shaping on the embedded world."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from constrained_rl.multiplier_config import GradientConfig, PIDConfig
from constrained_rl.sections import Count, Device, Finite, NonNegative, Positive, Section, Seed
from llm_env.config import AlignConfig, TokenPPOConfig
from llm_env.score_training import ScoreConfig
from llm_env.sft import SFTConfig


class ModelConfig(Section):
    """The small Llama that is trained from scratch."""

    hidden: Count = 64
    """width"""
    layers: Count = 2
    """blocks"""
    heads: Count = 4
    """attention heads; their number divides the width"""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide hidden = {self.hidden}")
        return self


class SmallPPOConfig(TokenPPOConfig):
    """PPO for the small Llama: steps that models from scratch learn from in a minute."""

    learning_rate: Positive = 5e-4
    """Adam step of the policy"""
    critic_learning_rate: Positive | None = 1e-3
    """Adam step of the critic"""


class SmallAlignConfig(AlignConfig):
    """Constrained RL of the small Llama."""

    ppo: SmallPPOConfig = SmallPPOConfig()
    """the update"""


class WorldConfig(Section):
    """Data drawn from the embedded world."""

    demonstrations: Count = 12000
    """SFT pairs"""
    pairs: Count = 12000
    """pairs of responses that annotators label"""
    held_out: Count = 400
    """further labelled pairs on which score models are tested"""
    prompts: Count = 4000
    """RL prompts"""
    evaluation: Count = 400
    """prompts of the report, the same for every method"""
    annotators: Annotated[int, Field(ge=2)] = 8
    """people in the pool; agreement takes two"""


class CompareConfig(Section):
    """`crl llm compare`: Safe RLHF against static reward shaping on the embedded world."""

    seed: Seed = 0
    """of data, annotators, networks and sampling"""
    device: Device = "auto"
    """where models live"""
    workers: Annotated[int, Field(ge=0)] = 0
    """processes side by side, one thread each; 0: one per available core"""
    world: WorldConfig = WorldConfig()
    """data"""
    model: ModelConfig = ModelConfig()
    """policy and score models"""
    sft: SFTConfig = SFTConfig(epochs=3)
    """supervised fine-tuning"""
    score: ScoreConfig = ScoreConfig(learning_rate=1e-3, epochs=2, regularization=1e-3)
    """reward and cost model"""
    align: SmallAlignConfig = SmallAlignConfig()
    """Safe RLHF: the recommended settings; every method changes only what its name says"""
    published_limit: Finite = -2.0
    """limit of the published constraint E[C] ≤ limit (the paper's −d; it used −3 in two rounds)"""
    mean_pid: PIDConfig = PIDConfig(kp=0.1, ki=0.01, initial=1.0)
    """PID for the published constraint, whose cost is a logit and not a share"""
    weights: tuple[NonNegative, ...] = (0.0, 0.01, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0)
    """static weights ν; 0 is standard RLHF"""
    decoupling: bool = True
    """train what decoupled labels are compared with: a classifier's logit as cost, a cost model
    without the sign terms, and one preference model from single-dimension labels"""
    limits: tuple[Finite, ...] = (0.01, 0.02, 0.1, 0.2)
    """further limits at which the recommended method is run, in units of align.limit"""

    @model_validator(mode="after")
    def _runs_differ(self) -> Self:
        for name, values in (("weights", self.weights), ("limits", self.limits)):
            if len({f"{value:g}" for value in values}) < len(values):
                raise ValueError(f"{name} = {list(values)} names a value twice")
        return self


QUICK = {
    "weights": [0.0, 0.5, 5.0],
    "world": {"demonstrations": 8000, "pairs": 5000, "evaluation": 200},
    "sft": {"epochs": 2},
    "score": {"epochs": 1, "learning_rate": 3e-3},
    "align": {"iterations": 40},
    "decoupling": False,
    "limits": [],
}
"""What `--quick` changes."""

PUBLISHED = GradientConfig(learning_rate=0.1, initial=1.0, parameterization="log", maximum=10.0)
"""The published multiplier: ln λ += η λ (J_C − limit), with the maximum its users added."""
