"""From a training config to samples of its reference: the run's own models, prompts and scores.

Responses are drawn and scored as in training, by the same collector. Absent: `score_clip`, which
acts on single tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from constrained_rl.config import PPOConfig
from constrained_rl.constraints import Constraint
from constrained_rl.devices import choose_device
from constrained_rl.distributed import World
from constrained_rl.errors import InputError
from llm_env.collectors import TokenCollector
from llm_env.config import AlignConfig
from llm_env.divided_generation import Division
from llm_env.enumerable.problem import Problem
from llm_env.models import load_causal_lm
from llm_env.one_shot.estimate import Samples
from llm_env.policy import CausalLMPolicy
from llm_env.safe_rlhf import Task
from llm_env.training.build import build_task, resolve
from llm_env.training.config import TrainConfig


@dataclass(frozen=True)
class Drawing:
    """How many responses are drawn."""

    prompts: int  # at most, in an order that the seed decides
    samples: int  # responses to each
    seed: int


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples, and what the problem is."""

    samples: Samples
    align: AlignConfig
    constraints: tuple[Constraint, ...]

    @property
    def problem(self) -> Problem:
        """The empirical problem of the run's limits, β and kl_streams."""
        ppo = self.align.ppo
        limit = np.array([constraint.limit for constraint in self.constraints])
        return self.samples.problem(limit, ppo.kl_coefficient, ppo.kl_streams)


def draw(config: TrainConfig, drawing: Drawing) -> Drawn:
    """Responses of the config's starting model, scored.

    Raises:
        InputError: settings under which λ is no price of an expectation, or that cannot be loaded.
    """
    align = resolve(config)
    check_settings(config, align)
    if drawing.samples < 2:
        raise InputError(f"samples is {drawing.samples}; reweighting needs at least 2 per prompt")
    device = choose_device(config.device)
    task = build_task(config, device)
    policy = CausalLMPolicy(load_causal_lm(config.policy, device))
    constraints = task.constraints(align).constraints
    return Drawn(sample(policy, task, align, constraints, drawing), align, constraints)


def check_settings(config: TrainConfig, align: AlignConfig) -> None:
    """Refuse what has no dual price, before anything is loaded."""
    ppo: PPOConfig = align.ppo
    if not config.costs:
        raise InputError("no cost was given, so nothing has a price; give --cost SCORE")
    if ppo.kl_coefficient == 0:
        raise InputError(
            "align.ppo.kl_coefficient is 0: without a KL term no reweighting of the reference is "
            "optimal; set it as the training run will"
        )
    if ppo.normalize == "streams" or ppo.advantage == "group":
        raise InputError(
            f"under ppo.normalize={ppo.normalize!r} and ppo.advantage={ppo.advantage!r} λ weighs "
            "standardised streams and is no price; use align.ppo.normalize=mixed and "
            "align.ppo.advantage=gae or leave_one_out"
        )
    if align.constraint.transform == "cvar" or align.constraint.per == "group":
        raise InputError(
            f"the constraint is transform={align.constraint.transform!r}, per="
            f"{align.constraint.per!r}: not the mean of a fixed function of single responses, "
            "which is what reweighting estimates; use identity, probability, indicator or excess"
        )


def sample(
    policy: CausalLMPolicy,
    task: Task,
    align: AlignConfig,
    constraints: tuple[Constraint, ...],
    drawing: Drawing,
) -> Samples:
    """Score `drawing.samples` responses of the policy to each prompt."""
    collector = TokenCollector(
        policy,
        task.tokenizer,
        task.prompts,
        task.reward,
        task.costs,
        drawing.samples,
        align.max_new_tokens,
        drawing.seed,
        responses_per_prompt=drawing.samples,
        division=Division(World(), align.generation_batch),
    )
    count = min(drawing.prompts, len(task.prompts))
    episodes = [collector.collect().episodes for _ in range(count)]
    reward = np.stack([found.return_.double().cpu().numpy() for found in episodes])
    if align.normalize_scores != "none":  # as the first iteration of training does
        reward = reward / reward.std()
    cost = [
        np.stack([c.value(found.cost[:, c.channel]).double().cpu().numpy() for found in episodes])
        for c in constraints
    ]
    return Samples(reward, np.stack(cost))
