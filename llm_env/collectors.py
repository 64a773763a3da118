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

from constrained_rl.errors import InputError, require_finite
from constrained_rl.rollout import Episodes, Rollout
from llm_env.generation import Generation, generate
from llm_env.policy import CausalLMPolicy, prompt_room
from llm_env.scoring import ScoreModel, Scorer, model_scores
from llm_env.tokens import TokenRows, check_tokenizer, decode_responses, encode_prompts, join

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Responses:
    """Finished responses as a score function meets them."""

    rows: TokenRows
    prompts: list[str]
    tokenizer: PreTrainedTokenizerBase

    @property
    def texts(self) -> list[str]:
        """Response texts, special tokens left out."""
        return decode_responses(self.tokenizer, self.rows.response_ids, self.rows.response_mask)


Score: TypeAlias = Callable[[Responses], Tensor]
"""Score [B] of finished responses."""


def by_model(model: ScoreModel) -> Score:
    """Score by a model that shares the policy's tokenizer."""
    return lambda responses: model_scores(model, responses.rows)


def by_text(scorer: Scorer) -> Score:
    """Score by any callable on (prompts, responses)."""

    def score(responses: Responses) -> Tensor:
        found = torch.as_tensor(scorer(responses.prompts, responses.texts))
        if found.shape != (len(responses.prompts),):
            raise InputError(
                f"the scorer returned shape {tuple(found.shape)} for {len(responses.prompts)} "
                "responses; return one number per response"
            )
        return found

    return score


class TokenCollector:
    """Generates and scores `batch` responses per iteration."""

    def __init__(
        self,
        policy: CausalLMPolicy,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        reward: Score,
        costs: Mapping[str, Score],
        batch: int,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        check_tokenizer(tokenizer)
        self._policy, self._tokenizer, self._prompts = policy, tokenizer, list(prompts)
        self._reward, self._costs = reward, tuple(costs.values())
        self.cost_names = tuple(costs)
        self._batch, self._max_new_tokens = batch, max_new_tokens
        room = prompt_room(policy.model.config, max_new_tokens)
        self._ids, self._attention = encode_prompts(tokenizer, self._prompts, room)
        device = policy.model.device
        self._sampler = torch.Generator(device).manual_seed(seed)
        self._shuffler = torch.Generator().manual_seed(seed)
        self._order = torch.zeros(0, dtype=torch.long)

    def collect(self) -> Rollout:
        """Draw prompts, decode, score."""
        index = self._draw()
        attention = self._attention[index]
        width = int(attention.sum(1).max())  # prompts are left-padded to the longest of all
        prompt_ids, attention = self._ids[index, -width:], attention[:, -width:]
        generation = generate(
            self._policy.model,
            prompt_ids,
            attention,
            max_new_tokens=self._max_new_tokens,
            eos_id=self._tokenizer.eos_token_id,
            generator=self._sampler,
        )
        rows = join(prompt_ids, attention, generation.response, generation.mask)
        responses = Responses(rows, [self._prompts[i] for i in index.tolist()], self._tokenizer)
        # float32 whatever a scorer counts in: discounts take the dtype of the streams
        reward = require_finite("reward scores", self._reward(responses).to(generation.logp))
        costs = [
            require_finite("cost scores", cost(responses).to(generation.logp))
            for cost in self._costs
        ]
        cost = torch.stack(costs, -1) if costs else reward.new_zeros(len(reward), 0)
        rollout = token_rollout(rows, generation, reward, cost)
        # Exact in float32 (it differs from a recomputation by rounding only); reduced precision
        # decodes and trains with different roundings, so there it is computed again.
        exact = torch.finfo(self._policy.model.dtype).bits >= 32
        return rollout if exact else replace(rollout, behaviour_logp=None)

    def _draw(self) -> Tensor:
        """Indices of the next prompts, in shuffled passes."""
        while len(self._order) < self._batch:
            fresh = torch.randperm(len(self._prompts), generator=self._shuffler)
            self._order = torch.cat([self._order, fresh])
        index, self._order = self._order[: self._batch], self._order[self._batch :]
        return index

    def at_checkpoint(self, seed: int) -> None:
        """Nothing is under way between iterations."""

    def state_dict(self) -> dict[str, object]:
        """Random states and the prompts still to come in this pass."""
        return {
            "sampler": self._sampler.get_state(),
            "shuffler": self._shuffler.get_state(),
            "order": self._order,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`."""
        sampler, shuffler, order = state["sampler"], state["shuffler"], state["order"]
        assert isinstance(sampler, Tensor)
        assert isinstance(shuffler, Tensor)
        assert isinstance(order, Tensor)
        self._sampler.set_state(sampler)
        self._shuffler.set_state(shuffler)
        self._order = order.clone()


def token_rollout(
    rows: TokenRows,
    generation: Generation,
    reward: Tensor,  # [B]
    cost: Tensor,  # [B, K]
) -> Rollout:
    """Scores on the last token of each response; every row is one terminated episode."""
    mask = generation.mask
    index = torch.arange(len(mask), device=mask.device)
    end = mask.sum(1) - 1
    at_end = torch.zeros_like(mask)
    at_end[index, end] = True
    reasons = tuple("eos" if ended else "length" for ended in generation.finished.tolist())
    return Rollout(
        obs=rows,
        action=generation.response,
        reward=at_end * reward.unsqueeze(1),
        cost=at_end.unsqueeze(-1) * cost.unsqueeze(1),
        terminated=at_end,
        done=at_end,
        mask=mask,
        episodes=Episodes(reward, cost, end + 1, index, end, reasons),
        exchangeable=False,
        behaviour_logp=generation.logp,
    )
