"""The fused collector: whole responses in one batched decode, scored once, as a `Rollout`.

A row is a prompt and its response; a decision is a token. Reward and cost fall on the last token,
which is always terminal: a response that ends by length is a complete episode. Prompts come in
shuffled passes over the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from constrained_rl.costs import function_name
from constrained_rl.devices import restore_generator
from constrained_rl.distributed import World
from constrained_rl.errors import InputError, NonFiniteError, require_finite, short
from constrained_rl.rollout import Episodes, Rollout
from llm_env.divided_generation import Division, gather_generation, generate_own
from llm_env.generation import Generation
from llm_env.passes import ShuffledPasses
from llm_env.policy import CausalLMPolicy, context_length, prompt_room
from llm_env.prompts import Prompt
from llm_env.response_ends import Reading, end_ids
from llm_env.score_norm import ScoreNorm
from llm_env.scoring import ScoreModel, Scorer, model_scores
from llm_env.tokens import TokenRows, check_tokenizer, decode_responses, encode_prompts, join

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Responses:
    """Finished responses as a score function meets them."""

    rows: TokenRows  # as `Reading` makes them: ended by eos, whichever token did
    prompts: Sequence[Prompt]  # as handed in
    tokenizer: PreTrainedTokenizerBase

    @property
    def texts(self) -> list[str]:
        """Response texts, special tokens left out."""
        return decode_responses(self.tokenizer, self.rows.response_ids, self.rows.response_mask)

    def show(self, index: int) -> str:
        """One response and its prompt, for a message."""
        return f"{short(self.texts[index])} to {short(self.prompts[index])}"


Score: TypeAlias = Callable[[Responses], Tensor]
"""Score [B] of finished responses."""


@dataclass(frozen=True, eq=False)
class ModelScore:
    """Score by a model that shares the policy's tokenizer."""

    model: ScoreModel

    def __call__(self, responses: Responses) -> Tensor:  # [B]
        """Scores of finished responses; `InputError` where a row is longer than the context."""
        context, rows = context_length(self.model.backbone.config), responses.rows
        # to count tokens waits for the device: only where padding might be all that is too much
        if context is not None and rows.ids.shape[1] > context:
            longest = int(rows.attention.sum(1).max())
            if longest > context:
                raise InputError(
                    f"a score model sees {context} tokens, but a prompt and its response have "
                    f"{longest}; shorten max_new_tokens or the prompts, or score by a model that "
                    "sees more"
                )
        return model_scores(self.model, rows)


def by_model(model: ScoreModel) -> Score:
    """Score by a model that shares the policy's tokenizer."""
    return ModelScore(model)


def require_kinds(reward: Score, costs: Mapping[str, Score]) -> None:
    """`InputError` where a model that was trained as a cost is the reward, or the other way."""
    uses = [("reward", "reward", reward), *(("cost", f"cost {n!r}", c) for n, c in costs.items())]
    for role, name, score in uses:
        kind = score.model.kind if isinstance(score, ModelScore) else None
        if kind not in (None, role):
            raise InputError(
                f"the {name} is a model that was trained as a {kind}: higher is "
                f"{'better' if kind == 'reward' else 'worse'} there; hand in the {role} model, or "
                "a function of responses that negates it"
            )


def by_text(scorer: Scorer) -> Score:
    """Score by any callable on (prompts, responses); what it does wrong is said with its name."""

    def score(responses: Responses) -> Tensor:
        called = f"score function {function_name(scorer)}"
        try:
            found = scorer(responses.prompts, responses.texts)
        except (InputError, NonFiniteError):
            raise
        except Exception as error:
            raise InputError(
                f"{called} raised {type(error).__name__}: {error}; the first of the "
                f"{len(responses.prompts)} responses it was called with is {responses.show(0)}"
            ) from error
        return one_number_each(f"result of {called}", found, responses)

    return score


def one_number_each(source: str, found: object, responses: Responses) -> Tensor:  # [B]
    """What a score function returned, as a tensor; `InputError` unless it is B real numbers."""
    count = len(responses.prompts)
    expected = f"for {count} responses; return one number per response"
    try:
        scores = torch.as_tensor(found).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the {source} is {short(found)} {expected} ({error})") from error
    if scores.shape != (count,) or scores.is_complex():
        kind = f"shape {tuple(scores.shape)} and dtype {scores.dtype}"
        raise InputError(f"the {source} has {kind} {expected}; found {short(found)}")
    return scores


def finite_scores(name: str, score: Score, responses: Responses) -> Tensor:  # [B]
    """Scores of finished responses; `NonFiniteError` names the score and the first bad response."""
    found = one_number_each(f"{name} score", score(responses), responses)
    return require_finite(f"{name} scores", found, responses.show)


