import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from constrained_rl.checkpoint import pack, unpack
from constrained_rl.constraints import Signal
from constrained_rl.errors import InputError
from constrained_rl.multipliers import PID, Fixed, Gradient
from constrained_rl.scale_free import ScaleFree

CONTROLLERS = {
    "fixed": lambda k: Fixed([0.5] * k),
    "linear": lambda k: Gradient(k, 0.1),
    "linear bounded": lambda k: Gradient(k, 0.5, initial=1.0, maximum=2.0, delay=1),
    "adam": lambda k: Gradient(k, 0.035, initial=0.001, optimizer="adam"),
    "log": lambda k: Gradient(k, 0.01, initial=1.0, parameterization="log", maximum=20.0),
    "log adam": lambda k: Gradient(k, 0.1, 1.0, parameterization="log", optimizer="adam"),
    "softplus": lambda k: Gradient(k, 0.1, initial=0.5, parameterization="softplus", maximum=9.0),
    "softplus rmsprop": lambda k: Gradient(
        k, 0.1, 1.0, "softplus", "RMSprop", optimizer_options={"momentum": 0.5}
    ),
    "adamw with options": lambda k: Gradient(
        k, 0.1, optimizer="AdamW", optimizer_options={"betas": [0.5, 0.9], "weight_decay": 0.1}
    ),
    "nadam": lambda k: Gradient(k, 0.1, optimizer="nadam"),  # counts in float32
    "asgd": lambda k: Gradient(k, 0.1, optimizer="ASGD"),  # so does this one
    "factory": lambda k: Gradient(k, 0.1, optimizer=torch.optim.Adamax),
    "pid": lambda k: PID(k, 0.5, 0.1, 0.2),
    "pid of the peers": lambda k: PID(k, 0.1, 0.01, 0.01, 0.001, 0.95, 0.95, 10, 5.0),
    "pid relative": lambda k: PID(k, 1.0, 0.05, 0.0, relative=True, maximum=50.0),
    "scale free": lambda k: ScaleFree(k),
}
each_controller = pytest.mark.parametrize("make", CONTROLLERS.values(), ids=CONTROLLERS)
costs = st.lists(st.floats(-50, 50), min_size=1, max_size=25)


def signal(*cost, limit=1.0):
    cost = torch.tensor(cost, dtype=torch.float64)
    one = torch.ones_like(cost)
    return Signal(cost, torch.full_like(cost, limit), 0 * one, one, 1.0, length=1e9)


def run(multiplier, sequence, limit=1.0):
    """λ after every cost of a one-constraint sequence."""
    return [multiplier.update(signal(cost, limit=limit)).item() for cost in sequence]


# each rule by hand (limit 1)


def test_fixed_weights_ignore_every_cost():
    assert run(Fixed([0.7]), [100, -100]) == [0.7, 0.7]


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_fixed_weights_must_be_finite_and_not_negative(weight):
    with pytest.raises(InputError, match="static weights"):
        Fixed([1.0, weight])


def test_gradient_ascends_by_the_violation_and_is_projected_to_0():
    # 0 + ½·(3 − 1) = 1;  1 + ½·(2 − 1) = 1.5;  [1.5 + ½·(−5 − 1)]₊ = 0;  0 + ½·1 = ½
    assert run(Gradient(1, 0.5), [3, 2, -5, 2]) == [1.0, 1.5, 0.0, 0.5]


def test_adam_steps_by_its_learning_rate_whatever_the_violation():
    # First step: m̂/√v̂ = sign, so λ = 0.001 + 0.035 (up to Adam's ε = 1e-8)
    for cost in (1.1, 60, 1000):
        (lam,) = run(Gradient(1, 0.035, initial=0.001, optimizer="adam"), [cost])
        assert_close(lam, 0.036, atol=1e-8, rtol=0)


def test_log_rule_gives_the_published_trajectory():
    # ln λ ← ln λ + 0.1·λ·3 from λ = 1:  e^0.3 = 1.3499;  1.3499·e^(0.3·1.3499) = 2.0238; …
    multiplier = Gradient(1, 0.1, initial=1.0, parameterization="log")
    lam, by_hand = 1.0, []
    for _ in range(4):
        lam *= math.exp(0.1 * lam * 3)
        by_hand.append(lam)
    found = run(multiplier, [3.0] * 4, limit=0.0)
    assert_close(found, by_hand)
    assert [round(x, 2) for x in found] == [1.35, 2.02, 3.71, 11.32]


