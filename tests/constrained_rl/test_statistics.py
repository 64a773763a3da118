import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_rl.statistics import (
    Interval,
    iqm,
    mean_interval,
    probability_of_improvement,
    proportion_interval,
    share_within,
)


def test_mean_interval_is_students_t():
    # mean 2, s = 1, n = 3: 2 ± t(0.975, 2 df) / √3 = 2 ± 4.30265 / 1.73205 = 2 ± 2.48414
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.value == 2.0
    assert interval.low == pytest.approx(2 - 2.48414, abs=1e-5)
    assert interval.high == pytest.approx(2 + 2.48414, abs=1e-5)


def test_equal_values_have_an_interval_of_no_width():
    assert mean_interval([0.5, 0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5)


def test_one_value_says_nothing_about_the_mean():
    assert mean_interval([3.0]) == Interval(3.0, -math.inf, math.inf)


def test_wilson_interval_by_hand():
    # p = 1/2, n = 4, z² = 3.84146: centre (p + z²/2n) / (1 + z²/n) = (.5 + .480182) / 1.960365 = .5
    # half width z √(p(1−p)/n + z²/4n²) / (1 + z²/n) = 1.959964 · √(.0625 + .060023) / 1.960365
    #            = 1.959964 · .350033 / 1.960365 = .349961
    interval = proportion_interval(2, 4)
    assert interval.value == 0.5
    assert interval.low == pytest.approx(0.5 - 0.349961, abs=1e-5)
    assert interval.high == pytest.approx(0.5 + 0.349961, abs=1e-5)


def test_wilson_interval_at_zero_has_a_width():
    # p = 0: high = z²/n / (1 + z²/n) = z² / (n + z²) = 3.84146 / 103.84146 = .036994
    interval = proportion_interval(0, 100)
    assert interval.low == 0.0
    assert interval.high == pytest.approx(0.036994, abs=1e-5)


@pytest.mark.parametrize(("count", "n"), [(1, 0), (3, 2), (-1, 4), (0, 0)])
def test_what_is_no_share_is_refused(count, n):
    with pytest.raises(ValueError, match=f"{count} of {n}"):
        proportion_interval(count, n)


def test_the_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_excludes_means_outside():
    interval = Interval(0.2, 0.1, 0.3)
    assert interval.excludes(0.0)
    assert not interval.excludes(0.3)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_share_lies_in_its_interval_and_the_interval_in_0_1(pair):
    interval = proportion_interval(*pair)
    assert 0 <= interval.low <= interval.value + 1e-12
    assert interval.value - 1e-12 <= interval.high <= 1 + 1e-12


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(-10, 10))
def test_shifting_the_values_shifts_the_interval(values, shift):
    before, after = mean_interval(values), mean_interval([v + shift for v in values])
    assert after.low == pytest.approx(before.low + shift, abs=1e-6)
    assert after.high == pytest.approx(before.high + shift, abs=1e-6)


def test_the_exact_interval_of_a_share_by_hand():
    # 10 of 10: the lower end solves p^10 = .025, p = .025^.1 = .691503
    interval = share_within([0.0] * 10, 0.05)
    assert (interval.value, interval.high) == (1.0, 1.0)
    assert interval.low == pytest.approx(0.691503, abs=1e-6)


def test_iqm_is_the_mean_of_the_middle_half():
    # of eight values two are cut at either end: (3 + 4 + 5 + 6) / 4
    assert iqm([99.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -50.0]).value == pytest.approx(
        (2 + 3 + 4 + 5) / 4
    )
    # of ten, ⌊2.5⌋ = 2
    assert iqm(range(10)).value == 4.5


def test_the_bootstrap_of_iqm_draws_within_problems():
    # two problems without spread of their own: however seeds are drawn, the values stay the same
    values, problems = [0.0] * 5 + [1.0] * 5, ["a"] * 5 + ["b"] * 5
    assert iqm(values, problems) == Interval(0.5, 0.5, 0.5)
    mixed = iqm(values)
    assert mixed.low < 0.5 < mixed.high


def test_the_interval_of_iqm_is_near_that_of_a_normal_mean():
    # of 400 normal values, the IQM's standard error is √(1.19 / 400) = .0546 (1.19: variance of
    # the 25 % trimmed mean), so that the interval is about ± .107 wide
    found = iqm(np.random.default_rng(0).normal(size=400))
    assert found.low < 0 < found.high
    assert found.high - found.low == pytest.approx(0.214, rel=0.15)
    assert iqm(np.random.default_rng(0).normal(size=400)) == found  # the same seed


def test_one_seed_of_a_problem_has_no_interval():
    assert iqm([1.0, 2.0, 3.0], ["a", "a", "b"]) == Interval(2.0, -math.inf, math.inf)


def test_probability_of_improvement_by_hand():
    # pairs (3, 1) (3, 3) (5, 1) (5, 3): 1 + ½ + 1 + 1 = 3.5 of 4
    assert probability_of_improvement([3.0, 5.0], [1.0, 3.0]).value == 0.875
    # problem a: 1 of 1 pairs; problem b: 0 of 2; mean ½
    strata = (["a", "b"], ["b", "a", "b"])
    assert probability_of_improvement([2.0, 1.0], [3.0, 1.0, 4.0], strata).value == 0.5


def test_probability_of_improvement_has_an_interval_within_0_and_1():
    found = probability_of_improvement([3.0, 4.0, 5.0], [1.0, 2.0, 4.5])
    assert found.value == pytest.approx(7 / 9)  # all but (3, 4.5) and (4, 4.5)
    assert 0 <= found.low < found.value < found.high <= 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: iqm([]), "values is empty"),
        (lambda: iqm([1.0, math.nan]), r"values\[1\] is nan"),
        (lambda: iqm([1.0, 2.0], ["a"]), "2 values, but 1 strata"),
        (
            lambda: probability_of_improvement([1.0], [1.0], (["a"], ["b"])),
            "only one side has: a, b",
        ),
    ],
)
def test_values_that_cannot_be_aggregated_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_one_run_of_each_leaves_every_probability_possible():
    assert probability_of_improvement([3.0], [1.0]) == Interval(1.0, 0.0, 1.0)
