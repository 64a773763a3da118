"""Scores of responses and values of states: a transformer trunk with a linear head in float32.

A reward or cost model reads its score at the last real token of a row (score_rows.py), found by
arithmetic on the attention mask and never by comparing ids: the reference implementation's
`≠ unk` mask puts the score of GPT-2 on the wrong token. A critic reads the same trunk at every
decision. Rewards and costs need no such model: any callable on texts is a `Scorer`.
Published checkpoints of other makers are read by score_formats.py.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from constrained_rl.checkpoint import write_text
from constrained_rl.errors import InputError
from constrained_rl.rollout import Rollout
from llm_env.origins import SCORE_HEAD
from llm_env.policy import forward_parameters, position_argument, trunk_of
from llm_env.prompts import Prompt, prompt_format, with_prompt_format
from llm_env.response_ends import state_eos
from llm_env.score_files import (
    UNREADABLE,
    damaged,
    load_backbone,
    quiet_transformers,
    read_json,
)
from llm_env.score_normalizer import ScoreNormalizer
from llm_env.score_rows import ReadAs, Rows, note, noted, score_rows
from llm_env.tokens import TokenRows, last_real, pad, position_ids, require_fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEAD_FILE = SCORE_HEAD
ABOUT_FILE = "score_head.json"
"""names of the heads, what they are, and how scores are standardised"""


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
        heads: number of scores per token, S, or their names: of harm categories, for one.
        bias: whether a head adds a constant.
        normalizer: statistics of a published checkpoint; None: scores are what the head says.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        heads: int | Sequence[str] = 1,
        *,
        bias: bool = True,
        normalizer: ScoreNormalizer | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.names = () if isinstance(heads, int) else tuple(heads)
        count = heads if isinstance(heads, int) else len(heads)
        if count < 1 or len(set(self.names)) < len(self.names):
            raise InputError(f"heads is {heads!r}, expected a number ≥ 1 or names that differ")
        head = nn.Linear(score_width(backbone), count, bias=bias, device="meta")
        # float32 whatever the trunk holds: a sum over its width in bfloat16 loses two digits
        self.head = head.to_empty(device=backbone.device).float()
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)
        self.normalizer = normalizer
        self.kind: Literal["reward", "cost"] | None = None
        """what its scores are, once it was trained: higher for better, or higher for worse"""
        self.train(False)

    @property
    def heads(self) -> int:
        """Number of scores, S."""
        return self.head.out_features

    def rows(self, tokenizer: PreTrainedTokenizerBase) -> Rows:
        """How prompts and responses become the rows that it was, and is, trained on."""
        return score_rows(tokenizer, self.backbone.config)

    @property
    def read_as(self) -> ReadAs:
        """What decides how prompts and responses become its rows; kept in the trunk's config."""
        return noted(self.backbone.config.to_dict()) or ReadAs()

    @read_as.setter
    def read_as(self, read_as: ReadAs) -> None:
        note(self.backbone.config, read_as)

    @classmethod
    def from_causal_lm(
        cls,
        model: PreTrainedModel,
        heads: int | Sequence[str] = 1,
        *,
        zero_init: bool = False,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Start from a copy of a causal LM's trunk.

        The head starts at 0 (a critic that begins without an opinion), or normal with standard
        deviation 1/√(width + 1), so that fresh scores are of order one.
        """
        score_model = cls(copy.deepcopy(trunk_of(model)), heads)
        if not zero_init:
            weight = score_model.head.weight
            device = torch.device("cpu") if generator is None else generator.device
            fresh = torch.randn(weight.shape, generator=generator, device=device)
            with torch.no_grad():
                weight.copy_(fresh / (weight.shape[1] + 1) ** 0.5)
        return score_model

    @classmethod
    def from_pretrained(cls, directory: str | Path, dtype: torch.dtype | None = None) -> Self:
        """Load what `save_pretrained` wrote, the trunk in `dtype` (default: as saved)."""
        folder = Path(directory)
        if not (folder / HEAD_FILE).is_file():
            raise InputError(
                f"{directory} is no score model: {HEAD_FILE} is missing; save one with "
                "ScoreModel.save_pretrained, start one with ScoreModel.from_causal_lm, or load "
                "other formats with score_formats.load_score_model"
            )
        # folders written before heads had names lack the second file
        about = read_json(folder / ABOUT_FILE) if (folder / ABOUT_FILE).is_file() else {}
        try:
            head = load_file(str(folder / HEAD_FILE))
            weight, bias = head["weight"], head.get("bias")
            normalizer = None
            if "normalizer" in about:
                kind, active = about["normalizer"]["kind"], about["normalizer"]["active"]
                mean, var, count = (head[f"normalizer.{name}"] for name in ("mean", "var", "count"))
                normalizer = ScoreNormalizer(kind, active, mean, var, count)
        except UNREADABLE as error:
            raise damaged(folder, f"{HEAD_FILE}: {error}") from error
        score_model = cls(
            load_backbone(folder, dtype),
            about.get("names") or len(weight),
            bias=bias is not None,
            normalizer=normalizer,
        )
        score_model.kind = about.get("kind")
        score_model.load_head(weight, bias, str(directory))
        return score_model

    def load_head(self, weight: Tensor, bias: Tensor | None, source: str) -> None:
        """Take the head's weights; `InputError` unless they fit the trunk and the heads."""
        expected = tuple(self.head.weight.shape)
        if tuple(weight.shape) != expected or (bias is not None and len(bias) != len(weight)):
            found = f"{tuple(weight.shape)}" + ("" if bias is None else f", bias {len(bias)}")
            raise InputError(
                f"the score head of {source} has shape {found}, expected {expected}: the trunk's "
                f"hidden states have {expected[1]} numbers and the config names {expected[0]} "
                "scores; head and trunk belong to different models"
            )
        state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        self.head.load_state_dict(state)

    def save_pretrained(
        self, directory: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Write the trunk with its config.json as transformers does, and the head beside it.

        With the tokenizer that it was trained with, the folder can score any policy's texts.
        """
        folder = Path(directory)
        self.read_as = self.read_as  # a new model's, too, is noted
        if tokenizer is not None:
            state_eos(self.backbone.config, tokenizer)
        with quiet_transformers():
            self.backbone.save_pretrained(folder)
        head = {name: value.contiguous() for name, value in self.head.state_dict().items()}
        about: dict[str, object] = {"names": list(self.names)}
        if self.kind is not None:
            about["kind"] = self.kind
        if self.normalizer is not None:
            head |= {f"normalizer.{k}": v for k, v in self.normalizer.state_dict().items()}
            about["normalizer"] = {"kind": self.normalizer.kind, "active": self.normalizer.active}
        save_file(head, str(folder / HEAD_FILE))
        write_text(folder / ABOUT_FILE, json.dumps(about))
        if tokenizer is not None:
            with_prompt_format(tokenizer, prompt_format(tokenizer)).save_pretrained(folder)

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
        bias = None if self.head.bias is None else self.head.bias.float()
        scores = nn.functional.linear(hidden.float(), self.head.weight.float(), bias)
        return scores if self.normalizer is None else self.normalizer(scores)


def score_width(backbone: PreTrainedModel) -> int:
    """Numbers in a trunk's last hidden state."""
    config = backbone.config.get_text_config()
    # OPT-350m projects its last hidden state back to the width of its embeddings
    width: int = getattr(config, "word_embed_proj_dim", config.hidden_size)
    return width


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
    """First score [B] of texts, as the model was trained to read; batches hold similar lengths."""
    read = model.rows(tokenizer)
    pairs = read.pairs(prompts, responses)
    require_fit(pairs, read.context)
    rows = [prompt + answer for prompt, answer in pairs]
    scores = torch.empty(len(rows))
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(rows), batch_size):
        index = order[start : start + batch_size]
        batch = pad([rows[i] for i in index], tokenizer.pad_token_id, left=False)
        scores[index] = model.end_score(*batch)[:, 0].cpu()
    return scores
