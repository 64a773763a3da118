import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from constrained_rl.errors import InputError
from constrained_rl.safety_test import METHODS, SafetyTest
from constrained_rl.upper_bounds import (
    bernstein_bound,
    clopper_pearson_bound,
    hoeffding_bound,
    student_t_bound,
)


def test_student_t_bound_by_hand():
    # mean 3, s² = (4 + 1 + 0 + 1 + 4) / 4 = 2.5, n = 5, t(0.95, 4 df) = 2.131847
    # 3 + 2.131847 · √(2.5 / 5) = 3 + 2.131847 · .707107 = 4.507443
    bound = student_t_bound(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 0.05)
    assert bound == pytest.approx(4.507443, abs=1e-6)


def test_hoeffding_bound_by_hand():
    # mean .5, b − a = 2, n = 8: .5 + 2 √(ln 20 / 16) = .5 + 2 √.1872333 = .5 + .865409
    costs = np.array([0.0, 1.0] * 4)
    assert hoeffding_bound(costs, 0.05, -1.0, 1.0) == pytest.approx(1.0)  # never above b
    assert hoeffding_bound(costs, 0.05, 0.0, 2.0) == pytest.approx(1.365409, abs=1e-6)


def test_empirical_bernstein_bound_by_hand():
    # n = 100, half 0 and half 1: mean .5, s² = 25 / 99 = .252525, ln 40 = 3.688879
    # .5 + √(2 · .252525 · 3.688879 / 100) + 7 · 3.688879 / (3 · 99)
    #   = .5 + √.01863070 + .08694327 = .5 + .13649430 + .08694327
    costs = np.array([0.0, 1.0] * 50)
    assert bernstein_bound(costs, 0.05, 0.0, 1.0) == pytest.approx(0.723438, abs=1e-6)


def test_clopper_pearson_bound_by_hand():
    # U solves P(Binomial(n, U) ≤ k) = δ. k = 0 of 10: (1 − U)^10 = .05, U = 1 − .05^.1 = .258866
    assert clopper_pearson_bound(np.zeros(10), 0.05) == pytest.approx(0.258866, abs=1e-6)
    # 1 of 2: 1 − U² = .05, U = √.95 = .974679
    assert clopper_pearson_bound(np.array([-1.0, 0.3]), 0.05) == pytest.approx(0.974679, abs=1e-6)
    # all of 3: nothing is excluded
    assert clopper_pearson_bound(np.ones(3), 0.05) == 1.0


def test_bounds_of_many_samples_are_those_of_each():
    costs = np.random.default_rng(0).random((4, 3, 12))
    for bound in (
        lambda c: student_t_bound(c, 0.1),
        lambda c: hoeffding_bound(c, 0.1, 0.0, 1.0),
        lambda c: bernstein_bound(c, 0.1, 0.0, 1.0),
        lambda c: clopper_pearson_bound(c - 0.5, 0.1),
    ):
        each = [[float(bound(sample)) for sample in row] for row in costs]
        assert bound(costs).shape == (4, 3)
        np.testing.assert_allclose(bound(costs), each, rtol=1e-12)


def coverage(n, p, upper):
    """Exact share of samples of n Bernoulli(p) costs whose bound holds: Σ P(k) 1[U(k) ≥ p]."""
    samples = (np.arange(n) < np.arange(n + 1)[:, None]).astype(float)  # [k, n]
    held = upper(samples) >= p
    return float(stats.binom.pmf(np.arange(n + 1), n, p)[held].sum())


@pytest.mark.parametrize("n", [2, 10, 50, 200])
@pytest.mark.parametrize("p", [0.01, 0.05, 0.2, 0.5, 0.9])
def test_bounds_for_every_n_hold_at_least_as_often_as_they_say(n, p):
    assert coverage(n, p, lambda c: clopper_pearson_bound(c, 0.05)) >= 0.95
    assert coverage(n, p, lambda c: hoeffding_bound(c, 0.05, 0.0, 1.0)) >= 0.95
    assert coverage(n, p, lambda c: bernstein_bound(c, 0.05, 0.0, 1.0)) >= 0.95


def test_students_t_misses_rare_costs_by_as_much_as_the_documentation_says():
    # ten samples of a cost of probability .01 are all 0 in .99^10 = .904382 of cases: U = 0 < .01
    found = coverage(10, 0.01, lambda c: student_t_bound(c, 0.05))
    assert found == pytest.approx(1 - 0.99**10, abs=1e-9)


