"""Batched decoding of whole responses, with the exact log-probability of every chosen token.

Prefill once, then one token per step over a preallocated key-value cache; rows that have finished
leave the batch once a share of it has, and return to their places at the end. The log-probability
is read from the step that chose the token, at temperature 1 and in float32: the quantity that
`CausalLMPolicy` computes. Every random number comes from the generator handed in, one per row and
step, so neither dropping rows nor the device changes what is sampled.
Absent: beams, top-k/top-p and penalties, which make log π something else than what training sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from constrained_rl.errors import InputError, require_finite
from llm_env.policy import context_length, forward_parameters, position_argument
from llm_env.tokens import position_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DROP_SHARE = 0.25  # of the batch that has to be finished before it is worth copying the cache


@dataclass(frozen=True)
class Generation:
    """Responses in the order of their prompts; T is the longest response."""

    response: Tensor  # [B, T] long, filled with eos behind the end
    mask: Tensor  # [B, T] bool, True for tokens the model chose, the one that ends it included
    logp: Tensor  # [B, T] float32 log π of the chosen token at temperature 1, 0 where masked
    finished: Tensor  # [B] bool, True where a token ended the response, not its length


@dataclass(frozen=True)
class Place:
    """Where the prompts stand in a larger batch that is decoded in pieces."""

    first: int  # the place of their first row
    total: int  # rows of the whole batch, each of which gets a random number per step


@dataclass(frozen=True)
class _Choice:
    """How a token is chosen."""

    temperature: float
    greedy: bool
    generator: torch.Generator
    place: Place


class _Written:
    """The responses so far, in the order of their prompts."""

    def __init__(self, rows: int, width: int, end_ids: Sequence[int], device: torch.device) -> None:
        self.eos_id = end_ids[0]
        self.ends = torch.tensor(end_ids, device=device)  # [E]
        self.response = torch.full((rows, width), self.eos_id, device=device)
        self.logp = torch.zeros(rows, width, device=device)
        self.length = torch.full((rows,), width, device=device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)

    def write(self, t: int, row: Tensor, token: Tensor, logp: Tensor) -> Tensor:
        """Write the tokens [b] of the given rows that have not ended; which go on, [b] bool."""
        live = ~self.finished[row]
        self.response[row, t] = torch.where(live, token, self.eos_id)
        self.logp[row, t] = torch.where(live, logp, 0.0)
        ends = (token.unsqueeze(1) == self.ends).any(1)
        ended = row[live & ends]
        self.finished[ended], self.length[ended] = True, t + 1
        return live & ~ends

    def generation(self) -> Generation:
        """Cut at the longest response."""
        require_finite("log-probabilities of generated tokens", self.logp)
        width = int(self.length.max())
        mask = torch.arange(width, device=self.length.device) < self.length.unsqueeze(1)
        return Generation(self.response[:, :width], mask, self.logp[:, :width], self.finished)


class _BufferLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer in a buffer of full width.

    A dynamic layer concatenates, hence copies everything it holds at every step; that is a quarter
    to a third of the decoding time. `keys` and `values` are views of the filled part.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.is_initialized: bool = False
        self.capacity = capacity

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new positions and return all that are filled: [B, heads, filled, width]."""
        if not self.is_initialized:
            self.is_initialized = True
            self.filled = 0
            self.buffers = tuple(
                x.new_empty(*x.shape[:2], self.capacity, x.shape[3])
                for x in (key_states, value_states)
            )
        start, self.filled = self.filled, self.filled + key_states.shape[2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self.filled] = states
        self.keys, self.values = (buffer[:, :, : self.filled] for buffer in self.buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the given rows, in the given order."""
        if self.is_initialized:
            self.buffers = tuple(buffer.index_select(0, beam_idx) for buffer in self.buffers)
            self.keys, self.values = (buffer[:, :, : self.filled] for buffer in self.buffers)


class _Decoder:
    """The rows still in the batch: their cache and the mask over what the cache holds."""

    def __init__(self, model: PreTrainedModel, attention: Tensor, max_new_tokens: int) -> None:
        self.model = model
        self.accepted = forward_parameters(model)
        self.filled = attention.shape[1]
        capacity = self.filled + max_new_tokens
        self.attention = attention.new_ones(len(attention), capacity)  # [B, P + T]
        self.attention[:, : self.filled] = attention
        self.positions = position_ids(attention)  # [B, P]
        self.cache = DynamicCache(config=model.config)
        # sliding-window, linear and shared layers keep the class their family needs
        self.cache.layers = [
            _BufferLayer(capacity) if type(layer) is DynamicLayer else layer
            for layer in self.cache.layers
        ]

    def prefill(self, ids: Tensor) -> Tensor:  # [B, P] -> [B, V]
        """Feed the prompts; logits of the first response token."""
        keep = {"logits_to_keep": 1} if "logits_to_keep" in self.accepted else {}
        logits = self._forward(ids, self.attention[:, : self.filled], keep)
        if self._takes_additive_mask():
            dtype = self.cache.layers[0].keys.dtype
            additive = torch.zeros(self.attention.shape, dtype=dtype, device=ids.device)
            self.attention = additive.masked_fill(~self.attention, float("-inf"))[:, None, None]
        return logits

    def step(self, token: Tensor) -> Tensor:  # [b] -> [b, V]
        """Feed one token per row; logits of the next."""
        self.filled += 1
        self.positions = self.positions[:, -1:] + 1
        return self._forward(token.unsqueeze(1), self.attention[..., : self.filled], {})

    def keep(self, index: Tensor) -> None:
        """Drop every row that is not in `index`."""
        self.cache.reorder_cache(index)
        self.attention = self.attention[index]
        self.positions = self.positions[index]

    def _takes_additive_mask(self) -> bool:
        """Whether steps may bring the mask attention adds, [b, 1, 1, filled].

        Transformers takes it as it is, instead of building one per step and converting it per
        layer (a tenth of the time). Not so where a layer sees a window only, or where positions
        are read from the mask (ALiBi).
        """
        config = self.model.config
        return (
            config._attn_implementation == "sdpa"
            and "position_ids" in self.accepted
            and not getattr(config, "alibi", False)
            and all(type(layer) is _BufferLayer for layer in self.cache.layers)
        )

    def _forward(self, ids: Tensor, attention: Tensor, arguments: dict[str, int]) -> Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=attention,
            past_key_values=self.cache,
            use_cache=True,
            **position_argument(self.accepted, self.positions),
            **arguments,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompt_ids: Tensor,  # [B, P] left-padded
    prompt_attention: Tensor,  # [B, P] bool
    *,
    max_new_tokens: int,
    eos_id: int | Sequence[int],
    generator: torch.Generator,
    temperature: float = 1.0,
    greedy: bool = False,
    place: Place | None = None,
) -> Generation:
    """Decode a response to every prompt, by sampling or greedily.

    A response ends with the first token of `eos_id`, one id or several, which belongs to it, or
    after `max_new_tokens`; what is behind it is filled with the first of the ids. The model runs in
    the mode it is in: put it into eval mode, as `CausalLMPolicy` does.
    """
    prompt_ids, attention = (x.to(model.device) for x in (prompt_ids, prompt_attention.bool()))
    _check(model, attention, max_new_tokens, temperature)
    choice = _Choice(temperature, greedy, generator, place or Place(0, len(prompt_ids)))
    ends = [eos_id] if isinstance(eos_id, int) else eos_id
    written = _Written(len(prompt_ids), max_new_tokens, ends, model.device)
    decoder = _Decoder(model, attention, max_new_tokens)
    row = torch.arange(len(prompt_ids), device=model.device)  # [b] the row of each batch line
    logits = decoder.prefill(prompt_ids)
    for t in range(max_new_tokens):
        token, logp = _choose(logits, row, choice)
        live = written.write(t, row, token, logp)
        left = int(live.sum())
        if left == 0 or t + 1 == max_new_tokens:
            break
        if len(row) - left >= DROP_SHARE * len(row):
            decoder.keep(live.nonzero().squeeze(1))
            row, token = row[live], token[live]
        logits = decoder.step(token)
    return written.generation()


def _choose(
    logits: Tensor,  # [b, V]
    row: Tensor,  # [b]
    choice: _Choice,
) -> tuple[Tensor, Tensor]:
    """Token and its log-probability at temperature 1, each [b].

    One u per row of the whole batch is drawn, dropped rows included.
    """
    logp = torch.log_softmax(logits, dim=-1)
    if choice.greedy:
        token = logits.argmax(-1)
    else:
        drawn = uniforms(choice.place.total, choice.generator).to(logits.device)
        u = drawn[choice.place.first + row]
        scaled = logp if choice.temperature == 1 else (logits / choice.temperature).log_softmax(-1)
        token = invert(scaled, u)
    return token, logp.gather(1, token.unsqueeze(1)).squeeze(1)


def uniforms(rows: int, generator: torch.Generator) -> Tensor:  # [B, 1]
    """One number u per row, uniform on [0, 1), for one step."""
    return torch.rand(rows, 1, generator=generator, device=generator.device, dtype=torch.float64)


def invert(
    logp: Tensor,  # [b, V]
    u: Tensor,  # [b, 1] float64, uniform on [0, 1)
) -> Tensor:  # [b]
    """Invert the distribution function: the first token a with Σ_{v ≤ a} p_v > u.

    float64, so that the tail of a large vocabulary keeps its mass.
    """
    cdf = logp.exp().cumsum(-1, dtype=torch.float64)  # [b, V]
    token = torch.searchsorted(cdf, u * cdf[:, -1:], right=True).squeeze(1)
    return token.clamp_max(logp.shape[1] - 1)  # NaN sorts behind the last token


def _check(
    model: PreTrainedModel, attention: Tensor, max_new_tokens: int, temperature: float
) -> None:
    """Refuse what would fail, or silently go wrong, in the middle of decoding."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature is {temperature}, expected > 0; use greedy=True for 0")
    if not bool(attention[:, -1].all()):
        row = int((~attention[:, -1]).nonzero()[0])
        raise InputError(
            f"prompt {row} does not end in the last column: prompts are padded on the left; use "
            "encode_prompts"
        )
    longest = int(attention.sum(1).max())
    context = context_length(model.config)
    if context is not None and longest + max_new_tokens > context:
        raise InputError(
            f"the longest prompt has {longest} tokens and max_new_tokens is {max_new_tokens}, but "
            f"the model's context is {context}; shorten the prompts or generate fewer tokens"
        )
