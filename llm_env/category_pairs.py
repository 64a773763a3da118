"""Harm categories as constraints of their own: PKU-SafeRLHF v1 labels each response with 19.

A category k (or a group of categories, any of which counts) gives each response a sign
s_k = +1 where it is harmful in that way and −1 where not. Which of two responses is worse in a
category is known only where their signs differ, so with scores c_k the loss of a pair (0, 1) is

    L = Σ_k [ 1[s_0k ≠ s_1k] · −log σ(s_0k · (c_0k − c_1k)) − log σ(s_0k c_0k) − log σ(s_1k c_1k) ]

that is eq. (6) of Safe RLHF (Dai et al. 2024) per category, its ranking term dropped where the
labels are alike; the means over pairs divide by all pairs. One model with K heads on one trunk
learns all of them (`category_pairs`), or K models one each (`category_cost_pairs`).
Absent: severity levels.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from constrained_rl.errors import InputError
from llm_env.preferences import CostPair, PreferenceRow
from llm_env.prompts import Message

FIELD = "response_{}_harm_category"


@dataclass(frozen=True)
class CategoryPair:
    """Two responses with K signs each: +1 harmful in that way, −1 not."""

    prompt: str | list[Message]
    responses: tuple[str, str]
    signs: tuple[tuple[int, ...], tuple[int, ...]]


def category_pair(row: PreferenceRow, categories: Mapping[str, Sequence[str]]) -> CategoryPair:
    """The pair of one row.

    Args:
        row: of PKU-SafeRLHF v1.
        categories: name of each cost and the harm categories that count as it.

    Raises:
        InputError: the row has no such labels; names the nearest category.
    """
    labels = [_labels(row, which) for which in (0, 1)]
    signs = [
        tuple(1 if any(_label(found, name) for name in group) else -1 for group in groups)
        for found, groups in ((found, tuple(categories.values())) for found in labels)
    ]
    first, second = signs
    return CategoryPair(row.prompt, row.responses, (first, second))


def category_pairs(
    rows: Sequence[PreferenceRow], categories: Mapping[str, Sequence[str]]
) -> list[CategoryPair]:
    """Pairs for one model with a head per category."""
    return [category_pair(row, categories) for row in rows]


def cost_pair_of(pair: CategoryPair, category: int) -> CostPair:
    """The pair of one category alone: ranked only where the labels of the responses differ."""
    first, second = (signs[category] for signs in pair.signs)
    worse, other = (0, 1) if first >= second else (1, 0)
    return CostPair(
        prompt=pair.prompt,
        more_harmful=pair.responses[worse],
        less_harmful=pair.responses[other],
        more_harmful_sign=pair.signs[worse][category],
        less_harmful_sign=pair.signs[other][category],
        ranked=first != second,
    )


def category_cost_pairs(
    rows: Sequence[PreferenceRow], categories: Mapping[str, Sequence[str]]
) -> dict[str, list[CostPair]]:
    """Pairs for K models, one per category."""
    pairs = category_pairs(rows, categories)
    return {name: [cost_pair_of(p, k) for p in pairs] for k, name in enumerate(categories)}


def _labels(row: PreferenceRow, which: int) -> Mapping[str, bool]:
    """The harm categories of a response."""
    found = (row.model_extra or {}).get(FIELD.format(which))
    if not isinstance(found, Mapping) or not all(isinstance(v, bool) for v in found.values()):
        raise InputError(
            f"a row has no {FIELD.format(which)} with true or false for each category (found "
            f"{found!r:.60}): harm categories came with PKU-SafeRLHF v1; earlier releases (10K, "
            "30K) lack them"
        )
    return found


def _label(labels: Mapping[str, bool], category: str) -> bool:
    if category in labels:
        return labels[category]
    near = difflib.get_close_matches(category, labels, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(
        f"harm category {category!r} is not labelled in the data; {hint}Found: {', '.join(labels)}"
    )
