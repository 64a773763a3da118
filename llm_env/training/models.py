"""Which models does a training config make, and which of them share weights?

How a model comes to be is handed in: training reads it from disk, and a plan (llm_env/plan/) makes
its shapes alone, by the same lines. Absent: score models, which are not trained
(score_sources.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from constrained_rl.assembly import constrain
from constrained_rl.streams import stream_names
from llm_env.lora import reference_of, with_lora
from llm_env.models import ModelSource, load_causal_lm
from llm_env.policy import CausalLMPolicy, trunk_of
from llm_env.recompute import recompute_activations
from llm_env.safe_rlhf import Models, frozen_reference
from llm_env.score_formats import load_score_model
from llm_env.score_sources import ScoreSource
from llm_env.scoring import ScoreModel, TokenCritic
from llm_env.training.config import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Loaders:
    """How models come to be."""

    causal_lm: Callable[[ModelSource], PreTrainedModel]
    score_model: Callable[[ScoreSource], ScoreModel]


def from_disk(device: torch.device) -> Loaders:
    """Models with their weights, causal ones on `device`."""
    return Loaders(partial(load_causal_lm, device=device), read_score_model)


def read_score_model(source: ScoreSource) -> ScoreModel:
    """A score model on the CPU, in the precision that it was saved in."""
    assert source.path is not None
    return load_score_model(source.path, source.format)


def build_models(config: TrainConfig, loaders: Loaders) -> Models:
    """Policy, critic with a value head for each stream, and KL reference.

    Under LoRA the policy and a shared critic are twins of the loaded model, whose weights they
    hold, and the reference is the policy without its adapter.
    """
    generator = torch.Generator().manual_seed(config.seed)  # of fresh adapters
    start = loaders.causal_lm(config.policy)
    policy, reference = start, None
    if config.policy.lora is not None:
        policy = with_lora(start, config.policy.lora, generator)
        reference = reference_of(policy)
    elif config.align.ppo.kl_coefficient > 0:
        reference = frozen_reference(copy.deepcopy(start).requires_grad_(False))
    critic = None
    if config.align.ppo.advantage == "gae":
        trunk = critic_trunk(config, start, loaders, generator)
        critic = TokenCritic(ScoreModel(trunk, value_heads(config)))
    return Models(CausalLMPolicy(policy), critic, reference)


def value_heads(config: TrainConfig) -> int:
    """Streams that a critic predicts."""
    constraints = constrain(tuple(config.costs), config.limits, config.align.constraint)
    return len(stream_names(constraints, config.align.ppo))


def critic_trunk(
    config: TrainConfig, start: PreTrainedModel, loaders: Loaders, generator: torch.Generator
) -> PreTrainedModel:
    """What the critic reads states with; its heads are new."""
    trunk = base_trunk(config, start, loaders)
    lora = config.critic.lora
    if config.critic.trunk == "shared":
        lora = lora or config.policy.lora
    return trunk if lora is None else with_lora(trunk, lora, generator)


def base_trunk(config: TrainConfig, start: PreTrainedModel, loaders: Loaders) -> PreTrainedModel:
    """The trunk before adapters, on the policy's device and in its precision."""
    trunk: PreTrainedModel
    match config.critic.trunk:
        case "shared":
            return trunk_of(start)
        case "policy":
            trunk = copy.deepcopy(trunk_of(start))
        case "reward":
            trunk = loaders.score_model(config.reward).backbone.to(start.device, start.dtype)
            if config.policy.gradient_checkpointing:
                recompute_activations(trunk)
        case path:
            source = config.policy.model_copy(update={"path": path})
            trunk = trunk_of(loaders.causal_lm(source))
    return trunk.requires_grad_(True)
