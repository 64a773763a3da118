"""Typed configuration of constrained RL on a language model."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from constrained_rl.advantages import KLStreams
from constrained_rl.config import PPOConfig
from constrained_rl.constraint_config import ConstraintConfig
from constrained_rl.constraints import Constraint
from constrained_rl.multiplier_config import MultiplierConfig, PIDConfig
from constrained_rl.sections import (
    Count,
    Limit,
    NonNegative,
    Positive,
    Schedule,
    Section,
    Share,
    limits_in,
)
from llm_env.score_norm import ScoreNormKind


class TokenPPOConfig(PPOConfig):
    """PPO on whole responses: undiscounted, few epochs, KL to the SFT model."""

    former_defaults: ClassVar[dict[str, float]] = {"critic_learning_rate": 1e-3}
    epochs: Count = 2
    """passes over each batch of responses"""
    minibatches: Count = 2
    """optimizer steps per pass"""
    flatten: bool = False
    """token rows stay whole"""
    gamma: Share = 1.0
    """discount of the reward stream"""
    learning_rate: Positive = 9.65e-6
    """Adam step of the policy: Safe RLHF's, for models of billions of parameters; small ones that
    are trained from scratch take 5e-4"""
    critic_learning_rate: Positive | None = 5e-6
    """Adam step of the critic: Safe RLHF's; 1e-3 for small ones"""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """Adam's moment decays"""
    schedule: Schedule = "constant"
    """learning rates over training"""
    value_clip: Positive | None = 5.0
    """clip of the critic's moves, in score units"""
    kl_coefficient: NonNegative = 0.07
    """β of the KL penalty to the SFT model"""
    kl_streams: KLStreams = "both"
    """which streams pay β·KL"""


class AlignConfig(Section):
    """Constrained RL of a language model."""

    iterations: Count = 60
    """policy updates"""
    prompts: Count = 64
    """responses per iteration"""
    responses_per_prompt: Count = 1
    """how many of them answer the same prompt, at least 2 where advantages have no critics"""
    generation_batch: Count | None = None
    """of them that a rank decodes together; bounds the memory of keys and values, and does not
    change what is sampled; default: all of a rank's"""
    max_new_tokens: Count = 48
    """longest response"""
    limit: Limit = 0.05
    """upper bound on E[transform(C)], one for all costs, one each or one each by name; the
    identity's is −d"""
    constraint: ConstraintConfig = ConstraintConfig(transform="indicator")
    """what is bounded"""
    multiplier: MultiplierConfig = PIDConfig(kp=1.0, ki=0.3, proportional_ema=0.8, initial=1.0)
    """what moves λ"""
    ppo: TokenPPOConfig = TokenPPOConfig()
    """the update"""
    normalize_scores: ScoreNormKind = "none"
    """standardise the reward score that is learned from (never a cost, never what is reported): by
    the first iteration's responses ("reference"), or by all so far ("running"); λ, β and score_clip
    then count in deviations of the reward"""
    ptx_coefficient: NonNegative = 0.0
    """c of c · (−mean log π) over tokens of demonstrations, added to the policy's loss"""

    @model_validator(mode="after")
    def _has_whole_groups(self) -> Self:
        if self.prompts % self.responses_per_prompt:
            raise ValueError(
                f"prompts counts responses, {self.prompts} per iteration, which is no multiple of "
                f"responses_per_prompt = {self.responses_per_prompt}"
            )
        if self.ppo.advantage != "gae" and self.responses_per_prompt < 2:
            raise ValueError(
                f"ppo.advantage = {self.ppo.advantage!r} compares responses to the same prompt; "
                "set responses_per_prompt to 2 or more (4 to 16 is usual)"
            )
        return self

    @model_validator(mode="after")
    def _constraint_fits_responses(self) -> Self:
        for limit in limits_in(self.limit):
            Constraint("cost", limit, transform=self.constraint.transform, per=self.constraint.per)
        if self.constraint.corrected:
            raise ValueError(
                "constraint.corrected counts episodes that a window has cut, but every response "
                "is whole; leave it out"
            )
        if self.constraint.per == "group" and self.ppo.advantage != "gae":
            raise ValueError(
                f"ppo.advantage = {self.ppo.advantage!r} compares a response with the others "
                "of its prompt, but under constraint.per = 'group' what they pay depends on it; "
                "use ppo.advantage = 'gae'"
            )
        if self.constraint.per == "group" and self.responses_per_prompt < 2:
            raise ValueError(
                "constraint.per = 'group' bounds each prompt's mean, but responses_per_prompt is "
                f"{self.responses_per_prompt}; set it to 2 or more (4 is usual), or use "
                "constraint.transform = 'excess', the constraint on single responses"
            )
        return self
