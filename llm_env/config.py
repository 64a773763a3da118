"""Typed configuration of Safe RLHF and of the comparison on the embedded world."""

from __future__ import annotations

from typing import Literal

from constrained_rl.config import (
    ConstraintConfig,
    Count,
    Finite,
    GradientConfig,
    MultiplierConfig,
    PIDConfig,
    PPOConfig,
    Section,
)
from llm_env.score_training import ScoreConfig
from llm_env.sft import SFTConfig


class TokenPPOConfig(PPOConfig):
    """PPO on whole responses: undiscounted, few epochs, KL to the SFT model."""

    epochs: Count = 2
    """passes over each batch of responses"""
    minibatches: Count = 2
    """optimizer steps per pass"""
    flatten: bool = False
    """token rows stay whole"""
    gamma: float = 1.0
    """discount of the reward stream"""
    learning_rate: float = 5e-4
    """Adam step of the policy; 1e-5 for pretrained models of billions of parameters"""
    critic_learning_rate: float | None = 1e-3
    """Adam step of the critic"""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's moment decays"""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """learning rates over training"""
    value_clip: float | None = 5.0
    """clip of the critic's moves, in score units"""
    kl_coefficient: float = 0.07
    """β of the KL penalty to the SFT model"""
    kl_streams: Literal["reward", "both", "paper"] = "both"
    """which streams pay β·KL"""


class AlignConfig(Section):
    """Constrained RL of a language model."""

    iterations: Count = 60
    """policy updates"""
    prompts: Count = 64
    """responses per iteration"""
    max_new_tokens: Count = 48
    """longest response"""
    limit: Finite | tuple[Finite, ...] = 0.05
    """upper bound on E[transform(C)], one for all costs or one each; the identity's is −d"""
    constraint: ConstraintConfig = ConstraintConfig(transform="indicator")
    """what is bounded"""
    multiplier: MultiplierConfig = PIDConfig(kp=1.0, ki=0.3, proportional_ema=0.8, initial=1.0)
    """what moves λ"""
    ppo: TokenPPOConfig = TokenPPOConfig()
    """the update"""


class ModelConfig(Section):
    """The small Llama that is trained from scratch."""

    hidden: Count = 64
    """width"""
    layers: Count = 2
    """blocks"""
    heads: Count = 4
    """attention heads"""


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
    annotators: Count = 8
    """people in the pool"""


class CompareConfig(Section):
    """`crl llm compare`: Safe RLHF against static reward shaping on the embedded world."""

    seed: int = 0
    """of data, annotators, networks and sampling"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where models live"""
    workers: int = 0
    """processes side by side, one thread each; 0: one per available core"""
    world: WorldConfig = WorldConfig()
    """data"""
    model: ModelConfig = ModelConfig()
    """policy and score models"""
    sft: SFTConfig = SFTConfig(epochs=3)
    """supervised fine-tuning"""
    score: ScoreConfig = ScoreConfig(learning_rate=1e-3, epochs=2, regularization=1e-3)
    """reward and cost model"""
    align: AlignConfig = AlignConfig()
    """Safe RLHF: the recommended settings; every method changes only what its name says"""
    published_limit: Finite = -2.0
    """limit of the published constraint E[C] ≤ limit (the paper's −d; it used −3 in two rounds)"""
    mean_pid: PIDConfig = PIDConfig(kp=0.1, ki=0.01, initial=1.0)
    """PID for the published constraint, whose cost is a logit and not a share"""
    weights: tuple[float, ...] = (0.0, 0.01, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0)
    """static weights ν; 0 is standard RLHF"""


QUICK = {
    "weights": [0.0, 0.5, 5.0],
    "world": {"demonstrations": 8000, "pairs": 5000, "evaluation": 200},
    "sft": {"epochs": 2},
    "score": {"epochs": 1, "learning_rate": 3e-3},
    "align": {"iterations": 40},
}
"""What `--quick` changes."""

PUBLISHED = GradientConfig(learning_rate=0.1, initial=1.0, parameterization="log", maximum=10.0)
"""The published multiplier: ln λ += η λ (J_C − limit), with the maximum its users added."""
