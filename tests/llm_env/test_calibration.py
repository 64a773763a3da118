import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from constrained_rl.errors import InputError
from llm_env.calibration.evidence import Evidence, Labelled, Sample, noise_behind
from llm_env.calibration.maths import (
    Platt,
    apparent_share,
    area_under_curve,
    calibration_error,
    effective_size,
    fit_platt,
    label_noise,
    limit_by_tilting,
    reliability,
    rogan_gladen,
    shift_to,
    tilt,
    tilt_to,
    transform,
)
from llm_env.calibration.results import FEW
from llm_env.calibration.summary import calibrate, check_request, grid_of_limits

LN2, LN3, LN5 = math.log(2), math.log(3), math.log(5)


def labels(*groups):
    """Costs and labels of groups (cost, responses, of these unsafe)."""
    cost = np.concatenate([np.full(n, float(c)) for c, n, _ in groups])
    unsafe = np.concatenate([np.arange(n) < k for _, n, k in groups])
    return cost, unsafe


# calibration


def test_platt_on_two_costs_has_the_closed_form_of_a_saturated_model():
    # N₊ = N₋ = 10: smoothed labels are 11/12 and 1/12, so the means to be fitted are
    # at C = −1: (1 · 11/12 + 9 · 1/12) / 10 = 1/6, at C = 1: 5/6; logit(5/6) = ln 5
    platt = fit_platt(*labels((-1, 10, 1), (1, 10, 9)))
    assert platt.slope == pytest.approx(LN5, abs=1e-6)
    assert platt.intercept == pytest.approx(0, abs=1e-6)
    assert platt.boundary == pytest.approx(0, abs=1e-6)


def test_platt_stays_finite_where_a_threshold_separates_the_labels():
    # smoothed labels alone: logit(11/12) = ln 11 at C = 3 and −ln 11 at C = 1
    platt = fit_platt(*labels((1, 10, 0), (3, 10, 10)))
    assert platt.slope == pytest.approx(math.log(11), abs=1e-6)
    assert platt.boundary == pytest.approx(2, abs=1e-6)  # halfway: its zero is 2 too low


def test_a_calibrated_cost_model_is_found_calibrated():
    rng = np.random.default_rng(0)
    cost = rng.normal(-1, 2.5, 4000)
    platt = fit_platt(cost, rng.random(4000) < expit(cost))
    assert platt.slope == pytest.approx(1, abs=0.12)  # 3 standard errors
    assert platt.intercept == pytest.approx(0, abs=0.15)


def test_reliability_bins_hold_equal_counts_and_their_shares():
    predicted = np.array([0.1, 0.3, 0.2, 0.9, 0.7, 0.8])
    unsafe = np.array([False, True, False, True, True, False])
    low, high = reliability(predicted, 10 * predicted, unsafe, bins=2)
    assert (low.n, high.n) == (3, 3)
    assert (low.predicted, low.cost) == (pytest.approx(0.2), pytest.approx(2.0))
    assert (low.unsafe.value, high.unsafe.value) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    # (3 · |0.2 − 1/3| + 3 · |0.8 − 2/3|) / 6 = 2/15
    assert calibration_error([low, high]) == pytest.approx(2 / 15)


def test_auc_counts_pairs_in_the_right_order_and_ties_half():
    cost = np.array([0.0, 1.0, 1.0, 2.0])
    unsafe = np.array([False, False, True, True])
    # unsafe 1 beats 0, ties 1; unsafe 2 beats both: (1 + ½ + 2) / 4
    assert area_under_curve(cost, unsafe) == 3.5 / 4
    assert area_under_curve(-cost, unsafe) == pytest.approx(0.5 / 4)


# label noise


def test_label_noise_explains_the_agreement_of_two_annotators():
    assert label_noise(0.82) == pytest.approx(0.1)  # 0.9² + 0.1²
    assert label_noise(1.0) == 0


@pytest.mark.parametrize("agreement", [0.5, 0.2, 1.01, math.nan])
def test_agreement_by_chance_is_refused(agreement):
    with pytest.raises(InputError, match="two people"):
        noise_behind(agreement)


def test_harm_is_what_most_annotators_say_and_stays_a_probability():
    platt = Platt(1.0, 0.0, noise=0.1)
    cost = np.array([-5.0, 0.0, math.log(0.58 / 0.42), 5.0])
    # σ(−5) < 0.1 → 0; ½ → ½; (0.58 − 0.1) / 0.8 = 0.6; σ(5) > 0.9 → 1
    assert platt.harmful(cost) == pytest.approx([0, 0.5, 0.6, 1])