@pytest.mark.parametrize("rule", ["log", "softplus"])
@pytest.mark.parametrize("initial", [0.0, -1.0])
def test_what_is_always_positive_cannot_start_at_0(initial, rule):
    with pytest.raises(InputError, match=rf"{rule} multiplier .*multiplier\.initial > 0"):
        Gradient(1, 0.1, initial=initial, parameterization=rule)


def test_softplus_ascends_by_its_slope():
    # λ₀ = ln 2: ξ = 0, σ(ξ) = ½.  ξ ← 0 + ½·½·(3 − 1) = ½, λ = ln(1 + e^½);
    # then ξ ← ½ + ½·σ(½)·(−5 − 1)
    second = 0.5 - 3 / (1 + math.exp(-0.5))
    expected = [math.log1p(math.exp(0.5)), math.log1p(math.exp(second))]
    found = run(Gradient(1, 0.5, math.log(2), "softplus"), [3, -5])
    assert_close(found, expected, atol=1e-15, rtol=0)


@pytest.mark.parametrize("lam", [1e-300, 1e-9, 0.1, 1.0, 30.0, 1e4])
def test_softplus_starts_at_the_lambda_that_was_asked_for(lam):
    # ln(e^λ − 1) overflows at 710 and cancels near 0; λ + ln(1 − e^−λ) does neither.
    assert_close(Gradient(1, 0.1, lam, "softplus").lam.item(), lam, atol=0, rtol=1e-12)


def test_softplus_is_gradient_ascent_on_lambda_times_the_violation():
    xi = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    lam = torch.nn.functional.softplus(xi)
    (lam * (3.0 - 1.0)).sum().backward()
    expected = torch.nn.functional.softplus(xi + 0.1 * xi.grad)
    found = run(Gradient(1, 0.1, lam.item(), "softplus"), [3.0])
    assert_close(found, expected.tolist(), atol=1e-12, rtol=0)


def test_pid_adds_proportional_integral_and_rising_derivative():
    # kp = 1, ki = ½, kd = 2, limit 1, delay line [0].
    # J = 3: Δ = 2, I = 1, D = 3 − 0 = 3      → λ = 2 + 1 + 6 = 9
    # J = 2: Δ = 1, I = 1.5, D = max(0, −1)   → λ = 1 + 1.5 = 2.5
    # J = 4: Δ = 3, I = 3, D = 2              → λ = 3 + 3 + 4 = 10
    assert run(PID(1, 1.0, 0.5, 2.0), [3, 2, 4]) == [9.0, 2.5, 10.0]


def test_pid_averages_start_at_0():
    # a_p = ½: P = ½·2 = 1, then ½·1 + ½·2 = 1.5
    assert run(PID(1, 1.0, 0.0, 0.0, proportional_ema=0.5), [3, 3]) == [1.0, 1.5]
    # a_d = ½: C = 1.5, then ½·1.5 + ½·3 = 2.25;  D = 1.5 − 0, then 2.25 − 1.5
    assert run(PID(1, 0.0, 0.0, 1.0, derivative_ema=0.5), [3, 3]) == [1.5, 0.75]


def test_pid_derivative_looks_back_as_far_as_its_delay():
    # Delay line of 3 starting at [0]: compared with 0, 0, 0, then with the cost three updates ago.
    pid = PID(1, 0.0, 0.0, 1.0, derivative_delay=3)
    assert run(pid, [1, 2, 3, 5, 9]) == [1.0, 2.0, 3.0, 4.0, 7.0]


def test_relative_pid_means_the_same_at_every_limit():
    def make():
        return PID(1, 1.0, 0.5, 0.3, relative=True)

    assert_close(run(make(), [3, 1, 2], limit=2.0), run(make(), [30, 10, 20], limit=20.0))
    # At limit −2 a cost of −1 violates by ½|limit|: kp·½ + ki·½, and C = −½ is not above 0.
    assert run(make(), [-1], limit=-2.0) == [0.75]


