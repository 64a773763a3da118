"""Which causal language model, and how it is held: weights, precision, attention, adapters.

Absent: downloads (a path is a folder), quantisation.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from constrained_rl.config import Count, Positive, Section
from constrained_rl.errors import InputError
from llm_env.tokens import check_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "bfloat16", "float16"]


class LoRAConfig(Section):
    """Low-rank adapters on a frozen model (Hu et al. 2022)."""

    rank: Count = 16
    """rank of the update"""
    alpha: Positive = 32.0
    """the update is scaled by alpha / rank"""
    targets: str | tuple[str, ...] = "all-linear"
    """names of the linear layers that get one"""


class ModelSource(Section):
    """A causal language model on disk."""

    path: str
    """folder that `save_pretrained` wrote: weights, config, tokenizer"""
    dtype: DType = "float32"
    """precision of the weights"""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """attention implementation"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, a third more time"""
    lora: LoRAConfig | None = None
    """train adapters and keep the weights; the KL reference is the adapter switched off"""


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer in the model's folder; `InputError` unless responses can end."""
    from transformers import AutoTokenizer

    _require_folder(source.path)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        source.path, local_files_only=True
    )
    check_tokenizer(tokenizer)
    return tokenizer


def load_causal_lm(source: ModelSource, device: torch.device) -> PreTrainedModel:
    """The model, in eval mode on `device`."""
    from transformers import AutoModelForCausalLM

    _require_folder(source.path)
    options = {} if source.attention == "auto" else {"attn_implementation": source.attention}
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        source.path, local_files_only=True, dtype=getattr(torch, source.dtype), **options
    )
    return model.to(device).eval()


def _require_folder(path: str) -> None:
    if not Path(path).is_dir():
        raise InputError(f"model folder {path} does not exist; give one that holds config.json")
