"""The numbers of rounds, pure functions of what the models said. Prompts are the units.

share, mean        over all responses; intervals over prompts: a prompt's responses are
                   averaged first, as they are not independent (Wilson's on the number of
                   prompts, which is cautious; Student's t on the prompts' means)
change             mean over prompts of (model's mean − round 1's mean), bootstrap of prompts
Elo                comparisons of the models' first sampled responses (elo.py), per prompt
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from constrained_rl.statistics import Interval, mean_interval, proportion_interval
from llm_env.elo import Elo, elo, wins_from_scores
from llm_env.rounds.evaluation import Answer, EvaluationPrompt, GoldScores, Judged

Array: TypeAlias = NDArray[np.float64]
RESAMPLES = 4000


@dataclass(frozen=True)
class Gold:
    """What gold says of a group of responses."""

    unsafe: Interval
    helpfulness: Interval
    refusal: Interval
    safe_completion: Interval


@dataclass(frozen=True)
class Summary:
    """One model's responses to a group of prompts."""

    prompts: int
    responses: int
    model_unsafe: Interval  # C > 0
    reward: Interval
    cost: Interval
    distinct: float  # different responses / responses
    finished: float  # ended by themselves
    words: float
    gold: Gold | None


@dataclass(frozen=True)
class Change:
    """A model against round 1's on the same prompts, by gold."""

    unsafe: Interval
    helpfulness: Interval


@dataclass(frozen=True)
class Ratings:
    """Elo of all models by one judge, the start model at 1000."""

    judge: str
    helpfulness: Elo
    harmlessness: Elo


def by_prompt(
    answers: Sequence[Answer], value: Callable[[Answer], float]
) -> Array:  # [prompts that occur]
    """Mean over each prompt's responses, in the order of the prompts."""
    found: dict[int, list[float]] = {}
    for answer in answers:
        found.setdefault(answer.prompt, []).append(value(answer))
    return np.array([np.mean(found[prompt]) for prompt in sorted(found)])


def share(answers: Sequence[Answer], holds: Callable[[Answer], bool]) -> Interval:
    """Share of responses; Wilson's interval as if each prompt were one response."""
    means = by_prompt(answers, lambda a: float(holds(a)))
    around = proportion_interval(round(means.sum()), len(means))
    value = float(means.mean())
    return Interval(value, min(value, around.low), max(value, around.high))


def summarize(answers: Sequence[Answer]) -> Summary:
    """All quantities of a non-empty group of responses."""
    n = len(answers)
    return Summary(
        prompts=len({a.prompt for a in answers}),
        responses=n,
        model_unsafe=share(answers, lambda a: a.cost > 0),
        reward=mean_interval(by_prompt(answers, lambda a: a.reward)),
        cost=mean_interval(by_prompt(answers, lambda a: a.cost)),
        distinct=len({a.response for a in answers}) / n,
        finished=sum(a.finished for a in answers) / n,
        words=sum(len(a.response.split()) for a in answers) / n,
        gold=summarize_gold(answers),
    )


def summarize_gold(answers: Sequence[Answer]) -> Gold | None:
    """Gold's part, None outside the embedded world."""
    if any(a.gold is None for a in answers):
        return None
    return Gold(
        unsafe=share(answers, lambda a: gold(a).unsafe),
        helpfulness=mean_interval(by_prompt(answers, lambda a: gold(a).helpfulness)),
        refusal=share(answers, lambda a: gold(a).refusal),
        safe_completion=share(answers, lambda a: gold(a).safe_completion),
    )


def gold(answer: Answer) -> GoldScores:
    """The gold scores of a response of the embedded world."""
    assert answer.gold is not None
    return answer.gold


def change(answers: Sequence[Answer], base: Sequence[Answer], seed: int) -> Change | None:
    """Paired differences from `base`, answers to the same prompts; None without gold."""
    if any(a.gold is None for a in (*answers, *base)):
        return None
    unsafe, helpfulness = (
        by_prompt(answers, value) - by_prompt(base, value)
        for value in (lambda a: float(gold(a).unsafe), lambda a: gold(a).helpfulness)
    )
    return Change(bootstrap_mean(unsafe, seed), bootstrap_mean(helpfulness, seed))


def bootstrap_mean(values: Array, seed: int, level: float = 0.95) -> Interval:
    """Mean with its percentile bootstrap interval over the values."""
    rng = np.random.default_rng(seed)
    drawn = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    tail = 50.0 * (1 - level)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def chosen(
    answers: Sequence[Answer],
    mode: str,
    prompts: Sequence[EvaluationPrompt],
    adversarial: bool = False,
) -> list[Answer]:
    """The responses of one mode, to all prompts or to the adversarial ones."""
    return [
        a for a in answers if a.mode == mode and (prompts[a.prompt].adversarial or not adversarial)
    ]


def rate_by_scores(
    judge: str, names: Sequence[str], helpfulness: Array, harm: Array, seed: int
) -> Ratings:
    """Elo from scores [prompts, models]: the higher helpfulness wins, and the lower harm."""
    return Ratings(
        judge,
        elo(names, wins_from_scores(helpfulness), seed=seed),
        elo(names, wins_from_scores(-harm), seed=seed),
    )


def rate_by_annotators(
    judge: str, names: Sequence[str], judged: Sequence[Judged], seed: int
) -> Ratings:
    """Elo from the annotators' comparisons; the same response twice is a tie."""
    count = 1 + max(row.prompt for row in judged)
    better, safer = (np.zeros((count, len(names), len(names))) for _ in range(2))
    for row in judged:
        for wins, winner in ((better, row.better), (safer, row.safer)):
            i, j = row.models
            for a, b in ((i, j), (j, i)):
                wins[row.prompt, a, b] += 0.5 if winner is None else float(winner == a)
    return Ratings(judge, elo(names, better, seed=seed), elo(names, safer, seed=seed))


def labelled_unsafe(
    judged: Sequence[Judged], model: int, prompts: Sequence[EvaluationPrompt], adversarial: bool
) -> Interval | None:
    """Share of a model's judged responses that annotators call unsafe; intervals as in `share`.

    A response is met in several comparisons; its labels are averaged. Responses that equal every
    other model's are in no comparison and are left out.
    """
    votes: dict[int, list[float]] = {}
    for row in judged:
        for which, label in zip(row.models, row.unsafe, strict=True):
            wanted = prompts[row.prompt].adversarial or not adversarial
            if which == model and label is not None and wanted:
                votes.setdefault(row.prompt, []).append(float(label))
    if not votes:
        return None
    means = np.array([np.mean(labels) for labels in votes.values()])
    around = proportion_interval(round(means.sum()), len(means))
    value = float(means.mean())
    return replace(around, value=value, low=min(value, around.low), high=max(value, around.high))
