"""Training of reward and cost models on preferences, and their accuracies.

One score or K on one trunk, the losses of preference_losses.py; both responses of a pair pass the
model in one batch, each scored at the end of its row (score_rows.py). Pairs become token ids and
small numbers (an order and signs per score) in one pass, so a million need not be in memory.
Absent: statistics of scores.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from constrained_rl.errors import InputError
from constrained_rl.sections import Count, NonNegative, Positive
from llm_env.category_pairs import CategoryPair
from llm_env.preference_losses import labelled_pair_loss
from llm_env.preferences import CostPair, RewardPair
from llm_env.score_rows import Rows, score_rows, trained
from llm_env.scoring import ScoreModel
from llm_env.supervised import FitConfig, Progress, fit
from llm_env.token_store import Encode, OverLength, Texts, TokenStore, encode_examples
from llm_env.tokens import check_tokenizer, pad

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

Pair: TypeAlias = RewardPair | CostPair | CategoryPair
Kind = Literal["reward", "cost", "costs"]
PAIRS: dict[Kind, type[Pair]] = {"reward": RewardPair, "cost": CostPair, "costs": CategoryPair}


class ScoreConfig(FitConfig):
    """Settings of reward- and cost-model training."""

    epochs: Count = 1
    """passes over the pairs"""
    learning_rate: Positive = 3e-3
    """peak step size of AdamW; 2e-5 for pretrained models of billions of parameters"""
    regularization: NonNegative = 0.0
    """μ, weight of the mean squared score"""
    ranking: bool = True
    """cost model: keep the term that orders the two responses"""
    sign: bool = True
    """cost model: keep the terms that place responses on their side of zero"""


@dataclass(frozen=True)
class Accuracy:
    """How often a score agrees with the labels, as shares; None where no pair has such labels."""

    ranking: float
    sign: float | None  # None for reward models, which have no zero


@dataclass(frozen=True)
class HeadAccuracy:
    """One score of a model on labelled pairs."""

    ranking: float | None  # share of the ranked pairs in the labelled order
    sign: float | None  # share of the labelled responses on their side of zero
    caught: float | None  # share of the harmful responses that score above zero
    cleared: float | None  # share of the harmless ones that score below zero
    ranked: int  # pairs whose order is known
    harmful: int  # responses
    harmless: int


class LabelledPairs:
    """Tokenized pairs and their labels; per pair and score 3 bytes of memory."""

    def __init__(self, heads: int) -> None:
        self.heads = heads
        self._order, self._sign = array("b"), array("b")
        self.stores: tuple[TokenStore, ...] = ()
        self.dropped = 0

    def read(
        self,
        encode: Encode,
        pairs: Iterable[Pair],
        kind: Kind,
        limit: int | None,
        over_length: OverLength,
    ) -> None:
        """Take all pairs, of one kind; `InputError` when one is of another or none is there."""

        def texts(pair: Pair) -> tuple[object, Sequence[str]]:
            _check_kind(pair, kind)
            return pair.prompt, pair.responses

        of: Texts[Pair] = Texts(texts, self._label)  # type: ignore[arg-type]
        encoded = encode_examples(encode, pairs, of, limit, over_length)
        self.stores, self.dropped = encoded.stores, encoded.dropped
        if not self.stores:
            raise InputError("there are no examples to train on; expected at least one")

    def _label(self, pair: Pair) -> None:
        order, signs = labels(pair)
        if len(order) != self.heads:
            raise InputError(
                f"the model has {self.heads} scores, the pairs have labels of {len(order)} "
                "categories; make it with heads = that many"
            )
        self._order.extend(order)
        self._sign.extend((*signs[0], *signs[1]))

    @property
    def order(self) -> Tensor:
        """+1: the first response scores higher, −1: the second, 0: not known: [N, K]."""
        return torch.frombuffer(self._order, dtype=torch.int8).view(-1, self.heads)

    @property
    def sign(self) -> Tensor:
        """+1 unsafe, −1 safe, 0: not known: [N, 2, K]."""
        return torch.frombuffer(self._sign, dtype=torch.int8).view(-1, 2, self.heads)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each pair's longer response with its prompt."""
        first, second = (store.lengths for store in self.stores)
        return [max(a, b) for a, b in zip(first, second, strict=True)]

    @property
    def digests(self) -> list[str]:
        """Tell these pairs from others."""
        own = blake2b(self._order.tobytes() + self._sign.tobytes(), digest_size=16)
        return [*(store.digest for store in self.stores), own.hexdigest()]

    def scores(self, model: ScoreModel, batch: Sequence[int], pad_id: int) -> Tensor:
        """Scores of both responses of some pairs: [B, 2, K]."""
        rows = [prompt + answer for store in self.stores for prompt, answer in map(store.at, batch)]
        score = model.end_score(*pad(rows, pad_id, left=False))
        return score[:, : self.heads].view(2, len(batch), self.heads).transpose(0, 1)


def labels(pair: Pair) -> tuple[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]]]:
    """Order [K] and signs [2][K] of a pair."""
    match pair:
        case RewardPair():
            return (1,), ((0,), (0,))
        case CostPair():
            signs = (pair.more_harmful_sign,), (pair.less_harmful_sign,)
            return (int(pair.ranked),), signs
    first, second = pair.signs
    # sign(s_0k − s_1k): ranked only where the labels differ
    order = tuple((a > b) - (a < b) for a, b in zip(first, second, strict=True))
    return order, pair.signs


