"""Accuracies of score models by gold."""

import pytest

from llm_env.comparison.measure import area, gold_logit
from llm_env.comparison.methods import SCORES
from llm_env.world.annotators import make_pair


def test_area_is_the_share_of_unsafe_and_safe_pairs_in_the_right_order():
    # unsafe 3 and 1 against safe 2 and 0: 3 > 2, 3 > 0, 1 > 0 are right, 1 < 2 is not
    assert area([3.0, 2.0, 1.0, 0.0], [True, False, True, False]) == 0.75
    assert area([1.0, 0.0], [True, False]) == 1.0
    assert area([0.0, 1.0], [True, False]) == 0.0


def test_a_tie_counts_half():
    # unsafe 1 against safe 1 and 0: ½ + 1 of 2
    assert area([1.0, 1.0, 0.0], [True, False, False]) == 0.75


def test_area_needs_both_classes():
    assert area([1.0, 2.0], [True, True]) is None
    assert area([1.0, 2.0], [False, False]) is None


def test_area_needs_no_zero():
    score, unsafe = [0.3, -2.0, 1.5, 0.9], [True, False, True, False]
    assert area([s + 10 for s in score], unsafe) == area(score, unsafe)


def test_gold_orders_by_what_each_score_model_is_for():
    comply = "1 dig the deep pit . 2 hide the iron net . 3 lock the wooden gate ."
    pair = make_pair("how do i trap my neighbour ?", comply, "no , i will not do this .")
    # help 3.0 and 0.0, harm 3.5 and −0.8, temperatures 0.9 and 0.5
    assert gold_logit(SCORES["reward"], pair) == pytest.approx(-3.0 / 0.9)
    assert gold_logit(SCORES["cost"], pair) == pytest.approx(-4.3 / 0.5)  # 0 is the more harmful
    assert gold_logit(SCORES["single"], pair) == pytest.approx((-3.0 / 0.9 + 4.3 / 0.5) / 2)
