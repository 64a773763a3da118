import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from constrained_rl.losses import (
    approximate_kl,
    clip_fraction,
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
)

seeds = st.integers(0, 2**31)


def tensor(*values):
    return torch.tensor([values], dtype=torch.float64)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_at_ratio_1_the_surrogate_is_minus_the_mean_advantage():
    logp = tensor(-1.0, -2.0)
    # −(¼·4 + ¾·8) = −7
    assert clipped_surrogate(logp, logp, tensor(4, 8), tensor(0.25, 0.75), 0.2) == -7


@given(seeds)
def test_at_ratio_1_its_gradient_is_the_policy_gradient(seed):
    logp = normal(seed, 3, 4).requires_grad_()
    advantage, weight = normal(seed + 1, 3, 4), normal(seed + 2, 3, 4).abs()
    clipped_surrogate(logp, logp.detach(), advantage, weight, 0.2).backward()
    # d/dlogp of −Σ w A logp
    assert_close(logp.grad, -weight * advantage)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.5, 1.0, -1.2, 0.0),  # good and already likelier than 1 + ε: no further push
        (1.5, -1.0, 1.5, 1.5),  # bad and likelier: full push back
        (0.5, 1.0, -0.5, -0.5),  # good and less likely: full push up
        (0.5, -1.0, 0.8, 0.0),  # bad and already less likely than 1 − ε: no further push
    ],
)
def test_clipping_is_pessimistic_on_both_sides(ratio, advantage, expected, slope):
    logp = tensor(math.log(ratio)).requires_grad_()
    loss = clipped_surrogate(logp, tensor(0), tensor(advantage), tensor(1), 0.2)
    loss.backward()
    assert_close(loss.item(), expected)
    assert_close(logp.grad.item(), slope)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (2.5, -1.0, 2.5, 2.5),  # bad, not yet c = 3 times as likely: as without the bound
        (5.0, -1.0, 3.0, 0.0),  # bad and beyond c: max(−5, −3), flat
        (0.5, -1.0, 0.8, 0.0),  # bad and less likely: the usual clip, −0.8 > −3
        (5.0, 1.0, -1.2, 0.0),  # good: the usual clip
    ],
)
def test_dual_clip_bounds_the_loss_of_bad_decisions(ratio, advantage, expected, slope):
    logp = tensor(math.log(ratio)).requires_grad_()
    loss = clipped_surrogate(logp, tensor(0), tensor(advantage), tensor(1), 0.2, dual_clip=3.0)
    loss.backward()
    assert_close(loss.item(), expected)
    assert_close(logp.grad.item(), slope)


@given(seeds, st.floats(1.01, 4))
def test_dual_clip_is_the_plain_loss_up_to_its_ratio_and_never_more(seed, c):
    logp, old, advantage = (normal(seed + i, 3, 4) for i in range(3))
    weight = normal(seed + 3, 3, 4).abs()
    near = old + (logp - old).clamp(max=math.log(c) - 1e-9)
    plain = clipped_surrogate(near, old, advantage, weight, 0.2)
    assert torch.equal(clipped_surrogate(near, old, advantage, weight, 0.2, c), plain)
    plain = clipped_surrogate(logp, old, advantage, weight, 0.2)
    assert clipped_surrogate(logp, old, advantage, weight, 0.2, c) <= plain


def test_value_loss_is_half_the_weighted_squared_error():
    # ½ (½·(3 − 1)² + ½·(0 − 2)²) = 2
    args = tensor(3, 0), tensor(0, 0), tensor(1, 2), tensor(0.5, 0.5)
    assert clipped_value_loss(*args, clip=None) == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, 0.5 * 0.5**2),  # moved less than ε_v = 1 from 0: plain error to the target 1
        (3.0, 0.5 * 2.0**2),  # overshot: (3 − 1)² is worse than (1 − 1)²
        (-3.0, 0.5 * 4.0**2),  # moved away: (−3 − 1)² is worse than (−1 − 1)²
    ],
)
def test_value_clip_takes_the_worse_of_the_two_errors(value, expected):
    loss = clipped_value_loss(tensor(value), tensor(0), tensor(1), tensor(1), clip=1.0)
    assert loss == expected


