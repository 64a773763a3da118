"""A language whose responses can all be listed, and what any model thinks of each of them.

Y responses to each of X prompts: every token sequence that ends with eos within T tokens, or has T
tokens and no eos. There are Σ_{t < T} (V − 1)^t + (V − 1)^T of them, 2 801 for V = 8 and T = 4.
Absent: languages of more than a few ten thousand responses (`MOST`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from constrained_rl.errors import InputError
from llm_env.collectors import Responses, Score, finite_scores
from llm_env.enumerable.problem import Floats
from llm_env.policy import response_logp
from llm_env.response_ends import end_ids
from llm_env.tokens import TokenRows, check_tokenizer, encode_prompts, join

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST = 100_000
"""responses to a prompt that are still listed"""


@dataclass(frozen=True, eq=False)
class Language:
    """Prompts and all their responses."""

    tokenizer: PreTrainedTokenizerBase
    prompts: tuple[str, ...]
    response_ids: Tensor  # [Y, T] long, filled with eos behind the end
    response_mask: Tensor  # [Y, T] bool, the final eos included

    @property
    def rows(self) -> TokenRows:
        """All responses to the first prompt, then all to the second …: X · Y rows."""
        ids, attention = encode_prompts(self.tokenizer, self.prompts, 2**62)
        count, prompts = len(self.response_ids), len(self.prompts)
        return join(
            ids.repeat_interleave(count, 0),
            attention.repeat_interleave(count, 0),
            self.response_ids.repeat(prompts, 1),
            self.response_mask.repeat(prompts, 1),
        )

    def index(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Which responses these are: [B, t], [B, t] → [B], t ≤ T."""
        base, width = len(self.tokenizer), self.response_ids.shape[1]
        power = base ** torch.arange(width - 1, -1, -1)
        place = torch.full((base**width,), -1)
        place[self.response_ids @ power] = torch.arange(len(self.response_ids))
        whole = torch.full((len(ids), width), self.tokenizer.eos_token_id)
        whole[:, : ids.shape[1]] = torch.where(mask, ids, self.tokenizer.eos_token_id).cpu()
        return place[whole @ power]


def enumerate_language(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int
) -> Language:
    """List all responses of up to `max_new_tokens` tokens, in the order of their length."""
    check_tokenizer(tokenizer)
    eos, size = tokenizer.eos_token_id, len(tokenizer)
    count = sum((size - 1) ** t for t in range(max_new_tokens + 1))
    if count > MOST:
        raise InputError(
            f"{size} tokens and responses of {max_new_tokens} make {count:,} responses, too many "
            f"to list (at most {MOST:,}); take a smaller vocabulary or shorter responses"
        )
    words = [i for i in range(size) if i != eos]
    ids, mask = [], []
    for length in range(max_new_tokens + 1):
        for response in itertools.product(words, repeat=length):
            ids.append([*response, *[eos] * (max_new_tokens - length)])
            mask.append([t <= length for t in range(max_new_tokens)])
    return Language(tokenizer, tuple(prompts), torch.tensor(ids), torch.tensor(mask))


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, language: Language, batch: int = 4096) -> Floats:
    """Log π(y|x) [X, Y] of every response under any causal LM.

    Raises:
        InputError: they do not sum to 1, as the model can write tokens that are not listed, or it
            ends responses by other tokens than eos.
    """
    rows = language.rows
    device = model.device
    sums = [
        (response_logp(model, part.to(device)).double() * part.response_mask.to(device)).sum(1)
        for part in (rows[i : i + batch] for i in range(0, len(rows), batch))
    ]
    table: Floats = torch.cat(sums).reshape(len(language.prompts), -1).cpu().numpy()
    total = logsumexp(table, axis=1, keepdims=True)
    if abs(total).max() > 1e-3:
        raise InputError(
            f"the probabilities of all listed responses sum to {np.exp(total).min():.4f}, expected "
            f"1: the model knows {model.config.vocab_size} tokens, the tokenizer "
            f"{len(language.tokenizer)}; give a model of exactly these tokens"
        )
    ends = end_ids(language.tokenizer, model)
    if len(ends) > 1:
        raise InputError(
            f"responses of the model end with any of the ids {ends}, the listed with {ends[0]} "
            f"alone; set model.generation_config.eos_token_id = {ends[0]}"
        )
    normalized: Floats = table - total  # float32 sums to 1 within 1e-6
    return normalized


def tabulate(name: str, score: Score, language: Language) -> Floats:
    """A score of every response to every prompt: [X, Y]."""
    prompts = [prompt for prompt in language.prompts for _ in language.response_ids]
    found = finite_scores(name, score, Responses(language.rows, prompts, language.tokenizer))
    table: Floats = found.double().reshape(len(language.prompts), -1).cpu().numpy()
    return table


def by_table(language: Language, table: Floats) -> Score:
    """A score that looks responses up: [X, Y]."""
    places = {prompt: x for x, prompt in enumerate(language.prompts)}
    values = torch.as_tensor(table, dtype=torch.float32)

    def score(responses: Responses) -> Tensor:
        prompt = torch.tensor([places[str(prompt)] for prompt in responses.prompts])
        rows = responses.rows
        return values[prompt, language.index(rows.response_ids, rows.response_mask)]

    return score
