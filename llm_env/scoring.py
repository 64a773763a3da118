"""Scores of responses and values of states: a transformer trunk with a linear head in float32.

A reward or cost model reads its score at the last real token, eos included as trained, found by
arithmetic on the attention mask and never by comparing ids: the reference implementation's
`≠ unk` mask puts the score of GPT-2 on the wrong token. A critic reads the same trunk at every
decision. Rewards and costs need no such model: any callable on texts is a `Scorer`.
Absent: statistics of scores inside a score model; RL may standardise rewards (score_norm.py).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel

from constrained_rl.errors import InputError
from constrained_rl.rollout import Rollout
from llm_env.policy import context_length, forward_parameters, position_argument
from llm_env.prompts import Prompt
from llm_env.tokens import TokenRows, encode_texts, last_real, pad, position_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEAD_FILE = "score_head.safetensors"


class Scorer(Protocol):
    """Rewards and costs may be any Python callable on (prompts, responses).

    Prompts come as they were handed in: strings, or lists of messages where they have several
    turns. `Any`, so that a callable that takes strings alone is one.
    """

    def __call__(self, prompts: Sequence[Any], responses: Sequence[str], /) -> Tensor:
        """Score [B] of each response to its prompt."""


class ScoreModel(nn.Module):
    """Transformer trunk with S linear heads. The trunk stays in eval mode: no dropout.

    Args:
        backbone: any `AutoModel` whose output has a `last_hidden_state`.
        heads: number of scores per token, S.
    """

    def __init__(self, backbone: PreTrainedModel, heads: int = 1) -> None:
        super().__init__()
        self.backbone = backbone
        width = backbone.config.hidden_size
        # OPT-350m projects its last hidden state back to the width of its embeddings
        width = getattr(backbone.config, "word_embed_proj_dim", width)
        self.head = nn.Linear(width, heads, device="meta").to_empty(device=backbone.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.train(False)

    @classmethod
    def from_causal_lm(
        cls,
        model: PreTrainedModel,
        heads: int = 1,
        *,
        zero_init: bool = False,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Start from a copy of a causal LM's trunk.

        The head starts at 0 (a critic that begins without an opinion), or normal with standard
        deviation 1/√(width + 1), so that fresh scores are of order one.
        """
        score_model = cls(copy.deepcopy(model.base_model), heads)
        if not zero_init:
            weight = score_model.head.weight
            device = torch.device("cpu") if generator is None else generator.device
            fresh = torch.randn(weight.shape, generator=generator, device=device)
            with torch.no_grad():
                weight.copy_(fresh / (weight.shape[1] + 1) ** 0.5)
        return score_model

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Load what `save_pretrained` wrote."""
        file = Path(directory) / HEAD_FILE
        if not file.is_file():
            raise InputError(
                f"{directory} is no score model: {HEAD_FILE} is missing; save one with "
                "ScoreModel.save_pretrained, or start one with ScoreModel.from_causal_lm"
            )
        try:
            head = load_file(str(file))
            backbone = AutoModel.from_pretrained(directory, local_files_only=True)
            score_model = cls(backbone, heads=len(head["bias"]))
            score_model.head.load_state_dict(head)
        except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
            raise InputError(
                f"{directory} is damaged or no score model ({error}); save it again with "
                "ScoreModel.save_pretrained"
            ) from error
        return score_model

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the trunk with its config.json as transformers does, and the head beside it."""
        self.backbone.save_pretrained(directory)
        head = {name: value.contiguous() for name, value in self.head.state_dict().items()}
        save_file(head, str(Path(directory) / HEAD_FILE))

    def train(self, mode: bool = True) -> Self:
        """Switch this wrapper; the trunk itself stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, ids: Tensor, attention: Tensor) -> Tensor:  # [B, L] -> [B, L, S]
        """Scores after every token."""
        return self.score(self.hidden(ids, attention))

    def end_score(self, ids: Tensor, attention: Tensor) -> Tensor:  # [B, L] -> [B, S]
        """Scores at each row's last real token, whichever side is padded."""
        hidden = self.hidden(ids, attention)
        row = torch.arange(len(ids), device=hidden.device)
        return self.score(hidden[row, last_real(attention).to(hidden.device)])

    def hidden(self, ids: Tensor, attention: Tensor) -> Tensor:  # [B, L] -> [B, L, width]
        """Last hidden states, positions counted without padding."""
        ids, attention = ids.to(self.head.weight.device), attention.to(self.head.weight.device)
        positions = position_argument(forward_parameters(self.backbone), position_ids(attention))
        output = self.backbone(
            input_ids=ids, attention_mask=attention, use_cache=False, **positions
        )
        states: Tensor = output.last_hidden_state
        return states

    def score(self, hidden: Tensor) -> Tensor:  # [..., width] -> [..., S]
        """Apply the head in float32, whatever the trunk computes in."""
        return nn.functional.linear(
            hidden.float(), self.head.weight.float(), self.head.bias.float()
        )


class TokenCritic(nn.Module):
    """Critic of token sequences: the S heads of one trunk predict S streams."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, obs: TokenRows) -> Tensor:  # -> [B, T, S]
        """Value of the state before each decision: column t reads the token before action t."""
        hidden = self.model.hidden(obs.ids[:, :-1], obs.attention[:, :-1])
        return self.model.score(hidden[:, obs.prompt_width - 1 :])

    def update_statistics(self, rollout: Rollout) -> None:
        """Do nothing: token ids need no running statistics."""


@torch.no_grad()
def model_scores(model: ScoreModel, rows: TokenRows, batch_size: int | None = None) -> Tensor:
    """First score [B] of generated rows, without going through text; one shared tokenizer."""
    size = batch_size or len(rows)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return torch.cat([model.end_score(part.ids, part.attention)[:, 0] for part in parts])


@torch.no_grad()
def score_texts(
    model: ScoreModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    batch_size: int = 64,
) -> Tensor:
    """First score [B] of texts, each response followed by eos; batches hold similar lengths."""
    context = context_length(model.backbone.config)
    rows = encode_texts(tokenizer, prompts, responses, context)
    scores = torch.empty(len(rows))
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(rows), batch_size):
        index = order[start : start + batch_size]
        batch = pad([rows[i] for i in index], tokenizer.pad_token_id, left=False)
        scores[index] = model.end_score(*batch)[:, 0].cpu()
    return scores
