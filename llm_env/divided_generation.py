"""How is one batch of prompts decoded by several ranks, or in several pieces of memory?

Random numbers are drawn for the whole batch, one per row and step, and every piece takes those of
its rows; afterwards the generator stands where decoding all rows at once leaves it. What is sampled
therefore depends neither on the number of ranks nor on the size of the pieces, but for the rounding
of logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from constrained_rl.distributed import World
from constrained_rl.errors import InputError
from llm_env.generation import Generation, Place, generate, uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Division:
    """Who decodes which rows, and how many at a time."""

    world: World
    most: int | None = None  # rows decoded together on one rank; None: all of its rows

    def check(self, batch: int, source: str) -> None:
        """Raise `InputError` where a rank would have nothing to decode; `source` gave the rows."""
        if batch < self.world.size:
            raise InputError(
                f"{source} gives {batch}, but there are {self.world.size} ranks and each needs a "
                f"response to generate; give {self.world.size} or more, or start fewer ranks"
            )


def generate_own(
    model: PreTrainedModel,
    prompt_ids: Tensor,  # [B, P] of all ranks
    attention: Tensor,  # [B, P]
    division: Division,
    *,
    max_new_tokens: int,
    end_ids: Sequence[int],
    generator: torch.Generator,
    greedy: bool = False,
) -> Generation:
    """Responses to this rank's prompts; T is the longest response of all ranks."""
    total, own = len(prompt_ids), division.world.slice(len(prompt_ids))
    before = generator.get_state()
    parts = []
    for first in range(own.start, own.stop, division.most or total):
        rows = slice(first, min(first + (division.most or total), own.stop))
        generator.set_state(before)
        parts.append(
            generate(
                model,
                prompt_ids[rows],
                attention[rows],
                max_new_tokens=max_new_tokens,
                eos_id=end_ids,
                generator=generator,
                greedy=greedy,
                place=Place(first, total),
            )
        )
    width = division.world.maximum(max(part.response.shape[1] for part in parts))
    generator.set_state(before)
    for _ in range(width):
        uniforms(total, generator)
    return _together([_widened(part, width, end_ids[0]) for part in parts])


def gather_generation(own: Generation, rows: int, world: World) -> Generation:
    """The responses of all ranks, in the order of their prompts."""
    if world.size == 1:
        return own
    return Generation(
        response=world.gather(own.response, rows),
        mask=world.gather(own.mask, rows),
        logp=world.gather(own.logp, rows),
        finished=world.gather(own.finished, rows),
    )


def _widened(part: Generation, width: int, eos_id: int) -> Generation:
    gap = (0, width - part.response.shape[1])
    return Generation(
        response=torch.nn.functional.pad(part.response, gap, value=eos_id),
        mask=torch.nn.functional.pad(part.mask, gap, value=False),
        logp=torch.nn.functional.pad(part.logp, gap),
        finished=part.finished,
    )


def _together(parts: list[Generation]) -> Generation:
    return Generation(
        response=torch.cat([part.response for part in parts]),
        mask=torch.cat([part.mask for part in parts]),
        logp=torch.cat([part.logp for part in parts]),
        finished=torch.cat([part.finished for part in parts]),
    )