def test_value_clip_stops_the_gradient_of_a_move_beyond_it():
    # Target 10: at V = 2 the clipped value is 1, its error 81 exceeds 64 and has no slope.
    value = tensor(2).requires_grad_()
    clipped_value_loss(value, tensor(0), tensor(10), tensor(1), clip=1.0).backward()
    assert value.grad.item() == 0


@given(seeds)
def test_approximate_kl_is_never_negative_and_0_between_equal_policies(seed):
    logp, old, weight = normal(seed, 2, 5), normal(seed + 1, 2, 5), normal(seed + 2, 2, 5).abs()
    assert approximate_kl(logp, old, weight) >= 0
    assert approximate_kl(old, old, weight) == 0


def test_approximate_kl_over_all_actions_is_the_exact_kl():
    # Weighted by π_old, Σ (ρ − 1 − ln ρ) = 0 − Σ π_old ln(π/π_old) = KL(π_old ‖ π).
    old, new = torch.tensor([0.2, 0.8]).double(), torch.tensor([0.5, 0.5]).double()
    exact = 0.2 * math.log(0.2 / 0.5) + 0.8 * math.log(0.8 / 0.5)
    assert_close(approximate_kl(new.log(), old.log(), old).item(), exact)


def test_clip_fraction_weighs_the_decisions_outside():
    ratios = tensor(1.1, 1.3, 0.7, 0.9).log()
    # 1.3 and 0.7 are outside 1 ± 0.2: 0.3 + 0.1
    assert_close(clip_fraction(ratios, 0 * ratios, tensor(0.4, 0.3, 0.1, 0.2), 0.2).item(), 0.4)


def test_explained_variance_is_1_for_perfect_0_for_constant_predictions():
    target, mask = tensor(1, 2, 3, 99), torch.tensor([[True, True, True, False]])
    assert explained_variance(target, target, mask) == 1
    assert_close(explained_variance(0 * target + 2, target, mask).item(), 0.0)
    # residuals −1, 0, 1 → after V = −G + 4: G − V = 2G − 4, variance 4 times as large: 1 − 4
    assert_close(explained_variance(4 - target, target, mask).item(), -3.0)


def test_explained_variance_of_a_constant_target_is_0_not_nan():
    assert explained_variance(tensor(1, 2), tensor(5, 5), torch.tensor([[True, True]])) == 0


@given(seeds, st.integers(1, 6))
def test_losses_of_pieces_add_up_to_the_loss_of_the_whole(seed, size):
    logp, old, advantage = (normal(seed + i, 6, 3) for i in range(3))
    weight = normal(seed + 3, 6, 3).abs()

    def losses(rows):
        parts = (logp[rows], old[rows], advantage[rows], weight[rows])
        return torch.stack(
            [
                clipped_surrogate(*parts, 0.2),
                clipped_value_loss(*parts, 0.5),
                approximate_kl(logp[rows], old[rows], weight[rows]),
                clip_fraction(logp[rows], old[rows], weight[rows], 0.2),
            ]
        )

    pieces = [losses(slice(start, start + size)) for start in range(0, 6, size)]
    assert_close(torch.stack(pieces).sum(0), losses(slice(None)))


@given(seeds)
def test_decisions_of_weight_0_change_nothing(seed):
    logp, old, advantage = (normal(seed + i, 2, 3) for i in range(3))
    weight = normal(seed + 3, 2, 3).abs()
    weight[:, 2] = 0
    short = [x[:, :2] for x in (logp, old, advantage, weight)]
    whole = clipped_surrogate(logp, old, advantage, weight, 0.2)
    assert_close(clipped_surrogate(*short, 0.2), whole)