def test_relative_pid_refuses_a_limit_of_0():
    with pytest.raises(InputError, match="limit is 0"):
        run(PID(1, 1.0, 0.0, 0.0, relative=True), [1.0], limit=0.0)


# what every rule promises


@each_controller
@given(sequence=costs)
def test_lambda_is_never_negative_and_finite(make, sequence):
    # ±50 per step drives every rule far up and down; the log rule is bounded by its maximum.
    values = run(make(1), [min(c, 5.0) for c in sequence])
    assert all(0 <= lam < float("inf") for lam in values)


@given(sequence=costs, rate=st.floats(0.001, 2), initial=st.floats(0, 3))
def test_pure_integral_control_is_projected_gradient_ascent(sequence, rate, initial):
    gradient = Gradient(1, rate, initial)
    assert_close(run(PID(1, 0.0, rate, 0.0, initial), sequence), run(gradient, sequence))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_delay_holds_lambda_for_the_first_updates(optimizer):
    found = run(Gradient(1, 0.5, initial=0.2, delay=2, optimizer=optimizer), [3, 3, 3])
    assert found[:2] == [0.2, 0.2]
    assert found[2] > 0.2


@pytest.mark.parametrize(
    "multiplier",
    [
        Gradient(1, 1.0, maximum=2.5),
        Gradient(1, 1.0, 1.0, parameterization="log", maximum=2.5),
        Gradient(1, 1.0, 1.0, parameterization="softplus", maximum=2.5),
        PID(1, 1.0, 1.0, 1.0, maximum=2.5),
    ],
)
def test_maximum_bounds_lambda(multiplier):
    assert_close(run(multiplier, [50] * 3), [2.5] * 3)


def test_a_saturated_integral_unwinds_with_the_first_satisfied_signal():
    # 100 violations would wind an unclipped integral up to 400; clipped to 2 it falls at once:
    # 2 + ½·(−1 − 1) = 1, then 0.
    pid = PID(1, 0.0, 0.5, 0.0, maximum=2.0)
    assert run(pid, [9] * 100 + [-1, -1])[-3:] == [2.0, 1.0, 0.0]


def test_a_long_satisfied_constraint_reacts_to_the_first_violation():
    # The integral is clipped at 0 from below too: 0 + ½·(2 − 1)
    assert run(PID(1, 0.0, 0.5, 0.0), [-9] * 100 + [2])[-1] == 0.5


@each_controller
@given(first=costs, second=costs)
def test_constraints_do_not_see_each_other(make, first, second):
    length = min(len(first), len(second))
    first, second = ([min(c, 5.0) for c in x[:length]] for x in (first, second))
    both = make(2)
    lam = [both.update(signal(a, b)) for a, b in zip(first, second, strict=True)]
    assert [x[0].item() for x in lam] == run(make(1), first)
    assert [x[1].item() for x in lam] == run(make(1), second)


@each_controller
def test_no_finished_episode_changes_nothing(make):
    with_gap, without = make(1), make(1)
    run(with_gap, [3, 2])
    before = run(without, [3, 2])[-1]
    assert with_gap.update(None).item() == before
    assert run(with_gap, [2, 4]) == run(without, [2, 4])


@each_controller
def test_the_delay_is_counted_in_updates_not_in_calls(make):
    gap, plain = make(1), make(1)
    for _ in range(5):
        gap.update(None)
    assert run(gap, [2, 3]) == run(plain, [2, 3])


@each_controller
@pytest.mark.parametrize("past", [0, 1, 12])
def test_a_restored_controller_continues_the_identical_trajectory(make, past):
    original, copy = make(2), make(2)
    for t in range(past):
        original.update(signal(1.0 + t % 3, 0.5))
    tensors = {}
    packed = pack(original.state_dict(), tensors)
    copy.load_state_dict(unpack(packed, tensors))
    for t in range(12):
        new = signal(2.0 - t % 4, 1.5)
        assert torch.equal(copy.update(new), original.update(new))


# a state under other settings: λ goes on, settings are the new ones


