"""Prompts and responses as rows of token ids, and the masks that say which of them are real.

A row is a left-padded prompt of width P followed by a right-padded response of width T, so every
response starts in the same column. Masks come from construction (who put this token here), never
from comparing ids: families in which pad, eos and unk are one token (GPT-2) work like any other.
A prompt is a string, used as it is, or several turns, rendered here at the border (prompts.py). A
response is what somebody said: control tokens that it spells are text (control_tokens.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from constrained_rl.errors import InputError
from llm_env.control_tokens import decode_said, encode_said, without_end
from llm_env.prompts import Prompt, render_prompt
from llm_env.rendered_ids import rendered_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenPair: TypeAlias = tuple[list[int], list[int]]  # prompt ids, response ids with their eos


@dataclass(frozen=True)
class TokenRows:
    """Prompt and response rows; the observation of a language model. L = P + T tokens."""

    ids: Tensor  # [B, L] long
    attention: Tensor  # [B, L] bool, True for real tokens
    prompt_width: int  # P, padding included

    def __post_init__(self) -> None:
        """Check shapes where the data are born."""
        if self.ids.ndim != 2 or self.ids.shape != self.attention.shape:
            raise InputError(
                f"token rows need ids and attention of one shape [B, L], found "
                f"{tuple(self.ids.shape)} and {tuple(self.attention.shape)}"
            )
        if not 1 <= self.prompt_width <= self.ids.shape[1]:
            raise InputError(
                f"prompt_width is {self.prompt_width}, expected 1 … {self.ids.shape[1]}: a "
                "response needs at least one token before it"
            )

    def __getitem__(self, index: Tensor | slice) -> TokenRows:
        """Select rows."""
        return TokenRows(self.ids[index], self.attention[index], self.prompt_width)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ids)

    def to(self, device: torch.device | str) -> TokenRows:
        """Move the rows."""
        return TokenRows(self.ids.to(device), self.attention.to(device), self.prompt_width)

    @property
    def decisions(self) -> int:
        """Width of the response part, T."""
        return self.ids.shape[1] - self.prompt_width

    @property
    def position_ids(self) -> Tensor:
        """Positions that do not count padding: [B, L]."""
        return position_ids(self.attention)

    @property
    def response_ids(self) -> Tensor:
        """Response tokens: [B, T]."""
        return self.ids[:, self.prompt_width :]

    @property
    def response_mask(self) -> Tensor:
        """True where a response token is real, the final eos included: [B, T]."""
        return self.attention[:, self.prompt_width :]


def position_ids(attention: Tensor) -> Tensor:  # [B, L] -> [B, L]
    """Number of real tokens before each position: cumsum(attention) − 1, at least 0.

    Without it absolute-position models see left-padded prompts at the wrong places: the logits of
    GPT-2 move by up to 0.46.
    """
    return (attention.long().cumsum(1) - 1).clamp_min(0)


def last_real(attention: Tensor) -> Tensor:  # [B, L] -> [B]
    """Index of each row's last real token, whichever side is padded."""
    if not bool(attention.any(1).all()):
        row = int((~attention.any(1)).nonzero()[0])
        raise InputError(f"row {row} holds no real token: nothing to read a score from; drop it")
    return attention.shape[1] - 1 - attention.flip(1).long().argmax(1)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure that responses can end and rows can be padded; a missing pad becomes eos."""
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer has no end-of-sequence token, so no response can end; set one that the "
            "model was trained with: tokenizer.eos_token = '</s>'"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def pad(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Pad ragged rows to a rectangle: ids [B, L] and attention [B, L]."""
    width = max((len(row) for row in rows), default=0)
    ids, attention = [], []
    for row in rows:
        gap = width - len(row)
        before, after = (gap, 0) if left else (0, gap)
        ids.append([pad_id] * before + list(row) + [pad_id] * after)
        attention.append([False] * before + [True] * len(row) + [False] * after)
    shape = (len(rows), width)
    return (
        torch.tensor(ids, dtype=torch.long).reshape(shape),
        torch.tensor(attention, dtype=torch.bool).reshape(shape),
    )


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], max_prompt_tokens: int
) -> tuple[Tensor, Tensor]:
    """Left-padded prompt ids [B, P] and attention [B, P].

    Nothing is truncated: a prompt that does not fit is the user's to shorten or to drop.
    """
    rows = encode_prompt_rows(tokenizer, prompts)
    for index, row in enumerate(rows):
        if len(row) > max_prompt_tokens:
            raise InputError(
                f"prompt {index} has {len(row)} tokens, the limit is {max_prompt_tokens} (the "
                "model's context less the room for a response); shorten it or raise the limit"
            )
    return pad(rows, tokenizer.pad_token_id, left=True)


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    max_tokens: int | None = None,
) -> list[TokenPair]:
    """Token ids of prompts and of responses with their eos.

    The two parts are tokenized apart, as generation does, so that a trained row and a generated
    row with the same text hold the same ids.
    """
    require_pairs(prompts, responses)
    if not prompts:
        return []
    answers = encode_said(tokenizer, responses)
    pairs = [
        (prompt, [*answer, tokenizer.eos_token_id])
        for prompt, answer in zip(encode_prompt_rows(tokenizer, prompts), answers, strict=True)
    ]
    require_fit(pairs, max_tokens)
    return pairs