def test_rogan_gladen_by_hand():
    # 10 % unsafe, sensitivity 0.9, specificity 0.95: called unsafe 0.09 + 0.045
    assert apparent_share(0.1, 0.9, 0.95) == pytest.approx(0.135)
    assert rogan_gladen(0.135, 0.9, 0.95) == pytest.approx(0.1)
    assert rogan_gladen(0.02, 0.9, 0.95) == 0  # fewer than false alarms alone give
    with pytest.raises(ValueError, match="no true share"):
        rogan_gladen(0.1, 0.5, 0.5)


# tilting


def test_tilting_three_responses_by_hand():
    t = np.array([0.0, 1.0, 2.0])
    assert tilt(t, LN2) == pytest.approx([4 / 7, 2 / 7, 1 / 7])  # 1, ½, ¼
    # their mean is 2/7 + 2/7
    assert tilt_to(t, 4 / 7) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert tilt_to(t, 10 / 7) == pytest.approx([1 / 7, 2 / 7, 4 / 7])  # λ = −ln 2: moved up
    assert effective_size(tilt(t, LN2)) == pytest.approx(49 / 21)
    assert effective_size(tilt(t, 0.0)) == pytest.approx(3)


def test_at_its_ends_tilting_leaves_the_responses_of_that_cost():
    t = np.array([0.0, 0.0, 1.0])
    assert tilt_to(t, 0.0).tolist() == [0.5, 0.5, 0.0]
    assert tilt_to(t, 1.0).tolist() == [0.0, 0.0, 1.0]
    with pytest.raises(ValueError, match=r"span 0\.0 … 1\.0"):
        tilt_to(t, 1.5)


def test_the_limit_on_a_share_follows_from_misses_and_hits():
    # 1/10 of C ≤ 0 and 9/10 of C > 0 are harmful: 0.1 (1 − s) + 0.9 s = 0.3 at s = 1/4
    t = np.array([0.0, 0.0, 0.0, 1.0, 1.0])
    chance = np.array([0.1, 0.1, 0.1, 0.9, 0.9])
    assert limit_by_tilting(t, chance, 0.3) == pytest.approx(0.25)
    assert limit_by_tilting(t, chance, 0.08) is None  # misses alone are more
    assert limit_by_tilting(t, chance, 0.95) is None


def test_a_shift_moves_the_expected_share_to_the_target():
    # one cost: σ(0 − δ) = 1/4 at δ = ln 3
    assert shift_to(np.zeros(3), Platt(1.0, 0.0), 0.25) == pytest.approx(LN3)
    # twice as steep, boundary at 1: σ(2 (0 − δ) − 2) = 1/4 at 2δ + 2 = ln 3
    assert shift_to(np.zeros(3), Platt(2.0, -2.0), 0.25) == pytest.approx(LN3 / 2 - 1)


costs = st.lists(st.floats(-8, 8), min_size=2, max_size=30, unique=True).map(np.array)


@given(costs, st.floats(0.01, 0.99))
def test_tilted_weights_meet_every_limit_between_the_ends(cost, place):
    limit = cost.min() + place * (cost.max() - cost.min())
    weight = tilt_to(cost, limit)
    assert weight.min() >= 0
    assert weight.sum() == pytest.approx(1)
    assert weight @ cost == pytest.approx(limit, abs=1e-6)


def test_transforms_are_those_of_the_constraint():
    cost = np.array([-1.0, 0.0, 2.0])
    assert transform(cost, "identity").tolist() == [-1.0, 0.0, 2.0]
    assert transform(cost, "indicator").tolist() == [0.0, 0.0, 1.0]
    assert transform(cost, "probability") == pytest.approx(1 / (1 + np.exp(-cost)))


# proposals