def continued(old, new, past=(3.0, 2.0)):
    """λ of `old` after some updates, and `new` with its state from a file."""
    run(old, past)
    tensors = {}
    new.load_state_dict(unpack(pack(old.state_dict(), tensors), tensors))
    return old.lam.item(), new


def test_a_new_learning_rate_holds_from_the_next_update():
    # λ = .1 (3 − 1) + .1 (2 − 1) = .3, then 2 · (4 − 1) more
    lam, new = continued(Gradient(1, 0.1), Gradient(1, 2.0))
    assert lam == pytest.approx(0.3)
    assert run(new, [4.0]) == pytest.approx([6.3])


def test_new_options_of_the_optimizer_hold_and_its_moments_are_kept():
    old = Gradient(1, 0.1, optimizer="adam", optimizer_options={"betas": [0.9, 0.99]})
    new = Gradient(1, 0.7, optimizer="adam", optimizer_options={"betas": [0.5, 0.8], "eps": 1e-3})
    lam, new = continued(old, new)
    # moments of the gradients −2, −1 by the old decays, then one step of −3 by the new ones
    m = 0.9 * (0.1 * -2) + 0.1 * -1
    v = 0.99 * (0.01 * 4) + 0.01 * 1
    m, v = 0.5 * m + 0.5 * -3, 0.8 * v + 0.2 * 9
    step = 0.7 * m / (1 - 0.5**3) / (math.sqrt(v / (1 - 0.8**3)) + 1e-3)
    assert run(new, [4.0]) == pytest.approx([lam - step], rel=1e-9)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"optimizer": "adam"}),
        ({"optimizer": "adam"}, {"optimizer": "RMSprop"}),
        ({"optimizer": "adam"}, {}),
        ({"optimizer": "adam"}, {"optimizer": "adam", "optimizer_options": {"amsgrad": True}}),
        ({"initial": 1.0, "parameterization": "log"}, {}),
        ({"initial": 1.0}, {"initial": 1.0, "parameterization": "softplus"}),
        ({"initial": 1.0, "optimizer": "adam"}, {"initial": 9.0, "parameterization": "log"}),
    ],
)
def test_another_optimizer_or_parameterization_begins_at_the_same_lambda(before, after):
    lam, new = continued(Gradient(1, 0.1, **before), Gradient(1, 0.1, **after))
    assert new.update(None).item() == pytest.approx(lam, rel=1e-12)
    fresh = Gradient(1, 0.1, **{**after, "initial": lam})
    assert run(new, [4.0, 0.5]) == pytest.approx(run(fresh, [4.0, 0.5]), rel=1e-12)


def test_a_lambda_of_0_cannot_go_on_as_a_logarithm():
    with pytest.raises(InputError, match=r"log multiplier starts at 0, .*linear"):
        continued(Gradient(1, 0.1), Gradient(1, 0.1, 1.0, "log"), past=[0.5])


def test_a_bound_of_pid_control_holds_from_the_next_update():
    _, new = continued(PID(1, 1.0, 0.5, 0.0), PID(1, 1.0, 0.5, 0.0, maximum=0.25))
    assert run(new, [4.0]) == [0.25]


@each_controller
def test_a_returned_lambda_does_not_change_later(make):
    multiplier = make(1)
    first = multiplier.update(signal(3.0))
    kept = first.clone()
    multiplier.update(signal(4.0))
    assert torch.equal(first, kept)


@each_controller
def test_a_saved_state_does_not_move_with_the_controller(make):
    multiplier = make(1)
    multiplier.update(signal(3.0))
    tensors = {}
    pack(multiplier.state_dict(), tensors)
    kept = {name: value.clone() for name, value in tensors.items()}
    multiplier.update(signal(4.0))
    assert all(torch.equal(tensors[name], kept[name]) for name in kept)


@each_controller
def test_without_constraints_lambda_is_empty(make):
    assert make(0).update(signal()).shape == (0,)


STARTED = {
    "linear": lambda lam: Gradient(2, 0.1, initial=lam),
    "log": lambda lam: Gradient(2, 0.1, initial=lam, parameterization="log"),
    "softplus": lambda lam: Gradient(2, 0.1, initial=lam, parameterization="softplus"),
    "pid": lambda lam: PID(2, 1.0, 0.1, 0.0, initial=lam),
    "scale_free": lambda lam: ScaleFree(2, initial=lam),
}


