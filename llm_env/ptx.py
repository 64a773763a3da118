"""The PTX term: a supervised loss on demonstrations beside reinforcement learning.

It keeps a policy close to what it was taught while rewards pull at it (Ouyang et al. 2022, eq. 2;
L = L_RL + c · L_PTX as in the Safe RLHF paper; its code halves the sum). Absent: pretraining text
without prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from constrained_rl.engines import Engine, LossShare
from constrained_rl.errors import InputError
from llm_env.config import AlignConfig
from llm_env.passes import ShuffledPasses
from llm_env.policy import CausalLMPolicy, context_length
from llm_env.prompts import Prompt
from llm_env.tokens import TokenRows, encode_pairs, pair_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PTX:
    """L = −c · Σ_t log π(y_t | x, y_<t) / N over the N response tokens of a batch, eos included.

    An auxiliary loss of the policy's learner: its gradient joins the clipped surrogate's before the
    one step, whatever the micro-batch size. Each policy step draws as many demonstrations as it has
    responses, in shuffled passes.

    Args:
        policy: the one that its learner's engine trains.
        tokenizer: of the policy.
        demonstrations: prompts and their responses.
        config: `ptx_coefficient` c, `prompts` and `ppo.minibatches`.
        seed: of the order of the demonstrations.
    """

    def __init__(
        self,
        policy: CausalLMPolicy,
        tokenizer: PreTrainedTokenizerBase,
        demonstrations: Sequence[tuple[Prompt, str]],
        config: AlignConfig,
        seed: int,
    ) -> None:
        if not demonstrations:
            raise InputError(
                f"ptx_coefficient is {config.ptx_coefficient:g}, but there are no demonstrations; "
                "pass demonstrations=[(prompt, response), …], or set ptx_coefficient=0"
            )
        self._policy, self._coefficient = policy, config.ptx_coefficient
        prompts = [prompt for prompt, _ in demonstrations]
        responses = [response for _, response in demonstrations]
        room = context_length(policy.model.config)
        self._examples = encode_pairs(tokenizer, prompts, responses, room)
        self._pad_id = tokenizer.pad_token_id
        self._size = math.ceil(config.prompts / config.ppo.minibatches)
        self._passes = ShuffledPasses(len(self._examples), seed)

    def shares(self, micro_batch: int | None, engine: Engine) -> list[Callable[[], LossShare]]:
        """Draw demonstrations; this rank's part of their loss in pieces of `micro_batch` rows."""
        drawn = self._passes.draw(self._size).tolist()
        rows = pair_rows([self._examples[i] for i in drawn], self._pad_id)
        rows = rows.to(self._policy.model.device)
        tokens = rows.response_mask.sum()  # of all ranks
        index, real = (x.to(rows.ids.device) for x in engine.world.padded(len(rows)))
        # rows that only fill up a rank's share weigh nothing
        weight = rows.response_mask[index] & real.unsqueeze(1)
        size = micro_batch or len(index)
        pieces = zip(torch.split(index, size), torch.split(weight, size), strict=True)
        return [partial(self._share, engine, rows[i], w, tokens) for i, w in pieces]

    def _share(self, engine: Engine, rows: TokenRows, weight: Tensor, tokens: Tensor) -> LossShare:
        logp: Tensor = engine.forward(rows, rows.response_ids)[0]
        loss = -(logp * weight).sum() / tokens
        return self._coefficient * loss, {"loss/ptx": loss.detach()}

    def state_dict(self) -> dict[str, object]:
        """Where the passes over the demonstrations stand."""
        return self._passes.state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`."""
        self._passes.load_state_dict(state)
