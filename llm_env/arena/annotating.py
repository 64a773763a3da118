"""Who wins a pair of answers by a judge behind a URL? Its labels, kept on disk as they arrive.

Every pair is shown in a random order, so that a judge who favours the first answer favours no
model. Equal answers are ties and are not asked about; pairs with an empty answer are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_env.arena.answers import Mode
from llm_env.arena.cache import Row, digest, keep_rows
from llm_env.arena.engine import Answers
from llm_env.arena.judging import Answer
from llm_env.rounds.annotators import by_http
from llm_env.rounds.config import HTTPAnnotator

Array = NDArray[np.float64]
LABELS = {"helpfulness": "better_response_id", "harmlessness": "safer_response_id"}


def annotate(found: Answers, folder: Path) -> dict[Mode, dict[str, Array]]:
    """Wins [N, M, M] of each mode and dimension by the configured judge; nothing without one.

    Raises:
        InputError: the judge cannot be reached, or answers what is no label; labels that came
            before are kept.
    """
    judge = found.config.annotator
    if judge is None:
        return {}
    labels: dict[Mode, dict[str, Array]] = {}
    for mode in found.config.modes:
        said = [found.of(model, mode) for model in found.models]
        shape = (len(said[0]), len(said), len(said))
        wins = {dimension: np.zeros(shape) for dimension in LABELS}
        for i, j in combinations(range(len(said)), 2):
            name = f"{found.models[i]}-{found.models[j]}-{mode}".replace("/", "_")
            place = folder / "labels" / name
            _label_pair(wins, (i, j), (said[i], said[j]), judge, found.config.seed, place)
        labels[mode] = wins
    return labels


def _label_pair(
    wins: dict[str, Array],  # filled in
    models: tuple[int, int],
    said: tuple[Sequence[Answer], Sequence[Answer]],
    judge: HTTPAnnotator,
    seed: int,
    place: Path,
) -> None:
    """Ask about two models' answers to every prompt."""
    i, j = models
    both = list(zip(*said, strict=True))
    asked = []
    for n, (a, b) in enumerate(both):
        if a.response == b.response:
            for table in wins.values():
                table[n, i, j] = table[n, j, i] = 0.5
        elif a.response.strip() and b.response.strip():
            asked.append(n)
    swapped = np.random.default_rng([seed, i, j]).random(len(both)) < 0.5
    pairs = []
    for n in asked:
        first, second = both[n][::-1] if swapped[n] else both[n]
        pairs.append((first.prompt, first.response, second.response))

    def make(rows: slice) -> list[Row]:
        names = LABELS.values()
        labelled = by_http(pairs[rows], judge)
        return [{name: row.model_dump()[name] for name in names} for row in labelled]

    key = digest(judge.url, pairs)
    labels = keep_rows(
        place.with_name(f"{place.name}-{key}.jsonl"), len(pairs), judge.batch_size, make
    )
    for n, label in zip(asked, labels, strict=True):
        for dimension, name in LABELS.items():
            second_wins = bool(label[name]) != bool(swapped[n])
            winner, loser = (j, i) if second_wins else (i, j)
            wins[dimension][n, winner, loser] = 1.0
