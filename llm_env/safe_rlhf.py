"""Safe RLHF (Dai et al., ICLR 2024) as one readable function.

    SFT → pairs of responses → decoupled labels → reward model, cost model → constrained RL

    max_θ E[R] − β KL(π_θ ‖ π_SFT)   s.t.   E[transform(C)] ≤ limit

Each stage is a function of its own, so that a stage can be replaced by what one already has.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from constrained_rl.assembly import assemble, constrain
from constrained_rl.constraints import Constraints
from constrained_rl.engines import Engines, feed
from constrained_rl.errors import InputError
from constrained_rl.ppo import Parts, train
from constrained_rl.protocols import Metrics, Reference
from constrained_rl.streams import stream_names
from llm_env.collectors import Score, TokenCollector, by_model
from llm_env.config import AlignConfig
from llm_env.divided_generation import Division
from llm_env.generation import generate
from llm_env.policy import CausalLMPolicy, prompt_room, response_logp, trunk_of
from llm_env.preferences import PreferenceRow, cost_pairs, reward_pairs
from llm_env.prompts import Prompt
from llm_env.ptx import PTX
from llm_env.reached import freeze_unreached
from llm_env.response_ends import Reading, end_ids
from llm_env.score_norm import ScoreNorm
from llm_env.score_training import ScoreConfig, train_score_model
from llm_env.scoring import ScoreModel, TokenCritic
from llm_env.sft import SFTConfig, train_sft
from llm_env.supervised import Progress
from llm_env.tokens import decode_responses, encode_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AnyPrompt = TypeVar("AnyPrompt", bound=Prompt)
Annotate = Callable[[Sequence[tuple[Any, str, str]]], Sequence[PreferenceRow]]
"""Label (prompt as handed in, response 0, response 1) triples in both dimensions."""


@dataclass(frozen=True)
class Data:
    """What Safe RLHF is given."""

    demonstrations: Sequence[tuple[Prompt, str]]
    pair_prompts: Sequence[Prompt]
    prompts: Sequence[Prompt]


@dataclass(frozen=True)
class SafeRLHF:
    """What it produces."""

    policy: PreTrainedModel
    sft: PreTrainedModel
    reward_model: ScoreModel
    cost_model: ScoreModel
    preferences: Sequence[PreferenceRow]
    metrics: list[Metrics]


def safe_rlhf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    annotate: Annotate,
    config: AlignConfig,
    sft: SFTConfig,
    score: ScoreConfig,
    seed: int = 0,
) -> SafeRLHF:
    """Run the whole pipeline on any Hugging Face causal LM; `model` becomes the SFT model."""
    generator = torch.Generator().manual_seed(seed)
    train_sft(model, tokenizer, data.demonstrations, sft, generator)
    pairs = sample_pairs(model, tokenizer, data.pair_prompts, config.max_new_tokens, seed)
    preferences = annotate(pairs)
    reward_model = fit_score("reward", model, tokenizer, preferences, score, seed)
    cost_model = fit_score("cost", model, tokenizer, preferences, score, seed)
    parts = alignment(
        model,
        tokenizer,
        data.prompts,
        by_model(reward_model),
        {"cost": by_model(cost_model)},
        config,
        seed,
        critic_trunk=reward_model.backbone,
        demonstrations=data.demonstrations,
    )
    metrics = list(train(parts, config.iterations))
    assert isinstance(parts.policy, CausalLMPolicy)
    return SafeRLHF(parts.policy.model, model, reward_model, cost_model, preferences, metrics)


@torch.no_grad()
def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    seed: int,
    greedy: bool = False,
    batch: int = 256,
) -> tuple[list[str], list[bool]]:
    """Responses to prompts, and whether each ended by itself rather than by length."""
    room = prompt_room(model.config, max_new_tokens)
    ids, attention = encode_prompts(tokenizer, prompts, room)
    generator = torch.Generator(model.device).manual_seed(seed)
    texts: list[str] = []
    finished: list[bool] = []
    ends, reading = end_ids(tokenizer, model), Reading.by(tokenizer)
    for start in range(0, len(ids), batch):
        part = slice(start, start + batch)
        found = generate(
            model,
            ids[part],
            attention[part],
            max_new_tokens=max_new_tokens,
            eos_id=ends,
            generator=generator,
            greedy=greedy,
        )
        read = reading(found.response, found.mask, found.finished)
        texts += decode_responses(tokenizer, *read)
        finished += found.finished.tolist()
    return texts, finished


def sample_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[AnyPrompt],
    max_new_tokens: int,
    seed: int,
) -> list[tuple[AnyPrompt, str, str]]:
    """Two sampled responses to each prompt; identical pairs say nothing and are dropped."""
    twice = [prompt for prompt in prompts for _ in range(2)]
    texts, _ = respond(model, tokenizer, twice, max_new_tokens, seed)
    triples = zip(prompts, texts[::2], texts[1::2], strict=True)
    return [(p, a, b) for p, a, b in triples if a != b and a.strip() and b.strip()]


def fit_score(
    kind: Literal["reward", "cost"],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    preferences: Sequence[PreferenceRow],
    config: ScoreConfig,
    seed: int,
    progress: Progress | None = None,
) -> ScoreModel:
    """A reward or cost model from the SFT model's trunk and the labels of its dimension."""
    generator = torch.Generator().manual_seed(seed)
    score_model = ScoreModel.from_causal_lm(model, generator=generator)
    pairs = reward_pairs(preferences) if kind == "reward" else cost_pairs(preferences)
    train_score_model(score_model, tokenizer, pairs, kind, config, generator, progress)
    return score_model


