"""A causal language model as a policy: log-probability and entropy of every response token.

log π(a_t | x, a_<t) = log softmax(logits at the token before a_t)[a_t], in float32 and at
temperature 1. Over a large vocabulary logits are the largest tensor of the whole step: they are
computed for the response only, and what is made of them in float32 exists for a few tokens at a
time. Absent: sampling (generation.py), value heads (scoring.py).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from constrained_rl.errors import InputError
from constrained_rl.rollout import Rollout
from llm_env.tokens import TokenRows, position_ids

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


CHUNK = 2**24  # float32 numbers over the vocabulary that exist at a time: 64 MiB


class CausalLMPolicy(nn.Module):
    """Policy of any Hugging Face causal LM. Its model stays in eval mode: no dropout in RL.

    With dropout, the probabilities of acting and of learning would differ and π/π_old ≠ 1 at the
    first step. Gradients do not need train mode.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Switch this wrapper; the language model itself stays in eval mode."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, obs: TokenRows, action: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability [B, T] and entropy [B, T] of every response position.

        H_t = −Σ_v p_v log p_v, from the one log-softmax that log π needs.
        """
        logits = response_logits(self.model, obs)
        logp, entropy = by_chunks(logp_and_entropy, logits, action)
        return logp, entropy

    def update_statistics(self, rollout: Rollout) -> None:
        """Do nothing: token ids need no running statistics."""


def response_logp(model: PreTrainedModel, rows: TokenRows) -> Tensor:
    """Log-probabilities [B, T] of the response tokens the rows hold; arbitrary where padded."""
    logits = response_logits(model, rows)
    (logp,) = by_chunks(logp_alone, logits, rows.response_ids)
    return logp


def response_log_softmax(model: PreTrainedModel, rows: TokenRows) -> Tensor:
    """Log-probabilities of all tokens at every response position: [B, T, V] float32."""
    return torch.log_softmax(response_logits(model, rows).float(), dim=-1)


def response_logits(model: PreTrainedModel, rows: TokenRows) -> Tensor:
    """Logits [B, T, V] in the model's precision; column t predicts response token t."""
    # the last token predicts nothing, so it is not fed: inputs are the columns 0 … P + T − 2
    ids, attention = rows.ids[:, :-1], rows.attention[:, :-1]
    accepted = forward_parameters(model)
    arguments = position_argument(accepted, position_ids(attention))
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = rows.decisions
    output = model(input_ids=ids, attention_mask=attention, use_cache=False, **arguments)
    logits: Tensor = output.logits[:, -rows.decisions :]
    return logits


def logp_and_entropy(logits: Tensor, action: Tensor) -> tuple[Tensor, ...]:  # [N, V], [N] -> [N]
    """Per token: log p_a and H = −Σ_v p_v log p_v, from one log-softmax in float32."""
    logp = torch.log_softmax(logits.float(), dim=-1)
    entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(-1, action.unsqueeze(-1)).squeeze(-1), entropy


def logp_alone(logits: Tensor, action: Tensor) -> tuple[Tensor, ...]:  # [N, V], [N] -> [N]
    """Per token: log p_a in float32, by one pass that never stores the log-softmax."""
    # log softmax(z)[a] = −cross_entropy(z, a)
    return (-nn.functional.cross_entropy(logits.float(), action, reduction="none"),)


def by_chunks(
    statistics: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    logits: Tensor,  # [B, T, V]
    action: Tensor,  # [B, T]
) -> tuple[Tensor, ...]:
    """Statistics [B, T] of every token, computed for a few tokens at a time.

    A chunk's float32 copies of the logits go when it is done, and are made again in the backward
    pass, so that only the logits themselves are kept. The numbers do not depend on `CHUNK`.
    """
    size = max(1, CHUNK // logits.shape[-1])
    pieces = list(
        zip(
            torch.split(logits.flatten(0, 1), size),
            torch.split(action.flatten(), size),
            strict=True,
        )
    )
    if len(pieces) == 1 or not torch.is_grad_enabled():
        parts = [statistics(*piece) for piece in pieces]
    else:
        parts = [
            checkpoint(statistics, *piece, use_reentrant=False, preserve_rng_state=False)
            for piece in pieces
        ]
    return tuple(torch.cat(part).view(action.shape) for part in zip(*parts, strict=True))


def forward_parameters(model: PreTrainedModel) -> frozenset[str]:
    """Names of the arguments that a model's forward declares.

    An adapter (PEFT) hides its model's signature behind keyword arguments and passes them on, so
    the signature asked is the one of the model inside.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(inner.forward).parameters)


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens a model can see, prompt and response together; None where its family has no limit."""
    text = config.get_text_config(decoder=True)  # of a model with an image encoder, a part
    length: int | None = getattr(text, "max_position_embeddings", None)
    return length


def trunk_of(model: PreTrainedModel) -> PreTrainedModel:
    """A causal LM without its output layer; heads read its hidden states.

    That is `base_model`, but for families whose prefix names what is around them (Llama 4).
    """
    if model.base_model is not model:
        return model.base_model
    from transformers import PreTrainedModel as Transformer

    inner = [part for part in model.children() if isinstance(part, Transformer)]
    if len(inner) != 1:
        raise InputError(
            f"{type(model).__name__} holds no trunk of its own that a value or score head could "
            "read; use another model, or critic-free advantages (ppo.advantage = 'leave_one_out')"
        )
    return inner[0]


def prompt_room(config: PreTrainedConfig, max_new_tokens: int) -> int:
    """Tokens a prompt may have so that a response still fits behind it."""
    context = context_length(config)
    if context is None:
        return sys.maxsize
    if context <= max_new_tokens:
        raise InputError(
            f"max_new_tokens is {max_new_tokens}, but the model sees {context} tokens in all; "
            "lower it so that prompts fit too"
        )
    return context - max_new_tokens


def position_argument(accepted: frozenset[str], positions: Tensor) -> dict[str, Any]:
    """Pass positions where the model knows them; ALiBi families derive theirs from the mask."""
    return {"position_ids": positions} if "position_ids" in accepted else {}
