"""Reward and cost models fitted to preferences, from a language model or a score model on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from constrained_rl.errors import InputError
from llm_env.category_pairs import cost_pair_of
from llm_env.data.lazy import View
from llm_env.data_sources import (
    OpenSource,
    read_category_pairs,
    read_cost_pairs,
    read_reward_pairs,
)
from llm_env.fitting.config import ScoreRunConfig
from llm_env.fitting.work import Work, read_parts
from llm_env.lora import check_lora, merge_for_export, with_lora
from llm_env.models import (
    ModelSource,
    check_weights,
    load_causal_lm,
    load_tokenizer,
    read_config,
)
from llm_env.policy import trunk_of
from llm_env.score_formats import Role, detect_format, folder_read_as, load_score_model
from llm_env.score_rows import ReadAs, note, score_rows
from llm_env.score_training import (
    LabelledPairs,
    Pair,
    head_accuracies,
    label_rows,
    require_labels,
    train_score_model,
)
from llm_env.scoring import ScoreModel
from llm_env.supervised import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare_score(config: ScoreRunConfig, device: torch.device) -> Work:
    """The fit of a config; `InputError` when data, tokenizer or model cannot be used."""
    source = _of_tokenizer(config)
    if config.model is not None:
        check_weights(config.model)
        check_lora(config.model, config.model.lora, trunk_of)
    tokenizer, shape = load_tokenizer(source), read_config(source)
    if config.model is None:
        note(shape, folder_read_as(source.path, detect_format(source.path)) or ReadAs())
    rows = score_rows(tokenizer, shape)
    tokenizer = rows.tokenizer
    pairs, test, about = read_parts(config, _reader(config))
    names = _names(config)

    def labelled(found: Sequence[Pair]) -> LabelledPairs:
        return label_rows(rows, found, config.kind, config.fit, len(names))

    # held-out ones too: what is wrong with them is not to show after the fit
    examples, measured = labelled(pairs), labelled(test) if test else None
    require_labels(examples, names, config.kind, config.fit)
    model = _start(config, device)

    def train(generator: torch.Generator, progress: Progress, checkpoint: Path) -> list[float]:
        return train_score_model(
            model, tokenizer, examples, config.kind, config.fit, generator, progress, checkpoint
        )

    def measure() -> dict[str, Any] | None:
        if measured is None:
            return None
        found = head_accuracies(
            model, tokenizer, measured, config.kind, config.fit, config.evaluation_batch
        )
        named = dict(zip(names, map(asdict, found), strict=True))
        return {"pairs": len(measured.lengths), "scores": named}

    def save(folder: Path) -> None:
        _save(model, tokenizer, config, folder)

    return Work(f"{config.kind} model", about, train, measure, save)


def _reader(config: ScoreRunConfig) -> Callable[..., Sequence[Pair]]:
    """What makes pairs of the kind that is wanted."""

    def one_category(
        sources: Sequence[OpenSource], keep: Callable[[bytes], bool] | None = None
    ) -> Sequence[Pair]:
        pairs = read_category_pairs(sources, config.categories, keep)
        return View(pairs, lambda pair: cost_pair_of(pair, 0))

    def categories(
        sources: Sequence[OpenSource], keep: Callable[[bytes], bool] | None = None
    ) -> Sequence[Pair]:
        return read_category_pairs(sources, config.categories, keep)

    match config.kind:
        case "reward":
            return read_reward_pairs
        case "cost":
            return one_category if config.categories else read_cost_pairs
        case "costs":
            return categories


def _names(config: ScoreRunConfig) -> tuple[str, ...]:
    """Names of the scores."""
    return tuple(config.categories) or (config.kind,)


def _of_tokenizer(config: ScoreRunConfig) -> ModelSource:
    """Where the tokenizer is, with the format of prompts."""
    if config.model is not None:
        return config.model
    assert config.score_model is not None
    return ModelSource(path=config.score_model, template_date=config.template_date)


def _start(config: ScoreRunConfig, device: torch.device) -> ScoreModel:
    """The score model that the fit begins with."""
    generator = torch.Generator().manual_seed(config.seed)
    names = _names(config)
    if config.model is None:
        assert config.score_model is not None
        role: Role = "reward" if config.kind == "reward" else "cost"
        model = load_score_model(config.score_model, role=role).to(device)
        if config.kind == "costs" and model.names != names:
            raise InputError(
                f"{config.score_model} has the scores {', '.join(model.names) or model.heads}, but "
                f"categories are {', '.join(names)}; give the same names in the same order"
            )
        return model
    start = load_causal_lm(config.model, device)
    model = ScoreModel.from_causal_lm(start, names, generator=generator)
    if config.model.lora is not None:
        model.backbone = with_lora(model.backbone, config.model.lora, generator)
    return model


def _save(
    model: ScoreModel, tokenizer: PreTrainedTokenizerBase, config: ScoreRunConfig, folder: Path
) -> None:
    """Write the model with its adapter merged."""
    if config.model is not None and config.model.lora is not None:
        model.backbone = merge_for_export(model.backbone)
    model.save_pretrained(folder, tokenizer)
