"""The small Llama that speaks the embedded world's language, with fresh weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llm_env.comparison.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def small_llama(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """Random weights of `seed`; input and output embeddings are tied."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden,
                intermediate_size=-(-config.hidden * 8 // 3 // 16) * 16,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                max_position_embeddings=128,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