class TokenCollector:
    """Generates and scores `batch` responses per iteration."""

    def __init__(
        self,
        policy: CausalLMPolicy,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        reward: Score,
        costs: Mapping[str, Score],
        batch: int,
        max_new_tokens: int,
        seed: int,
        score_norm: ScoreNorm | None = None,
        responses_per_prompt: int = 1,
        division: Division | None = None,
    ) -> None:
        check_tokenizer(tokenizer)
        require_kinds(reward, costs)
        self._division = division or Division(World())
        self._division.check(batch, "align.prompts")
        self._policy, self._tokenizer, self._prompts = policy, tokenizer, list(prompts)
        self._reward, self._costs = reward, dict(costs)
        self.cost_names = tuple(costs)
        self._batch, self._max_new_tokens = batch, max_new_tokens
        room = prompt_room(policy.model.config, max_new_tokens)
        self._ids, self._attention = encode_prompts(tokenizer, self._prompts, room)
        self._ends, self._reading = end_ids(tokenizer, policy.model), Reading.by(tokenizer)
        device = policy.model.device
        self._sampler = torch.Generator(device).manual_seed(seed)
        self._passes = ShuffledPasses(len(self._prompts), seed)
        self._score_norm = score_norm
        self._repeats = responses_per_prompt

    def collect(self) -> Rollout:
        """Draw prompts, decode, score."""
        drawn = self._passes.draw(self._batch // self._repeats)
        index = drawn.repeat_interleave(self._repeats)
        attention = self._attention[index]
        width = int(attention.sum(1).max())  # prompts are left-padded to the longest of all
        prompt_ids, attention = self._ids[index, -width:], attention[:, -width:]
        own = generate_own(
            self._policy.model,
            prompt_ids,
            attention,
            self._division,
            max_new_tokens=self._max_new_tokens,
            end_ids=self._ends,
            generator=self._sampler,
        )
        mine = self._division.world.slice(self._batch)
        read = self._reading(own.response, own.mask, own.finished)
        rows = join(prompt_ids[mine], attention[mine], *read)
        prompts = [self._prompts[i] for i in index[mine].tolist()]
        reward, costs = self._scores(Responses(rows, prompts, self._tokenizer), own.logp)
        generation = gather_generation(own, self._batch, self._division.world)
        rows = join(prompt_ids, attention, generation.response, generation.mask)
        cost = torch.stack(costs, -1) if costs else reward.new_zeros(len(reward), 0)
        learned = reward if self._score_norm is None else self._score_norm.standardize(reward)
        group = torch.arange(len(drawn), device=reward.device).repeat_interleave(self._repeats)
        rollout = replace(token_rollout(rows, generation, reward, cost, learned), group=group)
        # Exact in float32 (it differs from a recomputation by rounding only); reduced precision
        # decodes and trains with different roundings, so there it is computed again.
        exact = torch.finfo(self._policy.model.dtype).bits >= 32
        return rollout if exact else replace(rollout, behaviour_logp=None)

    def _scores(self, responses: Responses, like: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Reward and costs, each [B] of all ranks, from this rank's responses."""
        # float32 whatever a scorer counts in: discounts take the dtype of the streams
        reward = finite_scores("reward", self._reward, responses).to(like)
        costs = [
            finite_scores(f"cost {name!r}", cost, responses).to(like)
            for name, cost in self._costs.items()
        ]
        world = self._division.world
        return world.gather(reward, self._batch), [world.gather(c, self._batch) for c in costs]

    @property
    def time_limit(self) -> int:
        """Tokens of the longest response."""
        return self._max_new_tokens

    def state_dict(self) -> dict[str, object]:
        """Random states, the prompts still to come in this pass, statistics of the scores."""
        state = {"sampler": self._sampler.get_state(), **self._passes.state_dict()}
        if self._score_norm is not None:
            state["score_norm"] = self._score_norm.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`."""
        sampler = state["sampler"]
        assert isinstance(sampler, Tensor)
        restore_generator(self._sampler, sampler)
        self._passes.load_state_dict(state)
        if self._score_norm is not None:
            score_norm = state["score_norm"]
            assert isinstance(score_norm, Mapping)
            self._score_norm.load_state_dict(score_norm)


def token_rollout(
    rows: TokenRows,
    generation: Generation,
    reward: Tensor,  # [B]
    cost: Tensor,  # [B, K]
    learned: Tensor | None = None,  # [B]
) -> Rollout:
    """Scores on the last token of each response; every row is one terminated episode.

    The policy learns from `learned` where it is given (a standardised reward); the episode's return
    is `reward`.
    """
    mask = generation.mask
    index = torch.arange(len(mask), device=mask.device)
    end = mask.sum(1) - 1
    at_end = torch.zeros_like(mask)
    at_end[index, end] = True
    reasons = tuple("eos" if ended else "length" for ended in generation.finished.tolist())
    return Rollout(
        obs=rows,
        action=generation.response,
        reward=at_end * (reward if learned is None else learned).unsqueeze(1),
        cost=at_end.unsqueeze(-1) * cost.unsqueeze(1),
        terminated=at_end,
        done=at_end,
        mask=mask,
        episodes=Episodes(reward, cost, end + 1, index, end, reasons),
        exchangeable=False,
        behaviour_logp=generation.logp,
    )