def test_several_constraints_share_the_confidence():
    costs = np.random.default_rng(1).normal(size=(40, 2))
    found = SafetyTest(limit=(1.0, 0.1), confidence=0.9, names=("risk", "fuel"))(costs)
    # δ = .1 over K = 2: each bound at level .95
    expected = [float(student_t_bound(costs[:, k], 0.05)) for k in range(2)]
    assert [bound.upper for bound in found.bounds] == expected
    assert [bound.passed for bound in found.bounds] == [True, expected[1] <= 0.1]
    assert found.passed == all(bound.passed for bound in found.bounds)


def test_a_verdict_names_what_is_bounded_and_how():
    costs = np.array([[-2.0, 0.5], [1.0, 0.25], [-1.0, 0.75], [-3.0, 0.5]])
    test = SafetyTest(
        limit=(0.9, 0.9),
        confidence=0.9,
        method=("clopper-pearson", "hoeffding"),
        low=0.0,
        high=1.0,
        names=("unsafe", "wear"),
    )
    unsafe, wear = test(costs).bounds
    assert (unsafe.quantity, unsafe.mean, unsafe.n) == ("P(C > 0)", 0.25, 4)
    # .5 + √(ln 20 / 8) = 1.11 is above the greatest cost
    assert (wear.quantity, wear.mean, wear.upper, wear.passed) == ("E[C]", 0.5, 1.0, False)


def test_a_certificate_says_why_a_limit_is_not_shown_to_be_kept():
    (few, *_) = SafetyTest(limit=1.0)([0.0, 1.0, 0.0]).caveats
    assert few.startswith("The samples' mean keeps the limit of cost, but they are too few")
    (above, *_) = SafetyTest(limit=0.2)([0.0, 1.0, 0.0]).caveats
    assert above == "The samples' mean exceeds the limit of cost."


def test_equal_samples_do_not_let_students_t_claim_certainty_in_silence():
    found = SafetyTest(limit=1.0)(np.zeros(59))
    assert found.passed
    # 1 − .05^(1/59) = .0495
    assert any("in up to 5 % of cases" in caveat for caveat in found.caveats)
    assert SafetyTest(limit=0.5, method="clopper-pearson")(np.zeros(59)).caveats == []


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=30),
    st.floats(0.5, 0.98),
    st.sampled_from(METHODS),
)
def test_a_bound_is_above_the_mean_and_rises_with_confidence(costs, confidence, method):
    def upper(level):
        test = SafetyTest(limit=0.5, confidence=level, method=method, low=0.0, high=1.0)
        return test(costs).bounds[0]

    low, high = upper(confidence), upper(confidence + 0.01)
    assert low.mean - 1e-12 <= low.upper <= high.upper + 1e-12


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"confidence": 1.0}, "confidence is 1"),
        ({"confidence": 0.0}, "confidence is 0"),
        ({"confidence": math.nan}, "confidence is nan"),
        ({"limit": math.inf}, "limit of 'cost' is inf"),
        ({"limit": ()}, "there is no limit"),
        ({"method": "z"}, "method is 'z'; choose from t, hoeffding"),
        ({"method": "hoeffding"}, r"finite bounds low < high .* found \[-inf, inf\]"),
        ({"method": "bernstein", "low": 1.0, "high": 1.0}, r"found \[1, 1\]"),
        ({"limit": 4.0, "method": "clopper-pearson"}, r"limit of 'cost' is 4; .* in \[0, 1\)"),
        ({"limit": (1.0, 2.0), "method": ("t",)}, "there are 1 methods for 2 limit"),
        ({"limit": (1.0, 2.0), "names": ("a",)}, "there are 1 names for 2 limit"),
    ],
)
def test_what_is_wrong_with_a_test_shows_before_there_are_samples(settings, said):
    with pytest.raises(InputError, match=said):
        SafetyTest(**({"limit": 1.0} | settings))


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ([0.5], "there are 1 cost samples"),
        ([], "there are 0 cost samples"),
        ([0.1, math.nan, 0.3], "sample 1 of 'cost' is nan, which is no finite number"),
        ([0.1, 0.2, 1.5], r"sample 2 of 'cost' is 1.5, outside its bounds \[0, 1\]"),
        ([[0.1, 0.2], [0.3, 0.4]], r"costs have shape \[2, 2\], but there are 1 limit"),
    ],
)
def test_bad_samples_are_named(costs, said):
    with pytest.raises(InputError, match=said):
        SafetyTest(limit=0.5, method="hoeffding", low=0.0, high=1.0)(costs)
