"""Which of two models answers a prompt better? Wins, ties and losses in two dimensions, and Elo.

Helpfulness and harmlessness are judged apart, as in the paper. Judges: the scores (reward, and the
largest cost, lower wins), gold of the embedded world, and its pool of noisy annotators. Two equal
answers are a tie whoever judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from constrained_rl.statistics import Interval, proportion_interval
from llm_env.arena.answers import Mode
from llm_env.arena.engine import Answers, check_arena
from llm_env.arena.judging import Answer
from llm_env.elo import Elo, elo, wins_from_scores
from llm_env.world import AnnotatorPool

Array = NDArray[np.float64]
Dimension = Literal["helpfulness", "harmlessness"]
DIMENSIONS: tuple[Dimension, Dimension] = ("helpfulness", "harmlessness")


@dataclass(frozen=True)
class Duel:
    """One model against another: shares of prompts with Wilson's intervals."""

    first: str
    second: str
    win: Interval  # the first is better
    tie: Interval
    loss: Interval


@dataclass(frozen=True)
class Verdict:
    """One judge's view of one dimension in one mode."""

    judge: str
    dimension: Dimension
    mode: Mode
    models: tuple[str, ...]
    win_rate: tuple[tuple[float, ...], ...]  # [M][M] wins + ½ ties of the row over the column
    duels: tuple[Duel, ...]
    elo: Elo


@dataclass(frozen=True)
class Corners:
    """Where the differences (ΔR, ΔC) to the baseline lie: numbers of prompts."""

    model: str
    mode: Mode
    better_safer: int
    better_riskier: int
    worse_safer: int
    worse_riskier: int
    undecided: int  # a difference of zero in either dimension


Labels = Mapping[Mode, Mapping[str, Array]]
"""Wins [N, M, M] by an outside judge, of each mode and dimension"""


def verdicts(found: Answers, labels: Labels | None = None) -> list[Verdict]:
    """All judges, dimensions and modes; `labels` are those of an outside judge."""
    check_arena(found.config, found.gold)
    judged = [
        (judge, dimension, mode, wins)
        for mode in found.config.modes
        for judge, by_dimension in judgements(found, mode, labels or {}).items()
        for dimension, wins in by_dimension.items()
    ]
    return [verdict(found, *rest) for rest in judged]


def verdict(
    found: Answers, judge: str, dimension: Dimension, mode: Mode, wins: Array
) -> Verdict:  # wins [N, M, M]
    """Rates, duels and ratings of one table of wins."""
    models, total = found.models, wins.sum(0)
    games = np.maximum(total + total.T, 1.0)
    return Verdict(
        judge=judge,
        dimension=dimension,
        mode=mode,
        models=models,
        win_rate=tuple(tuple(map(float, row)) for row in total / games),
        duels=tuple(
            duel(models[i], models[j], wins[:, i, j], wins[:, j, i])
            for i, j in combinations(range(len(models)), 2)
        ),
        elo=elo(models, wins, anchor=found.config.baseline, seed=found.config.seed),
    )


def duel(first: str, second: str, won: Array, lost: Array) -> Duel:  # [N] of 1, ½, 0 each
    """Shares of wins, ties and losses of the prompts at which the two met; all 0 of none."""
    n = int((won + lost > 0).sum())
    if not n:
        return Duel(first, second, *(Interval(0.0, 0.0, 1.0),) * 3)
    counts = [int((won == 1).sum()), int((won == 0.5).sum()), int((lost == 1).sum())]
    return Duel(first, second, *(proportion_interval(count, n) for count in counts))


def judgements(found: Answers, mode: Mode, labels: Labels) -> dict[str, dict[Dimension, Array]]:
    """Wins [N, M, M] of every judge and dimension."""
    said = [found.of(model, mode) for model in found.models]
    judged: dict[str, dict[Dimension, Array]] = {"scores": {}}
    if found.config.reward is not None:
        judged["scores"]["helpfulness"] = by_value(
            said, [[a.reward for a in m] for m in said], found
        )
    if found.config.costs:
        judged["scores"]["harmlessness"] = by_value(
            said, [[-a.cost for a in m] for m in said], found
        )
    for name in found.config.held_out:
        judged[name] = {
            "helpfulness": by_value(said, [[a.scores[name] for a in m] for m in said], found)
        }
    if found.gold:
        judged["gold"] = by_gold(said, found)
        judged["noisy annotators"] = by_pool(said, found.config.seed)
    if mode in labels:
        judged["annotator"] = {dimension: labels[mode][dimension] for dimension in DIMENSIONS}
    return {judge: by_dimension for judge, by_dimension in judged.items() if by_dimension}


def by_value(
    said: Sequence[Sequence[Answer]], values: Sequence[Sequence[float]], found: Answers
) -> Array:
    """The higher value wins."""
    wins = wins_from_scores(np.array(values, dtype=np.float64).T, found.config.tie_within)
    return tie_equal(said, wins)


def by_gold(said: Sequence[Sequence[Answer]], found: Answers) -> dict[Dimension, Array]:
    """The embedded world's own judgement."""
    gold = [[a.gold for a in m if a.gold is not None] for m in said]
    return {
        "helpfulness": by_value(said, [[g.helpfulness for g in m] for m in gold], found),
        "harmlessness": by_value(said, [[-g.harm for g in m] for m in gold], found),
    }


def by_pool(said: Sequence[Sequence[Answer]], seed: int) -> dict[Dimension, Array]:
    """One random annotator of the embedded world per pair and prompt; they never call a tie."""
    pool, rng = AnnotatorPool(seed), np.random.default_rng([seed, 1])
    models, prompts = len(said), len(said[0])
    helpful, safer = np.zeros((2, prompts, models, models))
    texts = [str(answer.prompt) for answer in said[0]]
    responses = [[answer.response for answer in m] for m in said]
    for i, j in combinations(range(models), 2):
        rows = pool.label(texts, responses[i], responses[j], rng)
        for n, row in enumerate(rows):
            for wins, key in ((helpful, "better_response_id"), (safer, "safer_response_id")):
                winner, loser = (j, i) if row[key] else (i, j)
                wins[n, winner, loser] = 1.0
    return {
        "helpfulness": tie_equal(said, helpful),
        "harmlessness": tie_equal(said, safer),
    }


def tie_equal(said: Sequence[Sequence[Answer]], wins: Array) -> Array:  # [N, M, M]
    """Equal answers are ties."""
    tied = wins.copy()
    for i, j in combinations(range(len(said)), 2):
        for n, (a, b) in enumerate(zip(said[i], said[j], strict=True)):
            if a.response == b.response and a.stop_reason == b.stop_reason:
                tied[n, i, j] = tied[n, j, i] = 0.5
    return tied


def corners(found: Answers) -> list[Corners]:
    """Signs of (ΔR, ΔC) to the baseline; needs a reward and a cost."""
    if found.config.reward is None or not found.config.costs:
        return []
    return [
        count_corners(model, mode, found.of(model, mode), found.of(found.config.baseline, mode))
        for mode in found.config.modes
        for model in found.models[1:]
    ]


def count_corners(
    model: str, mode: Mode, said: Sequence[Answer], baseline: Sequence[Answer]
) -> Corners:
    """Count the four signs, and what has none."""
    signs = [
        (np.sign(a.reward - b.reward), np.sign(a.cost - b.cost))
        for a, b in zip(said, baseline, strict=True)
    ]
    up, down, left, right = (signs.count(c) for c in ((1, -1), (1, 1), (-1, -1), (-1, 1)))
    rest = len(signs) - up - down - left - right
    return Corners(model, mode, up, down, left, right, rest)
