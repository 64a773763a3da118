"""How good is a score model? Held-out labels of its own kind, and gold on the same responses.

Ranking: share of pairs in the right order, by the labels and by the inspector's own judgement.
Sign (cost models): share of responses on the right side of zero, by the labels and by gold.
AUC (cost models): P(C of a gold-unsafe response > C of a safe one), which needs no zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llm_env.calibration.maths import area_under_curve
from llm_env.comparison.methods import Score
from llm_env.comparison.single import SingleRow
from llm_env.preferences import CostPair, PreferenceRow, RewardPair
from llm_env.score_training import score_accuracy
from llm_env.scoring import ScoreModel, score_texts
from llm_env.world.annotators import Pair, make_pair
from llm_env.world.quality import INSPECTOR

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = PreferenceRow | SingleRow


def measure(
    model: ScoreModel,
    tokenizer: PreTrainedTokenizerBase,
    score: Score,
    rows: Sequence[Row],
    labelled: Sequence[RewardPair] | Sequence[CostPair],
) -> dict[str, Any]:
    """Accuracies on held-out `rows`, whose labels are `labelled`, and every response's score."""
    prompts = [text_of(row) for row in rows]
    first = score_texts(model, tokenizer, prompts, [row.response_0 for row in rows])
    second = score_texts(model, tokenizer, prompts, [row.response_1 for row in rows])
    pairs = [make_pair(text_of(row), row.response_0, row.response_1) for row in rows]
    values = torch.stack([first, second])
    unsafe = torch.tensor([[pair.gold[i].unsafe for pair in pairs] for i in (0, 1)])
    gap = torch.tensor([gold_logit(score, pair) for pair in pairs])
    agrees = (second > first) == (gap > 0)
    is_cost = score.kind == "cost"
    return {
        "labels": asdict(score_accuracy(model, tokenizer, labelled)),
        "gold_ranking": float(agrees[gap != 0].float().mean()),
        "gold_sign": float(((values > 0) == unsafe).float().mean()) if is_cost else None,
        "gold_auc": area(values.flatten().tolist(), unsafe.flatten().tolist()) if is_cost else None,
        "score": values.flatten().tolist(),
        "unsafe": unsafe.flatten().tolist(),
    }


def text_of(row: Row) -> str:
    """A row's prompt: one text, as prompts of the embedded world have no further turns."""
    assert isinstance(row.prompt, str)
    return row.prompt


def gold_logit(score: Score, pair: Pair) -> float:
    """The inspector's log-odds that response 1 should score higher than response 0."""
    if score.labels == "single":
        return INSPECTOR.single_logit(pair)
    return INSPECTOR.help_logit(pair) if score.kind == "reward" else -INSPECTOR.safety_logit(pair)


def area(score: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Area under the ROC curve, P(s⁺ > s⁻) + ½ P(s⁺ = s⁻); None without both classes."""
    if len(set(positive)) < 2:
        return None
    return area_under_curve(np.asarray(score, dtype=np.float64), np.asarray(positive, dtype=bool))
