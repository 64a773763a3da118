"""How strong is each model, from who beat whom? Bradley–Terry's likelihood on Elo's scale.

    P(i beats j) = σ(θ_i − θ_j)                        Bradley & Terry 1952
    ℓ(θ) = Σ_ij w_ij ln σ(θ_i − θ_j)                   w_ij: i's wins over j, a tie is ½ to each
    rating_i = 1000 + 400 · (θ_i − θ_anchor) / ln 10   400 points are odds of ten to one

A maximum exists exactly when no group of models won every comparison against the others (Ford
1957). Where it does not, half a win is added to either side of every pair that met, and the table
says so; models that never met, even through others, have no common scale and are refused.
Intervals resample prompts with all their comparisons, because one prompt's are not independent.
Absent: Elo's sequential update, whose result depends on the order of the games.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from constrained_rl.errors import InputError
from constrained_rl.statistics import Interval

Array = NDArray[np.float64]

POINTS = 400.0 / math.log(10.0)
"""Elo points per unit of log-odds"""
ANCHOR = 1000.0
"""rating of the model that the others are compared with"""
HALF_WIN = 0.5
"""added to either side where the likelihood has no maximum"""
TOLERANCE, MAX_STEPS = 1e-8, 200  # of Newton's steps, whose error is of the order of their square


@dataclass(frozen=True)
class Elo:
    """Ratings with bootstrap intervals, and what to know before quoting them."""

    names: tuple[str, ...]
    ratings: tuple[Interval, ...]
    games: tuple[float, ...]  # comparisons of each model
    notes: tuple[str, ...]  # empty where every number is a plain maximum-likelihood estimate

    def __getitem__(self, name: str) -> Interval:
        """The rating of one model."""
        return self.ratings[self.names.index(name)]


def wins_from_scores(scores: Array, tie_within: float = 0.0) -> Array:
    """Who beat whom at each prompt: the higher score wins; [N, M] scores -> [N, M, M] wins.

    Args:
        scores: a score of every model at every prompt; NaN where a model was not asked.
        tie_within: differences up to this are ties.

    >>> wins_from_scores(np.array([[2.0, 1.0]])).tolist()
    [[[0.0, 1.0], [0.0, 0.0]]]
    """
    values = np.asarray(scores, dtype=np.float64)
    gap = values[:, :, None] - values[:, None, :]
    wins = np.where(gap > tie_within, 1.0, np.where(np.abs(gap) <= tie_within, 0.5, 0.0))
    return wins * ~np.eye(values.shape[1], dtype=bool)  # nobody meets itself


def elo(
    names: Sequence[str],
    wins: Array,  # [N, M, M]: wins[n, i, j] of i over j at prompt n, ties as half to each
    *,
    anchor: str | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Elo:
    """Ratings of M models with percentile bootstrap intervals over N prompts.

    Args:
        names: the models.
        wins: comparisons per prompt; pairs that did not meet at a prompt are 0 in both directions.
        anchor: the model whose rating is 1000; default: the first.
        resamples: bootstrap samples of the prompts; 0 gives intervals without width.
        level: of the intervals.
        seed: of the resampling.

    Raises:
        InputError: shapes or counts that are not of comparisons, an unknown anchor, or models that
            never met, directly or through others.
    """
    per_prompt = np.asarray(wins, dtype=np.float64)
    _check(names, per_prompt)
    if anchor is not None and anchor not in names:
        raise InputError(f"the anchor {anchor!r} is not one of the models {', '.join(names)}")
    fixed = 0 if anchor is None else list(names).index(anchor)
    total = per_prompt.sum(0)
    _require_connected(names, total)
    value = _ratings(_regularized(total[None]), fixed)[0]
    low, high, notes = value, value, _regularization_notes(names, total)
    if resamples and len(names) > 1:
        drawn = _resample(per_prompt, resamples, seed)
        whole = _one_scale(drawn)
        ratings = _ratings(_regularized(drawn[whole]), fixed)
        tail = 50.0 * (1 - level)
        if whole.any():
            low, high = np.percentile(ratings, [tail, 100.0 - tail], axis=0)
        notes += _resampling_notes(drawn[whole], int((~whole).sum()), resamples)
    intervals = (Interval(*map(float, row)) for row in zip(value, low, high, strict=True))
    games = tuple(map(float, (total + total.T).sum(1)))
    return Elo(tuple(names), tuple(intervals), games, notes)


def bradley_terry(wins: Array) -> Array:  # [M, M] -> [M]
    """Log-strengths θ that maximise the likelihood, with mean 0.

    Raises:
        InputError: no finite maximum exists.
    """
    if not _has_maximum(wins[None]).all():
        raise InputError(
            "the Bradley–Terry likelihood has no maximum for these comparisons: some group of "
            "models lost none to the others, or never met them; `elo` says which and regularises"
        )
    found: Array = _maximum(np.asarray(wins, dtype=np.float64)[None])[0]
    return found


def _maximum(wins: Array) -> Array:  # [R, M, M] -> [R, M]
    """Newton's method with the step ln(1 + d)/d, d = √2·‖δ‖, which converges from anywhere.

    The loss is generalized self-concordant (Sun & Tran-Dinh 2019, Theorem 2); the maximum exists.
    """
    games = wins + np.swapaxes(wins, 1, 2)
    theta = np.zeros(wins.shape[:2])
    for _ in range(MAX_STEPS):
        chance = expit(theta[:, :, None] - theta[:, None, :])  # P(i beats j)
        # ∂ℓ/∂θ_i = Σ_j w_ij − n_ij P(i beats j) = Σ_j w_ij P(j beats i) − w_ji P(i beats j)
        share = wins * np.swapaxes(chance, 1, 2)
        gradient = (share - np.swapaxes(share, 1, 2)).sum(2)
        # −∂²ℓ/∂θ∂θ' is the Laplacian of the weights n_ij P(1 − P); + 11ᵀ: only differences count
        weight = games * chance * np.swapaxes(chance, 1, 2)
        laplacian = np.eye(wins.shape[1]) * weight.sum(2)[..., None] - weight
        laplacian += weight.mean((1, 2), keepdims=True)
        step = np.linalg.solve(laplacian, gradient[..., None])[..., 0]
        distance = math.sqrt(2) * np.linalg.norm(step, axis=1, keepdims=True)
        theta = theta + step * np.log1p(distance) / np.maximum(distance, 1e-300)
        if (distance <= TOLERANCE).all():
            break
    else:
        raise ArithmeticError(f"Bradley–Terry: no convergence in {MAX_STEPS} steps")
    centred: Array = theta - theta.mean(1, keepdims=True)
    return centred


def _ratings(wins: Array, anchor: int) -> Array:  # [R, M, M] -> [R, M]
    theta = _maximum(wins)
    return ANCHOR + POINTS * (theta - theta[:, anchor : anchor + 1])


def _check(names: Sequence[str], wins: Array) -> None:
    """Refuse what cannot be comparisons."""
    models = len(names)
    if not models or len(set(names)) < models:
        raise InputError(f"Elo needs models with names of their own, found {list(names)}")
    if wins.ndim != 3 or wins.shape[1:] != (models, models) or not len(wins):
        raise InputError(
            f"wins of {models} models have the shape [prompts, {models}, {models}] with at least "
            f"one prompt, found {wins.shape}"
        )
    if not np.isfinite(wins).all() or (wins < 0).any():
        raise InputError("wins are counts: finite and at least 0")
    if np.diagonal(wins, axis1=1, axis2=2).any():
        raise InputError("a model has wins over itself; the diagonal of the counts must be 0")


def _reached(wins: Array) -> NDArray[np.bool_]:  # [R, M, M] -> [R, M, M]
    """Whether a chain of wins leads from i to j."""
    models = wins.shape[1]
    reached = np.asarray((wins > 0) | np.eye(models, dtype=bool))
    for _ in range(max(models - 1, 1).bit_length()):  # each squaring doubles the chains' length
        reached = np.asarray(reached.astype(np.float32) @ reached.astype(np.float32) > 0)
    return reached


def _has_maximum(wins: Array) -> NDArray[np.bool_]:  # [R, M, M] -> [R]
    """Whether wins lead from every model to every other (Ford 1957)."""
    return np.asarray(_reached(wins).all((1, 2)))


def _one_scale(wins: Array) -> NDArray[np.bool_]:  # [R, M, M] -> [R]
    """Whether comparisons link all models, whoever won."""
    return _has_maximum(wins + np.swapaxes(wins, 1, 2))


def _require_connected(names: Sequence[str], wins: Array) -> None:
    """Refuse ratings of models that nothing compares."""
    groups = {tuple(np.flatnonzero(row).tolist()) for row in _reached((wins + wins.T)[None])[0]}
    if len(groups) > 1:
        listed = " | ".join(", ".join(names[i] for i in group) for group in sorted(groups))
        raise InputError(
            f"these groups of models never met: {listed}; ratings need a chain of comparisons "
            "between any two models, so compare one of each group, or rate the groups apart"
        )


def _regularized(wins: Array) -> Array:  # [R, M, M]
    """Add half a win to either side of every pair that met, where no maximum exists."""
    met = wins + np.swapaxes(wins, 1, 2) > 0
    helped: Array = wins + HALF_WIN * met * ~_has_maximum(wins)[:, None, None]
    return helped


def _regularization_notes(names: Sequence[str], wins: Array) -> tuple[str, ...]:
    """Which models have no finite maximum-likelihood rating relative to the others."""
    if _has_maximum(wins[None]).all():
        return ()
    games = wins + wins.T
    never_won = [name for name, row in zip(names, wins, strict=True) if not row.any()]
    never_lost = [name for name, row in zip(names, wins.T, strict=True) if not row.any()]
    said = [f"{name} won none of its comparisons" for name in never_won]
    said += [f"{name} lost none of its comparisons" for name in never_lost]
    if not said:
        said = ["one group of models won every comparison with the others"]
    return (
        f"{'; '.join(said)}: the most likely rating is infinite, so half a win was added to either "
        f"side of each of the {int((np.triu(games) > 0).sum())} pairs; the gap is a lower bound "
        "that grows with the number of prompts, and its interval has no meaning",
    )


def _resample(per_prompt: Array, resamples: int, seed: int) -> Array:  # -> [R, M, M]
    """Wins of bootstrap samples of the prompts."""
    rng = np.random.default_rng(seed)
    prompts, models = per_prompt.shape[:2]
    times = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)  # [R, N]
    drawn: Array = (times @ per_prompt.reshape(prompts, -1)).reshape(-1, models, models)
    return drawn


def _resampling_notes(drawn: Array, apart: int, resamples: int) -> tuple[str, ...]:
    """How many bootstrap samples needed help or were left out."""
    lacking = int((~_has_maximum(drawn)).sum())
    notes = []
    if 0 < lacking < len(drawn):
        notes.append(
            f"in {lacking} of {resamples} bootstrap samples some model won or lost every "
            "comparison; half a win was added there"
        )
    if apart:
        notes.append(
            f"{apart} of {resamples} bootstrap samples held no comparisons between some models and "
            "were left out"
        )
    return tuple(notes)
