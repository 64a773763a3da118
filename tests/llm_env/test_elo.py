"""Bradley–Terry ratings: closed forms, agreement with scipy, and what has no finite answer."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from constrained_rl.errors import InputError
from llm_env.elo import bradley_terry, elo, wins_from_scores

NONE = {"resamples": 0}


def counts(*rows):
    """One prompt that holds all the comparisons."""
    return np.array([rows], dtype=float)


def test_two_models_have_the_closed_form():
    # 30 wins to 10: 400 · log10(3) = 190.8485…
    found = elo(("a", "b"), counts((0, 10), (30, 0)), **NONE)
    assert found["a"].value == 1000.0
    assert found["b"].value == pytest.approx(1190.848501887865, abs=1e-8)
    assert found.notes == ()
    assert found.games == (40.0, 40.0)


def test_ten_to_one_is_400_points():
    assert elo(("a", "b"), counts((0, 1), (10, 0)), **NONE)["b"].value == pytest.approx(1400)


def test_three_models_consistent_by_construction_are_recovered():
    # odds b:a = 2, c:b = 3, hence c:a = 6; wins in exactly these proportions
    wins = counts((0, 1, 1), (2, 0, 1), (6, 3, 0))
    found = elo(("a", "b", "c"), wins, **NONE)
    assert found["b"].value == pytest.approx(1000 + 400 * math.log10(2), abs=1e-7)
    assert found["c"].value == pytest.approx(1000 + 400 * math.log10(6), abs=1e-7)


def test_the_anchor_shifts_all_ratings():
    wins = counts((0, 1, 1), (2, 0, 1), (6, 3, 0))
    found = elo(("a", "b", "c"), wins, anchor="c", **NONE)
    assert found["c"].value == 1000.0
    assert found["a"].value == pytest.approx(1000 - 400 * math.log10(6), abs=1e-7)


def test_ratings_agree_with_a_direct_maximisation():
    wins = np.random.default_rng(0).integers(1, 40, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)

    def loss(theta):
        gap = theta[:, None] - theta[None, :]
        return float((wins * np.log1p(np.exp(-gap))).sum()) + theta.sum() ** 2

    direct = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-9}).x
    assert bradley_terry(wins) == pytest.approx(direct - direct.mean(), abs=1e-6)


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 1000), min_size=12, max_size=12),
    st.sampled_from([1.0, 0.01, 1000.0]),
)
def test_at_the_maximum_expected_wins_equal_observed_wins(numbers, scale):
    wins = np.zeros((4, 4))
    wins[~np.eye(4, dtype=bool)] = np.array(numbers) * scale
    theta = bradley_terry(wins)
    games = wins + wins.T
    expected = (games / (1 + np.exp(theta[None, :] - theta[:, None]))).sum(1)
    assert expected == pytest.approx(wins.sum(1), rel=1e-6)


def test_very_unequal_models_converge():
    wins = np.array([[0, 1.0, 0], [1e7, 0, 1.0], [0, 1e7, 0]])
    theta = bradley_terry(wins)
    assert theta[2] - theta[0] == pytest.approx(2 * math.log(1e7), rel=1e-9)


def test_a_model_that_never_wins_gets_half_a_win_and_a_note():
    # 10 : 0 becomes 10.5 : 0.5
    found = elo(("a", "b"), counts((0, 10), (0, 0)), **NONE)
    assert found["b"].value == pytest.approx(1000 - 400 * math.log10(21), abs=1e-7)
    assert "b won none" in found.notes[0]
    assert "a lost none" in found.notes[0]


def test_a_group_that_beats_all_others_is_noted():
    # {a, b} share their games, and so do {c, d}; no c or d ever beats an a or b
    wins = counts((0, 1, 3, 3), (1, 0, 3, 3), (0, 0, 0, 1), (0, 0, 1, 0))
    found = elo(("a", "b", "c", "d"), wins, **NONE)
    assert "one group of models won every comparison" in found.notes[0]
    assert math.isfinite(found["d"].value)
    with pytest.raises(InputError, match="no maximum"):
        bradley_terry(wins[0])


def test_models_that_never_met_are_named():
    wins = counts((0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 0, 2), (0, 0, 1, 0))
    with pytest.raises(InputError, match=r"never met: a, b \| c, d"):
        elo(("a", "b", "c", "d"), wins)


def test_the_bootstrap_resamples_prompts_not_comparisons():
    # 50 identical comparisons at each of 4 prompts: only 4 independent observations
    outcome = np.zeros((4, 2, 2))
    outcome[:3, 1, 0], outcome[3, 0, 1] = 1.0, 1.0
    once, many = (elo(("a", "b"), outcome * n)["b"] for n in (1, 50))
    assert once.value == pytest.approx(many.value, abs=1e-6)
    assert many.low < 900 < 1300 < many.high


def test_the_interval_covers_the_truth_as_often_as_it_says():
    # truth: 400 · log10(0.7 / 0.3) = 147.2
    rng, hits = np.random.default_rng(1), 0
    for trial in range(100):
        wins = np.zeros((100, 2, 2))
        first = rng.random(100) < 0.7
        wins[:, 1, 0], wins[:, 0, 1] = first, ~first
        interval = elo(("a", "b"), wins, resamples=200, seed=trial)["b"]
        hits += not interval.excludes(1000 + 400 * math.log10(7 / 3))
    assert 88 <= hits <= 100  # 95 ± 3 deviations of a binomial


def test_scores_become_wins_and_equal_scores_ties():
    wins = wins_from_scores(np.array([[1.0, 1.0, 3.0], [0.0, math.nan, 2.0]]))
    assert wins[0].tolist() == [[0, 0.5, 0], [0.5, 0, 0], [1, 1, 0]]
    assert wins[1].tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert wins_from_scores(np.array([[1.0, 1.4]]), tie_within=0.5)[0, 0, 1] == 0.5


def test_resamples_without_a_wins_of_one_side_are_counted():
    wins = np.zeros((6, 2, 2))
    wins[:5, 1, 0], wins[5, 0, 1] = 1, 1
    (note,) = elo(("a", "b"), wins).notes
    assert "bootstrap samples some model won or lost every comparison" in note


@pytest.mark.parametrize(
    ("names", "wins", "message"),
    [
        (("a", "a"), counts((0, 1), (1, 0)), "names of their own"),
        (("a", "b"), np.zeros((0, 2, 2)), "at least one prompt"),
        (("a", "b"), np.zeros((1, 3, 3)), "have the shape"),
        (("a", "b"), counts((0, math.nan), (1, 0)), "finite"),
        (("a", "b"), counts((1, 1), (1, 0)), "diagonal"),
    ],
)
def test_what_is_not_comparisons_is_refused(names, wins, message):
    with pytest.raises(InputError, match=message):
        elo(names, wins)


def test_an_unknown_anchor_is_refused():
    with pytest.raises(InputError, match="anchor 'c'"):
        elo(("a", "b"), counts((0, 1), (1, 0)), anchor="c")
