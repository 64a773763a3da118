"""From a training config to data, models and the loop's parts.

What is cheap to check comes first: data, tokenizer, score models; then the models that are trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, TypeAlias

import torch

from constrained_rl.distributed import World
from constrained_rl.engines import Engines
from constrained_rl.errors import InputError, Notice
from constrained_rl.ppo import Parts
from llm_env.config import AlignConfig
from llm_env.data.digests import prompt_digest
from llm_env.data.seen import name_seen
from llm_env.data_sources import DataSource, read_demonstrations, read_prompts
from llm_env.divided_generation import Division
from llm_env.lora import check_lora
from llm_env.models import (
    ModelSource,
    check_weights,
    load_tokenizer,
    read_config,
)
from llm_env.policy import prompt_room, trunk_of
from llm_env.prompt_lengths import prompts_within
from llm_env.prompts import Prompt
from llm_env.safe_rlhf import Task, require_rows, token_parts
from llm_env.score_functions import load_scores
from llm_env.score_room import Asked, require_room
from llm_env.score_sources import ScoreSource
from llm_env.training.config import DistributedConfig, TrainConfig
from llm_env.training.evaluation import HeldOut
from llm_env.training.models import build_models, from_disk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Others: TypeAlias = Callable[["PreTrainedTokenizerBase"], Sequence[Prompt]]


def no_others(_: PreTrainedTokenizerBase) -> Sequence[Prompt]:
    """Nothing is asked beside the prompts of training."""
    return ()


def build_task(config: TrainConfig, device: torch.device, others: Others = no_others) -> Task:
    """Prompts, scores and demonstrations; `others` are prompts that will be asked as well."""
    check_weights(config.policy)
    tokenizer = load_tokenizer(config.policy)
    check_trunk(config, tokenizer)
    prompts = fitting_prompts(config, config.prompts, tokenizer)
    demonstrations = read_demonstrations(config.demonstrations) if config.demonstrations else ()
    # what is known from headers and tokenizers is said before the weights of any model are read
    check_adapters(config)
    asked = Asked(tokenizer, [*prompts, *others(tokenizer)], config.align.max_new_tokens)
    require_room(score_settings(config), asked)
    reward, costs = load_scores(config.reward, config.costs, tokenizer, device)
    return Task(tokenizer, prompts, reward, costs, demonstrations)


def resolve(config: TrainConfig) -> AlignConfig:
    """The RL settings with one limit per cost."""
    return config.align.model_copy(update={"limit": config.limits})


def choose_engines(config: DistributedConfig, world: World) -> Engines:
    """What trains the models on these ranks."""
    if config.engine == "deepspeed":
        from llm_env.deepspeed_engine import deepspeed_engines
        from llm_env.deepspeed_setup import ZeRO

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
    held_out_of = cache(partial(read_held_out, config))  # files are read once
    task = build_task(config, device, held_out_of)
    held_out = held_out_of(task.tokenizer)
    align = resolve(config)
    models = build_models(config, from_disk(device))
    parts = token_parts(models, task, align, config.seed, engines)
    if not held_out:
        return parts, None
    name_seen(held_out, set(_trained(config, task)), "evaluation.prompts", "this run")
    division = Division(world, config.evaluation.batch)
    division.check(len(held_out), "evaluation.prompts")
    evaluation = HeldOut(
        task=replace(task, prompts=held_out),
        constraints=parts.constraints.constraints,
        max_new_tokens=align.max_new_tokens,
        division=division,
        seed=config.seed,
    )
    return parts, evaluation


def _trained(config: TrainConfig, task: Task) -> Iterator[bytes]:
    """Digests of the prompts that a run learns from."""
    yield from map(prompt_digest, task.prompts)
    if config.align.ptx_coefficient > 0:
        yield from (prompt_digest(prompt) for prompt, _ in task.demonstrations)


def check_trunk(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """`InputError` where a trunk from another folder reads other tokens than the policy writes."""
    source = trunk_source(config)
    if source is None:
        return
    configs = (read_config(config.policy), read_config(source))
    require_rows(*(c.get_text_config(decoder=True).vocab_size for c in configs))
    if config.critic.trunk == "reward" and config.reward.tokenizer is not None:
        if config.reward.tokenizer == "policy":
            return
        source = ModelSource(path=config.reward.tokenizer)
    theirs = load_tokenizer(source).get_vocab()
    special = set(tokenizer.all_special_tokens)
    ours = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    wrong = [word for word, i in ours if word not in special and theirs.get(word) != i]
    if wrong:
        raise InputError(
            f"critic.trunk is {config.critic.trunk!r}, whose tokenizer in {source.path} gives "
            f"{len(wrong)} of the policy's tokens another id (e.g. {wrong[0]!r}): the critic reads "
            "the policy's ids; give a trunk with the policy's tokenizer, or critic.trunk = 'policy'"
        )


def check_adapters(config: TrainConfig) -> None:
    """`InputError` where the policy or the critic cannot have the adapters asked for."""
    policy, critic = config.policy, config.critic
    check_lora(policy, policy.lora)
    if config.align.ppo.advantage != "gae":
        return
    lora = critic.lora or (policy.lora if critic.trunk == "shared" else None)
    check_lora(trunk_source(config) or policy, lora, trunk_of)


def score_settings(config: TrainConfig) -> dict[str, ScoreSource]:
    """Scores by the names of their settings."""
    return {"reward": config.reward, **{f"costs.{k}": v for k, v in config.costs.items()}}


def trunk_source(config: TrainConfig) -> ModelSource | None:
    """The folder of the critic's trunk, where it is another than the policy's."""
    if config.align.ppo.advantage != "gae" or config.critic.trunk in ("policy", "shared"):
        return None
    path = config.critic.trunk
    if path == "reward":
        assert config.reward.path is not None
        path = config.reward.path
    return ModelSource(path=path)


def read_held_out(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts of evaluations; none where none are asked for."""
    if not config.evaluation.prompts or config.evaluation.every == 0:
        return []
    return fitting_prompts(config, config.evaluation.prompts, tokenizer)[: config.evaluation.count]


def fitting_prompts(
    config: TrainConfig, sources: Sequence[DataSource], tokenizer: PreTrainedTokenizerBase
) -> list[Prompt]:
    """Distinct prompts that leave room for a response in the policy's context."""
    trunk = trunk_source(config)
    readers = [config.policy] if trunk is None else [config.policy, trunk]
    room = min(prompt_room(read_config(r), config.align.max_new_tokens) for r in readers)
    kept, dropped = prompts_within(tokenizer, read_prompts(sources), room, config.over_length)
    if dropped:
        names = ", ".join(source.path for source in sources)
        warnings.warn(
            f"{dropped} prompts of {names} have more than {room} tokens and are left out", Notice,
            stacklevel=2,
        )  # fmt: skip
    return kept
