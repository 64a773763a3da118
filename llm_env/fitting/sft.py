"""Supervised fine-tuning of a model on disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from llm_env.data_sources import read_demonstrations
from llm_env.fitting.config import SFTRunConfig
from llm_env.fitting.work import Work, read_parts
from llm_env.lora import merge_for_export, with_lora
from llm_env.models import load_causal_lm, load_tokenizer
from llm_env.sft import held_out_loss, train_sft
from llm_env.supervised import Progress


def prepare_sft(config: SFTRunConfig, device: torch.device) -> Work:
    """The fit of a config; `InputError` when data, tokenizer or model cannot be used."""
    tokenizer = load_tokenizer(config.model)
    pairs, test, about = read_parts(config, read_demonstrations)
    model = load_causal_lm(config.model, device)
    if config.model.lora is not None:
        model = with_lora(model, config.model.lora, torch.Generator().manual_seed(config.seed))

    def train(generator: torch.Generator, progress: Progress, checkpoint: Path) -> list[float]:
        return train_sft(model, tokenizer, pairs, config.fit, generator, progress, checkpoint)

    def measure() -> dict[str, Any] | None:
        if not test:
            return None
        loss, tokens = held_out_loss(model, tokenizer, test, config.fit, config.evaluation_batch)
        found = {"loss": loss, "perplexity": math.exp(loss), "tokens": tokens}
        return {"held_out": {**found, "examples": len(test)}}

    def save(folder: Path) -> None:
        merged = model if config.model.lora is None else merge_for_export(model)
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return Work(f"SFT of {Path(config.model.path).name}", about, train, measure, save)