@pytest.mark.parametrize("rule", STARTED)
def test_every_cost_may_have_a_start_of_its_own(rule):
    assert STARTED[rule]((0.25, 2.0)).lam.tolist() == pytest.approx([0.25, 2.0], rel=1e-12)
    with pytest.raises(InputError, match=r"multiplier.initial has 3 entries for 2 constraint\(s\)"):
        STARTED[rule]((0.25, 2.0, 1.0))


def test_one_start_at_0_is_refused_where_lambda_is_always_positive():
    with pytest.raises(InputError, match="initial > 0"):
        Gradient(2, 0.1, initial=(0.5, 0.0), parameterization="log")


# in units of the problem


def scaled(cost, limit, reward=1.0, unit=1.0, pace=1.0, spread=0.0):
    """A signal whose rewards are `reward` and whose costs and limit are `unit` times as large."""
    number = torch.tensor([unit], dtype=torch.float64)
    return Signal(cost * number, limit * number, spread * number, number, reward, 1e9, pace)


def test_the_scale_free_rule_by_hand():
    rule = ScaleFree(1, kp=3.0, ki=0.2)
    # ρ = 4/2, D = |limit| = 2; x = (3 − 2)/2 = ½;  I = .2 · min(5x, 1) = .2;  λ = 2 (.2 + 3·½)
    signal = Signal(*(torch.tensor([x]).double() for x in (3, 2, 0.5, 2)), 4.0, length=5)
    assert rule.update(signal).item() == pytest.approx(3.4)
    # x = −½: I = max(0, .2 − .2·2.5) = 0 and λ = 2 max(0, 0 − 1.5)
    slack = replace(signal, cost=torch.tensor([1.0]).double())
    assert rule.update(slack).item() == 0
    # a spread beyond |limit| is the unit, but no more than ½·2·5: x = 1/5, and half the pace moves
    # I by half as much: I = .1 and λ = 2 (.1 + 3/5)
    wide = replace(signal, cost_spread=torch.tensor([1e9]).double(), pace=0.5)
    assert rule.update(wide).item() == pytest.approx(1.4)


def test_both_terms_grow_with_a_large_integral():
    rule = ScaleFree(1, kp=1.0, ki=0.1, initial=10.0)
    # x = −.1: I = 10 + .1·10·(−.5) = 9.5;  λ = 9.5 + 9.5·(−.1)
    assert rule.update(scaled(0.9, 1.0)).item() == pytest.approx(8.55)


@given(costs, st.floats(-3, 3), st.floats(-3, 3))
def test_units_change_the_price_and_nothing_else(sequence, reward, unit):
    reward, unit = 10.0**reward, 10.0**unit
    plain, other = ScaleFree(1), ScaleFree(1)
    for cost in sequence:
        lam = plain.update(scaled(cost, 1.0)).item()
        assert other.update(scaled(cost, 1.0, reward, unit)).item() == pytest.approx(
            lam * reward / unit, rel=1e-9, abs=1e-12
        )


def test_a_constant_in_every_step_does_not_drown_the_violation():
    # Episodes of 10 steps that each pay 100 beside what matters: |limit| = 1000, but a deviation of
    # 2 in every step is at most 20, and half of it is the unit: x = (1005 − 1000)/10
    signal = Signal(*(torch.tensor([x]).double() for x in (1005, 1000, 300, 2)), 2.0, length=10)
    assert ScaleFree(1, kp=1.0, ki=0.0).update(signal).item() == pytest.approx(0.5)


@pytest.mark.parametrize("cost", [0.0, 1.0])
def test_a_stream_without_spread_gives_a_finite_price(cost):
    zero = torch.zeros(1, dtype=torch.float64)
    signal = Signal(zero + cost, zero, zero, zero, 0.0, length=5)
    lam = [ScaleFree(1).update(signal).item() for _ in range(3)]
    assert all(math.isfinite(x) and (x > 0) == (cost > 0) for x in lam)