def world(n=1000, noise=0.0, seed=0):
    """Responses whose chance of harm is σ(C); labels are wrong with chance `noise`."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        cost = np.where(
            rng.random(shape) < 0.4, rng.normal(2.5, 1, shape), rng.normal(-3, 1, shape)
        )
        return cost, rng.random(shape) < expit(cost)

    cost, harm = draw((n, 2))
    labelled = Labelled(cost, harm ^ (rng.random(harm.shape) < noise))
    cost, harm = draw(n)
    return Evidence("world", labelled, Sample("sft", "SFT", cost, harm), "draws", noise=noise)


@pytest.mark.parametrize("form", ["indicator", "probability", "identity"])
def test_where_the_cost_model_is_calibrated_the_proposal_holds_the_target(form):
    found = calibrate(world(), form, target=0.1, resamples=20)
    assert found.quality.platt.slope == pytest.approx(1, abs=0.15)
    assert found.quality.boundary.low < 0 < found.quality.boundary.high
    best = found.proposal
    assert best.at_limit.estimated.value == pytest.approx(0.1, abs=1e-6)
    assert best.at_limit.gold.value == pytest.approx(0.1, abs=0.03)
    assert best.limit.low < best.limit.value < best.limit.high


def test_label_noise_is_not_taken_for_harm():
    noisy = world(noise=0.1)
    aware = calibrate(noisy, "probability", target=0.1, resamples=10)
    naive = calibrate(
        Evidence(noisy.title, noisy.labelled, noisy.start, "draws"), "probability", 0.1, 10
    )
    assert aware.start.estimated.value == pytest.approx(float(noisy.start.unsafe.mean()), abs=0.04)
    assert naive.proposal.limit is None or (
        naive.proposal.limit.value < aware.proposal.limit.value - 0.02
    )


def test_a_form_out_of_reach_has_no_limit_and_says_what_is_left():
    found = calibrate(world(noise=0.0), "indicator", target=0.01, resamples=10)
    cost = world().start.cost
    missed = found.quality.platt.harmful(cost[cost <= 0]).mean()
    assert found.proposal.limit is None
    assert found.proposal.at_limit is None
    assert found.proposal.lowest == pytest.approx(missed)
    assert missed > 0.01


def test_the_same_seed_gives_the_same_intervals():
    first, again = (calibrate(world(300), resamples=10, seed=3) for _ in range(2))
    assert first == again
    assert first != calibrate(world(300), resamples=10, seed=4)


def test_limits_that_rest_on_few_responses_are_flagged():
    found = calibrate(world(200), "identity", target=0.1, resamples=5)
    tightest = found.proposal.effects[0]
    assert tightest.effective < FEW
    assert tightest.few


def test_a_model_with_more_harm_than_expected_stands_out():
    base = world(300)
    passed = np.full(100, -6.0)
    hacked = Sample("hacked", "hacked", passed, np.arange(100) < 20)  # 20 % harmful at C = −6
    honest = Sample("honest", "honest", passed, np.zeros(100, dtype=bool))
    evidence = Evidence(base.title, base.labelled, base.start, "draws", (hacked, honest))
    _, first, second = calibrate(evidence, resamples=5).outcomes
    assert (first.underestimated, second.underestimated) == (True, False)
    assert first.missed.value == 0.2
    assert first.value["indicator"] == 0


def test_limits_to_look_at_are_round_and_inside_the_samples():
    assert grid_of_limits(np.array([0.0, 0.0, 1.0]), "indicator")[:3] == [0.0, 0.01, 0.02]
    limits = grid_of_limits(np.linspace(-3.2, 4.1, 50), "identity")
    assert limits[0] == -3.0
    assert set(np.diff(limits)) == {0.5}
    assert grid_of_limits(np.full(3, 0.7), "probability") == [0.7]


# bad input


@pytest.mark.parametrize("kind", [True, False])
def test_labels_of_one_kind_are_refused(kind):
    with pytest.raises(InputError, match=f"are {'unsafe' if kind else 'safe'}; calibration"):
        Labelled(np.zeros((3, 2)), np.full((3, 2), kind))


def test_an_inverted_cost_model_is_named():
    good = world(50).labelled
    with pytest.raises(InputError, match=r"AUC 0\.0.*inverted"):
        Labelled(-good.cost, good.unsafe)


def test_a_cost_model_that_says_nothing_is_refused():
    with pytest.raises(InputError, match=r"AUC 0\.500"):
        Labelled(np.zeros((2, 2)), np.array([[True, False], [False, True]]))


def test_costs_that_are_no_numbers_are_counted():
    with pytest.raises(InputError, match="SFT: 2 of 3 costs are NaN or infinite"):
        Sample("sft", "SFT", np.array([1.0, math.nan, math.inf]), None)


@pytest.mark.parametrize("target", [0.0, 1.0, -1.0, math.nan])
def test_a_target_that_is_no_share_is_refused(target):
    with pytest.raises(InputError, match="target: found"):
        check_request("indicator", target)


def test_an_unknown_form_is_answered_with_the_known_ones():
    assert check_request("identity", 0.1) == "identity"
    with pytest.raises(InputError, match="'mean'; expected one of indicator, probability"):
        check_request("mean", 0.1)
