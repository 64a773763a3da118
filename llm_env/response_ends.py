"""Which tokens end a response, and what do scores read of one?

A response ends with the tokenizer's eos, or with any other id in the generation settings of its
model (`generation_config.eos_token_id`: chat models end a turn with such an id). These ids are a
property of a model, so those read from its folder are kept with its tokenizer, also on disk.

Scores are trained on responses that end with eos, so whichever token ended a response stands as eos
in what they read. Ids behind the tokenizer's last one, rows that only pad an embedding, have no
text and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from llm_env.score_files import damaged, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

KEPT = "end_token_ids"
"""what tokenizer_config.json calls the ids beside eos"""


def end_ids(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> tuple[int, ...]:
    """Ids that end a response: the tokenizer's eos first, then those its model lists."""
    of_model = None if model is None else model.generation_config.eos_token_id
    found = [tokenizer.eos_token_id, *listed(tokenizer.init_kwargs.get(KEPT)), *listed(of_model)]
    return tuple(dict.fromkeys(found))


def listed(ids: int | Iterable[int] | None) -> list[int]:
    """`eos_token_id` of a config as a list: it may be one id, several, or none."""
    many = [] if ids is None else [ids] if isinstance(ids, int) else ids
    return [int(i) for i in many if int(i) >= 0]


def ends_of(config: PreTrainedConfig) -> list[int]:
    """End ids of a model that has no other generation settings than its config."""
    from transformers import GenerationConfig

    return listed(GenerationConfig.from_model_config(config).eos_token_id)


def keep_end_ids(
    tokenizer: PreTrainedTokenizerBase, folder: Path, config: PreTrainedConfig
) -> None:
    """Keep the end ids of a model's folder with its tokenizer, in place of what it kept before."""
    path = folder / "generation_config.json"
    told = read_json(path).get("eos_token_id") if path.is_file() else ends_of(config)
    try:
        ids = listed(told)
    except (TypeError, ValueError) as error:
        raise damaged(folder, f"generation_config.json has eos_token_id {told!r}") from error
    tokenizer.init_kwargs.pop(KEPT, None)
    if set(ids) - {tokenizer.eos_token_id}:
        tokenizer.init_kwargs[KEPT] = ids


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> None:
    """Write a model and its tokenizer so that `generate()` stops where responses ended here."""
    ids = end_ids(tokenizer, model)
    if set(listed(model.generation_config.eos_token_id)) != set(ids):
        model.generation_config.eos_token_id = list(ids) if len(ids) > 1 else ids[0]
    state_eos(model.config, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def state_eos(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokenizer's eos into a model's config, unless that lists it already."""
    # beside an image encoder: the whole's and the text's, of which one may have no such key
    for part in (config, config.get_text_config(decoder=True)):
        keys = part.to_dict()
        if "eos_token_id" in keys and tokenizer.eos_token_id not in listed(keys["eos_token_id"]):
            part.eos_token_id = tokenizer.eos_token_id


@dataclass(frozen=True)
class Reading:
    """How generated ids become what scores read."""

    eos: int
    known: int  # ids 0 … known − 1 have a text

    @classmethod
    def by(cls, tokenizer: PreTrainedTokenizerBase) -> Self:
        """As a tokenizer reads."""
        return cls(tokenizer.eos_token_id, max(tokenizer.get_vocab().values()) + 1)

    def __call__(
        self,
        response: Tensor,  # [B, T]
        mask: Tensor,  # [B, T] bool, of chosen tokens
        ended: Tensor,  # [B] bool, by a token and not by length
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask as scores read them: the end as eos, ids without a text not at all."""
        place = torch.arange(response.shape[1], device=response.device)
        at_end = ended.unsqueeze(1) & (place == mask.sum(1, keepdim=True) - 1)
        unknown = (response >= self.known) & ~at_end
        # what is masked is fed all the same, so it must be an id that every embedding has
        return torch.where(at_end | unknown, self.eos, response), mask & ~unknown
