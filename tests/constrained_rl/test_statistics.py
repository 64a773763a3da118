import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_rl.statistics import Interval, mean_interval, proportion_interval


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
