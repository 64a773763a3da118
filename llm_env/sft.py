"""Supervised fine-tuning: maximize the log-probability of demonstrated responses.

L = −mean over response tokens and their eos of log π(y_t | x, y_<t); prompt tokens carry no loss.
The log-probability is the one reinforcement learning uses (policy.py). Absent: packing.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from constrained_rl.errors import InputError
from constrained_rl.sections import Count, Positive
from llm_env.policy import context_length, response_logp
from llm_env.prompts import Prompt
from llm_env.supervised import FitConfig, Progress, fit
from llm_env.token_store import Texts, TokenStore, encode_examples
from llm_env.tokens import TokenRows, check_tokenizer, encode_pairs, pair_rows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class SFTConfig(FitConfig):
    """Settings of supervised fine-tuning."""

    epochs: Count = 2
    """passes over the demonstrations"""
    learning_rate: Positive = 5e-3
    """peak step size of AdamW; 2e-5 for pretrained models of billions of parameters"""


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[tuple[Prompt, str]] | TokenStore,
    config: SFTConfig,
    generator: torch.Generator,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> list[float]:
    """Fine-tune a causal LM in place on (prompt, response) texts; return the loss of every step.

    Pairs may be tokenized already (`encode_demonstrations`). With a folder for checkpoints, a fit
    that was interrupted continues from the newest in it.
    """
    check_tokenizer(tokenizer)
    model.eval()  # no dropout: all randomness comes from the generator
    examples = _tokenized(model, tokenizer, pairs, config)

    def loss(batch: list[int]) -> Tensor:
        rows = pair_rows([examples[i] for i in batch], tokenizer.pad_token_id)
        return sft_loss(model, rows.to(model.device))

    # the loss is a mean over response tokens: micro-batches count by theirs
    weights = examples.answer_lengths
    data = [examples.digest]
    return fit(
        model, examples.lengths, loss, config, generator, progress, checkpoint, data, weights
    )


@torch.no_grad()
def held_out_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[tuple[Prompt, str]] | TokenStore,
    config: SFTConfig,
    batch_size: int,
) -> tuple[float, int]:
    """−mean log π over all response tokens of pairs, and how many tokens these are."""
    examples = _tokenized(model, tokenizer, pairs, config)
    lengths, tokens = examples.lengths, examples.answer_lengths
    places = sorted(range(len(lengths)), key=lambda place: lengths[place])
    total = 0.0
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        rows = pair_rows([examples[i] for i in batch], tokenizer.pad_token_id)
        total += float(sft_loss(model, rows.to(model.device))) * sum(tokens[i] for i in batch)
    return total / sum(tokens), sum(tokens)


def _tokenized(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[tuple[Prompt, str]] | TokenStore,
    config: SFTConfig,
) -> TokenStore:
    if isinstance(pairs, TokenStore):
        return pairs
    return encode_demonstrations(model.config, tokenizer, pairs, config)


def encode_demonstrations(
    model: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[tuple[Prompt, str]],
    config: SFTConfig,
) -> TokenStore:
    """Token ids of all pairs that fit `model`'s context.

    Raises:
        InputError: there are none, or some do not fit and may not be dropped.
    """
    limit = config.max_tokens or context_length(model)
    texts: Texts[tuple[Prompt, str]] = Texts(lambda pair: (pair[0], pair[1:]))
    encoded = encode_examples(
        partial(encode_pairs, tokenizer), pairs, texts, limit, config.over_length
    )
    if not encoded.stores:
        raise InputError("there are no examples to train on; expected at least one")
    return encoded.stores[0]


def sft_loss(model: PreTrainedModel, rows: TokenRows) -> Tensor:
    """−Σ_t mask_t log π_t / Σ_t mask_t: mean over all response tokens of the batch."""
    mask = rows.response_mask
    return -(response_logp(model, rows) * mask).sum() / mask.sum().clamp_min(1)
