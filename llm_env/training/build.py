"""From a training config to data, models and the loop's parts.

What is cheap to check comes first: data, tokenizer, score models; then the models that are trained.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from constrained_rl.distributed import World
from constrained_rl.engines import Engines
from constrained_rl.errors import InputError, Notice
from constrained_rl.ppo import Parts, stream_names
from llm_env.config import AlignConfig
from llm_env.data_sources import DataSource, read_demonstrations, read_prompts
from llm_env.lora import reference_of, with_lora
from llm_env.models import load_causal_lm, load_tokenizer, read_config
from llm_env.policy import CausalLMPolicy, prompt_room
from llm_env.prompt_lengths import prompts_within
from llm_env.prompts import Prompt
from llm_env.recompute import recompute_activations
from llm_env.safe_rlhf import Models, Task, frozen_reference, token_parts
from llm_env.score_formats import load_score_model
from llm_env.score_sources import load_scores
from llm_env.scoring import ScoreModel, TokenCritic
from llm_env.training.config import DistributedConfig, TrainConfig
from llm_env.training.evaluation import HeldOut

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def build_task(config: TrainConfig, device: torch.device) -> Task:
    """Prompts, scores and demonstrations."""
    tokenizer = load_tokenizer(config.policy)
    prompts = fitting_prompts(config, config.prompts, tokenizer)
    demonstrations = read_demonstrations(config.demonstrations) if config.demonstrations else ()
    reward, costs = load_scores(config.reward, config.costs, tokenizer, device)
    return Task(tokenizer, prompts, reward, costs, demonstrations)


def build_models(config: TrainConfig, heads: int, device: torch.device) -> Models:
    """Policy, critic with `heads` value heads, and KL reference.

    Under LoRA the policy and a shared critic are twins of the loaded model, whose weights they
    hold, and the reference is the policy without its adapter.
    """
    generator = torch.Generator().manual_seed(config.seed)  # of fresh adapters
    start = load_causal_lm(config.policy, device)
    policy, reference = start, None
    if config.policy.lora is not None:
        policy = with_lora(start, config.policy.lora, generator)
        reference = reference_of(policy)
    elif config.align.ppo.kl_coefficient > 0:
        reference = frozen_reference(copy.deepcopy(start).requires_grad_(False))
    critic = None
    if config.align.ppo.advantage == "gae":
        critic = TokenCritic(ScoreModel(critic_trunk(config, start, generator), heads))
    return Models(CausalLMPolicy(policy), critic, reference)


def critic_trunk(
    config: TrainConfig, start: PreTrainedModel, generator: torch.Generator
) -> PreTrainedModel:
    """What the critic reads states with; its heads are new."""
    trunk = base_trunk(config, start)
    lora = config.critic.lora
    if config.critic.trunk == "shared":
        lora = lora or config.policy.lora
    return trunk if lora is None else with_lora(trunk, lora, generator)


def base_trunk(config: TrainConfig, start: PreTrainedModel) -> PreTrainedModel:
    """The trunk before adapters, on the policy's device and in its precision."""
    trunk: PreTrainedModel
    match config.critic.trunk:
        case "shared":
            return start.base_model
        case "policy":
            trunk = copy.deepcopy(start.base_model)
        case "reward":
            assert config.reward.path is not None
            trunk = load_score_model(config.reward.path, config.reward.format).backbone
            trunk = trunk.to(start.device, start.dtype)
            if config.policy.gradient_checkpointing:
                recompute_activations(trunk)
        case path:
            source = config.policy.model_copy(update={"path": path})
            trunk = load_causal_lm(source, start.device).base_model
    return trunk.requires_grad_(True)


def resolve(config: TrainConfig) -> AlignConfig:
    """The RL settings with one limit per cost."""
    return config.align.model_copy(update={"limit": config.limits})


def choose_engines(config: DistributedConfig, world: World) -> Engines:
    """What trains the models on these ranks."""
    if config.engine == "deepspeed":
        from llm_env.deepspeed_engine import ZeRO, deepspeed_engines

        return deepspeed_engines(world, ZeRO(config.zero, config.offload_optimizer))
    if config.zero > 0 or config.offload_optimizer:
        raise InputError(
            "distributed.zero and distributed.offload_optimizer are DeepSpeed's; set "
            "distributed.engine='deepspeed', or leave them at 0 and false"
        )
    return Engines(world)


def build(config: TrainConfig, world: World) -> tuple[Parts, HeldOut | None]:
    """The loop's parts, and the held-out prompts where there are some."""
    torch.set_num_threads(config.threads)
    device, engines = world.device, choose_engines(config.distributed, world)
    task = build_task(config, device)
    held_out = read_held_out(config, task.tokenizer)
    align = resolve(config)
    constraints = task.constraints(align)
    models = build_models(config, len(stream_names(constraints, align.ppo)), device)
    parts = token_parts(models, task, align, config.seed, engines)
    if not held_out:
        return parts, None
    evaluation = HeldOut(
        task=replace(task, prompts=held_out),
        constraints=constraints.constraints,
        max_new_tokens=align.max_new_tokens,
        batch=config.evaluation.batch,
        seed=config.seed,
    )
    return parts, evaluation


def read_held_out(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts of evaluations; none where none are asked for."""
    if not config.evaluation.prompts or config.evaluation.every == 0:
        return []
    return fitting_prompts(config, config.evaluation.prompts, tokenizer)[: config.evaluation.count]


def fitting_prompts(
    config: TrainConfig, sources: Sequence[DataSource], tokenizer: PreTrainedTokenizerBase
) -> list[Prompt]:
    """Distinct prompts that leave room for a response in the policy's context."""
    room = prompt_room(read_config(config.policy), config.align.max_new_tokens)
    kept, dropped = prompts_within(tokenizer, read_prompts(sources), room, config.over_length)
    if dropped:
        names = ", ".join(source.path for source in sources)
        warnings.warn(
            f"{dropped} prompts of {names} have more than {room} tokens and are left out", Notice,
            stacklevel=2,
        )  # fmt: skip
    return kept