@dataclass(frozen=True)
class Models:
    """The modules that learn, and the reference of the KL term."""

    policy: CausalLMPolicy
    critic: TokenCritic | None  # None under critic-free advantages
    reference: Reference | None  # None without a KL term


@dataclass(frozen=True)
class Task:
    """What a policy is trained on."""

    tokenizer: PreTrainedTokenizerBase  # of the policy
    prompts: Sequence[Prompt]  # drawn in shuffled passes
    reward: Score  # to maximise
    costs: Mapping[str, Score]  # higher = worse, each bounded by its limit
    demonstrations: Sequence[tuple[Prompt, str]] = ()  # of the PTX term

    def constraints(self, config: AlignConfig) -> Constraints:
        """One constraint per cost."""
        return constrain(tuple(self.costs), config.limit, config.constraint)


def alignment(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    reward: Score,
    costs: Mapping[str, Score],
    config: AlignConfig,
    seed: int,
    critic_trunk: PreTrainedModel | None = None,
    demonstrations: Sequence[tuple[Prompt, str]] = (),
) -> Parts:
    """The loop's parts for a language model in memory; run them with `constrained_rl.ppo.train`.

    Args:
        model: the SFT model: start of the policy (a copy) and reference of the KL term.
        tokenizer: of the policy.
        prompts: drawn in shuffled passes.
        reward: score to maximise.
        costs: named scores, higher = worse, each bounded by its limit.
        config: RL settings.
        seed: of prompts, tokens and minibatches.
        critic_trunk: start of the critic (a copy); default: the SFT model's own trunk.
        demonstrations: (prompt, response) texts of the PTX term, read if `ptx_coefficient` > 0.
    """
    task = Task(tokenizer, prompts, reward, costs, demonstrations)
    heads = len(stream_names(task.constraints(config), config.ppo))
    trunk = trunk_of(model) if critic_trunk is None else critic_trunk
    model.eval()  # dropout in the reference alone would be paid for as KL
    critic = None
    if config.ppo.advantage == "gae":
        critic = TokenCritic(ScoreModel(copy.deepcopy(trunk), heads))  # heads start at 0
    models = Models(
        policy=CausalLMPolicy(copy.deepcopy(model)),
        critic=critic,
        reference=frozen_reference(model),
    )
    return token_parts(models, task, config, seed)


def frozen_reference(model: PreTrainedModel) -> Reference:
    """Log-probabilities under a model that is not trained."""
    return lambda rows, _: response_logp(model, rows)


def require_rows(policy: int, critic: int) -> None:
    """`InputError` where a policy can write ids for which its critic's embedding has no row."""
    if critic < policy:
        raise InputError(
            f"the policy's embedding has {policy} rows, that of the critic's trunk {critic}: the "
            f"policy could write ids that the critic cannot read; use critic.trunk = 'policy', or "
            f"save the trunk with as many rows: trunk.resize_token_embeddings({policy})"
        )


def token_parts(
    models: Models, task: Task, config: AlignConfig, seed: int, engines: Engines | None = None
) -> Parts:
    """The loop's parts from models as they are handed in; they are trained in place.

    Where an engine spreads weights over ranks, a copy of the policy acts, and is `parts.policy`.
    """
    engines = engines or Engines()
    freeze_unreached(models.policy.model)
    if models.critic is not None:
        trunk = models.critic.model.backbone
        require_rows(*(len(m.get_input_embeddings().weight) for m in (models.policy.model, trunk)))
        freeze_unreached(trunk)
    embedding = models.policy.model.get_input_embeddings().weight
    if engines.sharded and not embedding.requires_grad:
        raise InputError(
            "distributed.zero=3 takes weights apart, but the policy's frozen weights are those of "
            "its reference too; with adapters set distributed.zero to 2 or less: frozen weights "
            "have no gradients and no optimizer states to spread"
        )
    actor = copy.deepcopy(models.policy) if engines.sharded else models.policy
    collector = TokenCollector(
        actor,
        task.tokenizer,
        task.prompts,
        task.reward,
        task.costs,
        config.prompts,
        config.max_new_tokens,
        seed,
        None if config.normalize_scores == "none" else ScoreNorm(config.normalize_scores),
        config.responses_per_prompt,
        Division(engines.world, config.generation_batch),
    )
    constraints = task.constraints(config)
    modules = (models.policy, models.critic)
    parts = assemble(collector, *modules, constraints, config.multiplier, config.ppo, seed, engines)
    if engines.sharded:
        parts.policy = actor
        parts.synchronize = lambda: feed(actor, parts.policy_learner.engine)
    if config.ppo.kl_coefficient > 0:
        parts.reference = models.reference
    if config.ptx_coefficient > 0:
        parts.policy_learner.auxiliary = PTX(
            models.policy, task.tokenizer, task.demonstrations, config, seed
        )
    return parts
