"""`crl llm plan`: what a training config needs, and whether that is there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import torch
from rich.console import Console

from constrained_rl.errors import InputError
from llm_env import score_room
from llm_env.data_sources import read_prompts
from llm_env.models import load_tokenizer, read_config
from llm_env.plan.advice import advise
from llm_env.plan.plan import Machine, make_plan
from llm_env.plan.table import as_json, print_plan
from llm_env.plan.tracer import Tracer
from llm_env.policy import prompt_room
from llm_env.tokens import encode_prompts
from llm_env.training.build import score_settings
from llm_env.training.config import TrainConfig

GIB = 2**30


@dataclass(frozen=True)
class Asked:
    """Options of the command."""

    ranks: int | None  # None: as many as the launcher starts, else 1
    prompt_tokens: int | None  # None: the longest of the config's prompts
    memory: float | None  # GiB per rank; None: what this machine has
    margin: float


def plan_command(config: TrainConfig, asked: Asked, to_json: bool) -> bool:
    """Print the plan; True unless it is known not to fit."""
    if not 0 <= asked.margin < 1:
        raise InputError(f"--margin is {asked.margin:g}, expected a share of the memory, 0 … 1")
    if asked.memory is not None and asked.memory <= 0:
        raise InputError(f"--memory is {asked.memory:g} GiB, expected more than 0")
    if asked.prompt_tokens is not None:
        require_prompt_room(config, asked.prompt_tokens)
    machine = Machine(
        ranks=asked.ranks or int(os.environ.get("WORLD_SIZE", "1")),
        prompt=asked.prompt_tokens or longest_prompt(config),
        available=None if asked.memory is None else int(asked.memory * GIB),
        margin=asked.margin,
    )
    if config.align.prompts < machine.ranks:
        raise InputError(
            f"align.prompts is {config.align.prompts}, fewer than one for each of "
            f"{machine.ranks} ranks"
        )
    tracer = Tracer()
    plan = make_plan(config, machine, tracer)
    changes = advise(config, machine, plan, tracer) if plan.fits is False else []
    if to_json:
        print(json.dumps(as_json(plan, changes), indent=2))
    else:
        print_plan(plan, changes, Console())
    return plan.fits is not False


def require_prompt_room(config: TrainConfig, tokens: int) -> None:
    """`InputError` where a prompt of so many tokens leaves no room for a response."""
    room = prompt_room(read_config(config.policy), config.align.max_new_tokens)
    if tokens > room:
        raise InputError(
            f"--prompt-tokens is {tokens}, but the policy's context leaves room for {room} beside "
            f"align.max_new_tokens = {config.align.max_new_tokens}; lower one of them"
        )


def longest_prompt(config: TrainConfig) -> int:
    """Tokens of the longest prompt that training would meet; needs tokenizers and prompts only."""
    tokenizer = load_tokenizer(config.policy)
    room = prompt_room(read_config(config.policy), config.align.max_new_tokens)
    prompts = read_prompts(config.prompts)
    _, attention = encode_prompts(tokenizer, prompts, room)
    asked = score_room.Asked(tokenizer, prompts, config.align.max_new_tokens)
    score_room.require_room(score_settings(config), asked)
    return int(attention.sum(1, dtype=torch.long).max())