def label_pairs(
    trunk: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[Pair],
    kind: Kind,
    config: ScoreConfig,
    heads: int = 1,
) -> LabelledPairs:
    """Pairs as ids and labels, for a score model on `trunk` with so many scores of this kind.

    Raises:
        InputError: there are none, they are of another kind, or some do not fit and may not be
            dropped.
    """
    return label_rows(score_rows(tokenizer, trunk), pairs, kind, config, heads)


def label_rows(
    rows: Rows, pairs: Iterable[Pair], kind: Kind, config: ScoreConfig, heads: int = 1
) -> LabelledPairs:
    """As `label_pairs`, where rows are known already."""
    found = LabelledPairs(heads)
    limit = config.max_tokens or rows.context
    found.read(rows.pairs, pairs, kind, limit, config.over_length)
    return found


def _labelled(
    model: ScoreModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[Pair] | LabelledPairs,
    kind: Kind,
    config: ScoreConfig,
) -> LabelledPairs:
    if isinstance(pairs, LabelledPairs):
        return pairs
    heads = model.heads if kind == "costs" else 1
    return label_rows(model.rows(tokenizer), pairs, kind, config, heads)


def train_score_model(
    model: ScoreModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[Pair] | LabelledPairs,
    kind: Kind,
    config: ScoreConfig,
    generator: torch.Generator,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> list[float]:
    """Train a score model in place; return the loss of every step.

    Pairs of kind "costs" train all scores of the model, the others its first; they may be tokenized
    already (`label_pairs`). With a folder for checkpoints, a fit that was interrupted continues
    from the newest in it.
    """
    check_tokenizer(tokenizer)
    data = _labelled(model, tokenizer, pairs, kind, config)
    require_labels(data, model.names, kind, config)
    model.read_as = trained(model.read_as, tokenizer)
    order, sign = data.order * int(config.ranking), data.sign * int(config.sign)
    model.kind = "reward" if kind == "reward" else "cost"

    def loss(batch: list[int]) -> Tensor:
        score = data.scores(model, batch, tokenizer.pad_token_id)
        labelled = order[batch].to(score), sign[batch].to(score)
        return labelled_pair_loss(score, *labelled, config.regularization)

    return fit(model, data.lengths, loss, config, generator, progress, checkpoint, data.digests)


def score_accuracy(
    model: ScoreModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[RewardPair] | Sequence[CostPair],
    batch_size: int = 64,
) -> Accuracy:
    """Ranking accuracy, and for cost pairs the sign accuracy over both responses of each pair."""
    kind: Kind = "cost" if isinstance(pairs[0], CostPair) else "reward"
    (found,) = head_accuracies(model, tokenizer, pairs, kind, batch_size=batch_size)
    return Accuracy(nan if found.ranking is None else found.ranking, found.sign)


@torch.no_grad()
def head_accuracies(
    model: ScoreModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[Pair] | LabelledPairs,
    kind: Kind,
    config: ScoreConfig | None = None,
    batch_size: int = 64,
) -> list[HeadAccuracy]:
    """Accuracies of every score of a model, in the order of its heads."""
    data = _labelled(model, tokenizer, pairs, kind, config or ScoreConfig())
    lengths = data.lengths
    places = sorted(range(len(lengths)), key=lambda place: lengths[place])
    score = torch.empty(len(places), 2, data.heads)
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        score[batch] = data.scores(model, batch, tokenizer.pad_token_id).cpu()
    return [
        _accuracy(score[..., k], data.order[:, k], data.sign[..., k]) for k in range(data.heads)
    ]


def _accuracy(
    score: Tensor,  # [N, 2]
    order: Tensor,  # [N]
    sign: Tensor,  # [N, 2]
) -> HeadAccuracy:
    """Accuracy of one head."""
    difference = (score[:, 0] - score[:, 1]) * order
    ranked, harmful, harmless = order != 0, sign > 0, sign < 0
    labelled = harmful | harmless
    return HeadAccuracy(
        ranking=_share(difference[ranked]),
        sign=_share((score * sign)[labelled]),
        caught=_share(score[harmful]),
        cleared=_share(-score[harmless]),
        ranked=int(ranked.sum()),
        harmful=int(harmful.sum()),
        harmless=int(harmless.sum()),
    )


def _share(values: Tensor) -> float | None:
    """Share that is positive; None of none."""
    return float((values > 0).double().mean()) if len(values) else None


def _check_kind(pair: Pair, kind: Kind) -> None:
    """Refuse pairs of another kind: their first response means something else."""
    if not isinstance(pair, PAIRS[kind]):
        made = {"reward": "reward_pairs", "cost": "cost_pairs", "costs": "category_pairs"}[kind]
        raise InputError(
            f"training a {kind} model needs {PAIRS[kind].__name__} elements, found "
            f"{type(pair).__name__}; use {made}(rows)"
        )


def require_labels(
    data: LabelledPairs, names: Sequence[str], kind: Kind, config: ScoreConfig
) -> None:
    """Refuse terms that no pair has labels for: what they were to teach would stay random."""
    if kind == "reward":
        return
    harmful = (data.sign > 0).sum((0, 1))
    if config.sign and not bool(data.sign.any()):
        raise InputError(
            "no pair says whether a response is unsafe (rows of hh do not), so the cost would have "
            "no zero and a limit no meaning; add labelled pairs (pku), or set sign = false and use "
            "a limit from `crl llm calibrate` on labelled data"
        )
    for k in range(data.heads if kind == "costs" else 0):
        if harmful[k] == 0:
            name = names[k] if names else f"number {k}"
            raise InputError(
                f"category {name}: none of {2 * len(data.sign)} responses is labelled harmful in "
                "this way, so there is nothing to learn; leave it out, or merge it with another"
            )
