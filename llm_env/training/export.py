"""A trained model as a plain folder that transformers and vLLM load, with a model card.

The folder appears complete or not at all; what it replaces stays until then. Absent: uploads, GGUF,
quantisation.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from constrained_rl.checkpoint import write_text
from constrained_rl.constraints import Constraint
from constrained_rl.evaluation import MODES
from constrained_rl.provenance import provenance
from llm_env.response_ends import save_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Card:
    """What a model card says beside the provenance."""

    base: str  # name of the folder that training started from
    constraints: tuple[Constraint, ...]
    metrics: Mapping[str, float]  # of the model's iteration, evaluation included
    config: str  # TOML
    best: bool  # chosen by the evaluation that the card reports


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, card: Card
) -> None:
    """Write model, tokenizer and README.md to `folder`, replacing what an earlier export wrote."""
    work, aside = (folder.with_name(f".{folder.name}.{end}") for end in ("tmp", "old"))
    shutil.rmtree(work, ignore_errors=True)
    try:
        save_model(model, tokenizer, work)
        write_text(work / "README.md", model_card(card))
    except Exception:
        shutil.rmtree(work, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    work.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def model_card(card: Card) -> str:
    """README.md of an exported model, with the front matter that model hubs read."""
    from huggingface_hub import ModelCardData

    front = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["safe-rlhf", "constrained-rl", "alignment"],
    )
    environment = Environment(
        loader=PackageLoader("llm_env.training", "."), undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("model_card.md").render(
        front=front.to_yaml(),
        base=card.base,
        constraints=card.constraints,
        iteration=f"{card.metrics['iteration']:g}",
        decisions=f"{card.metrics['decisions']:,.0f}",
        evaluated=evaluated(card),
        best=card.best,
        origin=provenance(),
        config=card.config.strip(),
    )


def evaluated(card: Card) -> list[dict[str, Any]]:
    """Means and 95 % intervals of the evaluation in the card's metrics, where there is one."""
    rows: list[dict[str, Any]] = []
    for mode in MODES:
        quantities = {"reward": "return"} | {
            f"{c.name}: {c.quantity}": f"estimate/{c.name}" for c in card.constraints
        }
        for name, metric in quantities.items():
            key = f"evaluation/{mode}/{metric}"
            if key in card.metrics:
                low, high = card.metrics[f"{key}/low"], card.metrics[f"{key}/high"]
                shown = {"mode": mode, "name": name, "mean": card.metrics[key]}
                rows.append(shown | {"low": low, "high": high})
    return rows