def require_pairs(prompts: Sequence[object], responses: Sequence[object]) -> None:
    """Refuse prompts and responses that do not go in pairs."""
    if len(prompts) != len(responses):
        raise InputError(f"{len(prompts)} prompts but {len(responses)} responses; they go in pairs")


def require_fit(pairs: Sequence[TokenPair], max_tokens: int | None) -> None:
    """Refuse a pair that is longer than the limit."""
    for index, (prompt, answer) in enumerate(pairs):
        if max_tokens is not None and len(prompt) + len(answer) > max_tokens:
            raise InputError(
                f"pair {index} has {len(prompt)} + {len(answer)} tokens (prompt, response with "
                f"eos), the limit is {max_tokens}; shorten it, drop it or raise the limit"
            )


def pair_rows(pairs: Sequence[TokenPair], pad_id: int) -> TokenRows:
    """Rows of prompt and response pairs."""
    prompts = pad([prompt for prompt, _ in pairs], pad_id, left=True)
    return join(*prompts, *pad([answer for _, answer in pairs], pad_id, left=False))


def join(
    prompt_ids: Tensor,  # [B, P]
    prompt_attention: Tensor,  # [B, P] bool
    response_ids: Tensor,  # [B, T]
    response_mask: Tensor,  # [B, T] bool
) -> TokenRows:
    """Put responses behind their prompts, on the responses' device."""
    prompt_ids = prompt_ids.to(response_ids.device)
    prompt_attention = prompt_attention.to(response_ids.device)
    return TokenRows(
        ids=torch.cat([prompt_ids, response_ids], dim=1),
        attention=torch.cat([prompt_attention.bool(), response_mask.bool()], dim=1),
        prompt_width=prompt_ids.shape[1],
    )


def decode_responses(
    tokenizer: PreTrainedTokenizerBase,
    response_ids: Tensor,  # [B, T]
    response_mask: Tensor,  # [B, T] bool
) -> list[str]:
    """Texts of the real response tokens, control tokens and eos left out, spaces as they were."""
    rows = [
        ids[keep].tolist()
        for ids, keep in zip(response_ids.cpu(), response_mask.cpu().bool(), strict=True)
    ]
    # an eos that is no control token (one that was chosen) would be decoded as text
    return [decode_said(tokenizer, without_end(row, {tokenizer.eos_token_id})) for row in rows]


def encode_prompt_rows(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> list[list[int]]:
    """Prompt ids up to where the response begins; an empty prompt is an error."""
    if not prompts:
        raise InputError("no prompts were given; at least one is needed")
    said = [(prompt, "") for prompt in prompts]
    rows = rendered_ids(tokenizer, said, lambda prompt, _: render_prompt(prompt, tokenizer))
    for index, row in enumerate(rows):
        if not row:
            raise InputError(
                f"prompt {index} ({prompts[index]!r}) has no tokens: a response needs something to "
                "follow; drop it or add a beginning-of-sequence token"
            )
    return rows
