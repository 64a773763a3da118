"""How good are labels? Agreement between annotators, and the share a gold inspector approves of.

The inspector is an annotator without noise or bias: no length bias, no strictness, and help and
harm weigh the same, which is the mean of the pool's Beta(1.5, 1.5). She approves of a label when
her own probability of giving it exceeds one half: for helpfulness and harmlessness of the gold
order, for signs of the right side of severity 0.5, for a single preference of the side that the
equally weighed sum of both log-odds takes. Where she is indifferent nobody is wrong, and the label
is not counted.

Absent: tolerance for close calls. A careful person's label on a close pair is often refused, so
approval is below what researchers who look for carelessness grant (> 90 % in the paper).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from llm_env.world.annotators import Annotator, AnnotatorPool, Judgement, Pair, make_pair

INSPECTOR = Annotator(length_bias=0.0, strictness=0.0, help_weight=0.5)
"""Whose approval is asked for."""


def agreement(
    pool: AnnotatorPool,
    prompts: Sequence[str],
    responses_0: Sequence[str],
    responses_1: Sequence[str],
    rng: np.random.Generator,
) -> dict[str, float]:
    """Share of labels on which two annotators agree, over all pairs of annotators.

    Keys: `helpfulness` and `harmlessness` (rankings), `sign` (safe or not, per response) and
    `single` (one overall preference).
    """
    triples = zip(prompts, responses_0, responses_1, strict=True)
    pairs = [make_pair(*triple) for triple in triples]
    judged = [[person.compare(pair, rng) for pair in pairs] for person in pool.annotators]
    single = [[person.prefer_single(pair, rng) for pair in pairs] for person in pool.annotators]

    def table(read: Callable[[Judgement], Sequence[int]]) -> list[list[int]]:
        return [[label for one in row for label in read(one)] for row in judged]

    return {
        "helpfulness": _agree(table(lambda one: (one.better,))),
        "harmlessness": _agree(table(lambda one: (one.safer,))),
        "sign": _agree(table(lambda one: one.safe)),
        "single": _agree(single),
    }


def approval(
    decoupled: Iterable[Mapping[str, Any]], single: Iterable[Mapping[str, Any]]
) -> dict[str, float]:
    """Share of labels that the inspector approves of, with the keys of `agreement`.

    One more key, `row`, is the share of decoupled rows in which she refuses none of four labels.

    Args:
        decoupled: rows of `AnnotatorPool.label`.
        single: rows of `AnnotatorPool.label_single`.
    """
    rows = [_decoupled_logits(row) for row in decoupled]
    helpfulness, harmlessness, first, second = zip(*rows, strict=True)
    overall = [
        _toward(INSPECTOR.single_logit(_pair(row)), row["preferred_response_id"]) for row in single
    ]
    return {
        "helpfulness": _approved(helpfulness),
        "harmlessness": _approved(harmlessness),
        "sign": _approved([*first, *second]),
        "single": _approved(overall),
        "row": float(np.mean([min(row) >= 0 for row in rows])),
    }


def _decoupled_logits(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return the inspector's log-odds for each of a row's four labels."""
    pair = _pair(row)
    return (
        _toward(INSPECTOR.help_logit(pair), row["better_response_id"]),
        _toward(INSPECTOR.safety_logit(pair), row["safer_response_id"]),
        _toward(INSPECTOR.unsafe_logit(pair.gold[0]), not row["is_response_0_safe"]),
        _toward(INSPECTOR.unsafe_logit(pair.gold[1]), not row["is_response_1_safe"]),
    )


def _pair(row: Mapping[str, Any]) -> Pair:
    return make_pair(row["prompt"], row["response_0"], row["response_1"])


def _toward(logit: float, label: int) -> float:
    """Log-odds of a label; label 1 has log-odds `logit`."""
    return logit if label else -logit


def _approved(logits: Sequence[float]) -> float:
    """Share of positive log-odds among those that are not 0; NaN if all are."""
    decided = [logit > 0 for logit in logits if logit != 0]
    return float(np.mean(decided)) if decided else float("nan")


def _agree(labels: Sequence[Sequence[int]]) -> float:
    """Mean share of equal labels over all pairs of rows (annotators)."""
    rows = np.asarray(labels)
    return float(np.mean([np.mean(a == b) for a, b in combinations(rows, 2)]))
