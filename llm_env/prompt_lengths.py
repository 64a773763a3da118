"""Which prompts fit the context, with room left for a response?

Nothing is truncated: prompts that do not fit are an error that counts them, or are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from constrained_rl.errors import InputError
from llm_env.prompts import Prompt
from llm_env.token_store import OverLength
from llm_env.tokens import encode_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AnyPrompt = TypeVar("AnyPrompt", bound=Prompt)
CHUNK = 256  # prompts tokenized together


def prompts_within(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[AnyPrompt],
    room: int,
    over_length: OverLength = "error",
) -> tuple[list[AnyPrompt], int]:
    """Prompts of at most `room` tokens, and how many are longer.

    Raises:
        InputError: some are longer and may not be dropped, or all are.
    """
    kept: list[AnyPrompt] = []
    longest, where = 0, 0
    for start in range(0, len(prompts), CHUNK):
        chunk = prompts[start : start + CHUNK]
        for index, (ids, _) in enumerate(encode_pairs(tokenizer, chunk, [""] * len(chunk)), start):
            if len(ids) <= room:
                kept.append(prompts[index])
            elif len(ids) > longest:
                longest, where = len(ids), index
    dropped = len(prompts) - len(kept)
    if dropped and (over_length == "error" or not kept):
        raise InputError(
            f"{dropped} of {len(prompts)} prompts have more than {room} tokens (the model's "
            f"context less the room for a response); prompt {where} has {longest}, the most. "
            "Shorten them, lower max_new_tokens, or leave them out with over_length = 'drop'"
        )
    return kept, dropped
