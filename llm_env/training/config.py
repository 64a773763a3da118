"""Typed configuration of `crl llm train`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from constrained_rl.assembly import constrain, one_of_each
from constrained_rl.config import CheckpointConfig, LoggerName, Selection
from constrained_rl.sections import Count, Device, Positive, Section, Seed
from llm_env.config import AlignConfig
from llm_env.data_sources import DataSource
from llm_env.models import LoRAConfig, ModelSource
from llm_env.score_sources import CostSource, ScoreSource
from llm_env.token_store import OverLength


class CriticConfig(Section):
    """One trunk with 1 + K value heads; none under critic-free advantages."""

    trunk: Literal["reward", "policy", "shared"] | str = "policy"
    """what it starts from: the reward model's trunk, a copy of the policy's, the policy's own
    frozen trunk under an adapter of the critic's ("shared", with policy.lora), or a folder"""
    lora: LoRAConfig | None = None
    """train an adapter and keep the trunk's weights"""


class DistributedConfig(Section):
    """How training is spread over the processes that torchrun or deepspeed starts."""

    engine: Literal["torch", "deepspeed"] = "torch"
    """torch: each rank holds everything (DDP); deepspeed: ZeRO"""
    zero: Annotated[int, Field(ge=0, le=3)] = 0
    """ZeRO stage: 1 shards optimizer states, 2 gradients too, 3 weights too"""
    offload_optimizer: bool = False
    """ZeRO's optimizer states in CPU memory"""
    timeout: Positive = 600.0
    """seconds a rank waits for the others, who may be writing a checkpoint, before the job ends"""


class HeldOutConfig(Selection):
    """Responses to held-out prompts while training; the best feasible policy is kept in best/."""

    prompts: tuple[DataSource, ...] = ()
    """held-out prompts; without any, nothing is evaluated and there is no best/"""
    count: Annotated[int, Field(ge=2)] = 256
    """prompts taken, the first ones"""
    batch: Count = 64
    """responses that a rank generates together; does not change what is sampled"""


class TrainConfig(Section):
    """`crl llm train`: max E[R] − β KL s.t. E[transform(C_k)] ≤ limit_k."""

    seed: Seed = 0
    """of prompts, tokens, minibatches and new heads"""
    device: Device = "auto"
    """where models live; with several ranks each takes its own GPU"""
    threads: Count = 1
    """torch threads of each process"""
    policy: ModelSource
    """start of the policy and KL reference"""
    reward: ScoreSource
    """what is maximised"""
    costs: dict[str, CostSource] = Field(default_factory=dict)
    """what is bounded, by name"""
    prompts: tuple[DataSource, ...] = Field(min_length=1)
    """what the policy is trained on"""
    over_length: OverLength = "error"
    """prompts that leave no room for a response in the context: an error, or "drop" them"""
    demonstrations: tuple[DataSource, ...] = ()
    """of the PTX term (align.ptx_coefficient)"""
    critic: CriticConfig = CriticConfig()
    """values"""
    align: AlignConfig = AlignConfig()
    """constrained RL"""
    distributed: DistributedConfig = DistributedConfig()
    """processes"""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """what is kept"""
    loggers: tuple[LoggerName, ...] = ()
    """written beside metrics.jsonl: csv, tensorboard, wandb, trackio"""
    evaluation: HeldOutConfig = HeldOutConfig()
    """what is measured while training"""

    @property
    def limits(self) -> tuple[float, ...]:
        """One limit per cost: its own, or align.limit."""
        common = self.align.limit
        own = {name: source.limit for name, source in self.costs.items()}
        if isinstance(common, dict):  # a cost with a limit of its own needs no other
            common = {name: limit for name, limit in own.items() if limit is not None} | common
        shared = one_of_each("align.limit", common, tuple(own))
        return tuple(s if o is None else o for o, s in zip(own.values(), shared, strict=True))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.align.ptx_coefficient > 0 and not self.demonstrations:
            raise ValueError("align.ptx_coefficient > 0 needs demonstrations = [{path = …}]")
        if self.critic.trunk == "shared" and self.policy.lora is None:
            raise ValueError(
                "critic.trunk = 'shared' is an adapter beside the policy's: set policy.lora too"
            )
        if self.critic.trunk == "reward" and self.reward.path is None:
            raise ValueError(
                "critic.trunk = 'reward' starts from the reward model's weights, but the reward is "
                "a service; use critic.trunk = 'policy', or the path of a model"
            )
        constrain(tuple(self.costs), self.limits, self.align.constraint)
        return self
