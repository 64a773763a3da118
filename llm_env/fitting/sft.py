"""Supervised fine-tuning of a model on disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from llm_env.data_sources import read_demonstrations
from llm_env.fitting.config import SFTRunConfig
from llm_env.fitting.work import Work, read_parts
from llm_env.lora import check_lora, merge_for_export, with_lora
from llm_env.models import check_weights, load_causal_lm, load_tokenizer, read_config
from llm_env.response_ends import save_model
from llm_env.sft import encode_demonstrations, held_out_loss, train_sft
from llm_env.supervised import Progress


def prepare_sft(config: SFTRunConfig, device: torch.device) -> Work:
    """The fit of a config; `InputError` when data, tokenizer or model cannot be used."""
    check_weights(config.model)
    check_lora(config.model, config.model.lora)
    tokenizer, shape = load_tokenizer(config.model), read_config(config.model)
    pairs, test, about = read_parts(config, read_demonstrations)
    # held-out ones too: what is wrong with them is not to show after the fit
    examples = encode_demonstrations(shape, tokenizer, pairs, config.fit)
    measured = encode_demonstrations(shape, tokenizer, test, config.fit) if test else None
    model = load_causal_lm(config.model, device)
    if config.model.lora is not None:
        model = with_lora(model, config.model.lora, torch.Generator().manual_seed(config.seed))

    def train(generator: torch.Generator, progress: Progress, checkpoint: Path) -> list[float]:
        return train_sft(model, tokenizer, examples, config.fit, generator, progress, checkpoint)

    def measure() -> dict[str, Any] | None:
        if measured is None:
            return None
        batch = config.evaluation_batch
        loss, tokens = held_out_loss(model, tokenizer, measured, config.fit, batch)
        found = {"loss": loss, "perplexity": math.exp(loss), "tokens": tokens}
        return {"held_out": {**found, "examples": len(measured)}}

    def save(folder: Path) -> None:
        merged = model if config.model.lora is None else merge_for_export(model)
        save_model(merged, tokenizer, folder)

    return Work(f"SFT of {Path(config.model.path).name}", about, train, measure, save)
