import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_rl.feasibility import regret, time_to_feasibility, violation, violation_regret

COST = [9.0, 4.0, 6.0, 4.1, 3.0, 4.16]  # violations at limit 4: 1.25, 0, .5, .025, 0, .04


def test_violation_is_the_worst_over_the_constraints_in_units_of_their_limits():
    assert violation([6.0, 1.0], [4.0, 2.0]) == 0.5
    assert violation([-1.0], [-2.0]) == 0.5  # (−1 + 2) / 2
    assert violation([0.3], [0.0]) == 0.3  # a limit of 0 has no unit
    assert violation([3.0, 2.0], [4.0, 2.0]) == 0.0


def test_violation_regret_is_the_mean_over_training():
    # (1.25 + 0 + .5 + .025 + 0 + .04) / 6
    assert violation_regret(COST, 4.0) == pytest.approx(1.815 / 6)


def test_iterations_in_which_no_episode_finished_are_left_out():
    assert violation_regret([math.nan, 6.0, 4.0], 4.0) == 0.25
    assert time_to_feasibility([math.nan, 4.0, math.nan], 4.0) == 2.0


def test_of_two_constraints_both_must_be_kept():
    cost = np.array([[9.0, 1.0], [4.0, 5.0], [4.0, 1.0]])
    assert violation_regret(cost, [4.0, 2.0]) == pytest.approx((1.25 + 1.5 + 0.0) / 3)
    assert time_to_feasibility(cost, [4.0, 2.0]) == 3.0


def test_time_to_feasibility_is_when_the_limit_is_kept_for_the_rest():
    assert time_to_feasibility(COST, 4.0) == 4.0  # violations from then on: .025, 0, .04
    assert time_to_feasibility(COST, 4.0, tolerance=0.03) is None  # the last one is .04
    assert time_to_feasibility(COST, 4.0, times=np.arange(6) * 100) == 300.0
    assert time_to_feasibility([1.0, 2.0], 4.0) == 1.0


def test_with_a_window_a_later_violation_does_not_matter():
    assert time_to_feasibility(COST, 4.0, window=1) == 2.0
    assert time_to_feasibility(COST, 4.0, window=2) == 4.0
    assert time_to_feasibility(COST, 4.0, window=4) is None
    assert time_to_feasibility(COST, 4.0, window=9) is None


def test_regret_by_hand():
    # [(10 − 9)⁺ + .5 · (5 − 4)⁺] / |10 − 4| = 1.5 / 6
    assert regret(9.0, [5.0], [4.0], 10.0, [0.5], 4.0) == 0.25
    # more reward than the optimum, bought by a violation at more than its price: 2 − 0
    assert regret(12.0, [8.0], [4.0], 10.0, [0.5], 4.0) == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: violation_regret([[1.0, 2.0]], 4.0), "2 costs against 1 limits"),
        (lambda: violation_regret([math.nan], 4.0), "no iteration has a cost"),
        (lambda: time_to_feasibility([1.0], 4.0, window=0), "window is 0"),
        (lambda: time_to_feasibility([1.0, 2.0], 4.0, times=[1.0]), "1 times for 2 rows"),
        (lambda: regret(1.0, [1.0], [1.0], 2.0, [0.0], 2.0), "no regret"),
    ],
)
def test_what_has_no_answer_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20), st.floats(0.1, 5))
def test_from_the_time_to_feasibility_on_the_limit_is_kept(cost, limit):
    found = time_to_feasibility(cost, limit)
    kept = [violation([c], [limit]) <= 0.05 for c in cost]
    if found is None:
        assert not kept[-1]
    else:
        assert all(kept[int(found) - 1 :])
        assert found == 1 or not kept[int(found) - 2]
