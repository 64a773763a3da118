import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform
from torch.testing import assert_close

from constrained_rl.distributions import (
    LOG_STD_RANGE,
    bounded_log_std,
    gaussian_entropy,
    gaussian_log_prob,
    log_slope_tanh,
    squashed_entropy,
    squashed_log_prob,
)

MEANS, LOG_STDS = (-2.0, 0.0, 0.7), (-3.0, -0.5, 0.5)


def pair(mean, log_std):
    return torch.tensor([mean], dtype=torch.float64), torch.tensor([log_std], dtype=torch.float64)


def integral(values, grid):
    return float(torch.trapezoid(values, grid))


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("log_std", LOG_STDS)
def test_the_density_of_clipped_actions_integrates_to_1_over_u(mean, log_std):
    u = torch.linspace(
        mean - 12 * math.exp(log_std), mean + 12 * math.exp(log_std), 20_001
    ).double()
    density = gaussian_log_prob(u[:, None], *pair(mean, log_std)).exp()
    assert integral(density, u) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("log_std", LOG_STDS)
def test_the_density_of_squashed_actions_integrates_to_1_over_the_box(mean, log_std):
    # Over a = tanh(u) in (−1, 1), as the policy's actions are; a grid that is dense at the ends.
    u = torch.linspace(-18, 18, 400_001, dtype=torch.float64)
    action = torch.tanh(u)
    density = squashed_log_prob(u[:, None], *pair(mean, log_std)).exp()
    assert integral(density, action) == pytest.approx(1, abs=1e-6)


def test_squashed_log_probabilities_are_those_of_torch():
    torch.manual_seed(0)
    mean, log_std = torch.randn(50, 3).double(), torch.randn(50, 3).double().clamp(-2, 1)
    u = mean + log_std.exp() * torch.randn(50, 3).double()
    squash = TanhTransform(cache_size=1)  # the cache spares torch the inverse of tanh
    expected = TransformedDistribution(Normal(mean, log_std.exp()), squash).log_prob(squash(u))
    assert_close(squashed_log_prob(u, mean, log_std), expected.sum(-1))


def test_the_slope_of_tanh_has_its_exact_values():
    # tanh'(0) = 1; at 50, 1 − tanh² = 4 e^(−100) to the last digit, ln: 2 ln 2 − 100
    slope = log_slope_tanh(torch.tensor([0.0, 50.0, -50.0]))
    assert_close(slope, torch.tensor([0.0, 2 * math.log(2) - 100, 2 * math.log(2) - 100]))


@given(st.floats(-1e4, 1e4), st.floats(-5, 2))
def test_gradients_are_finite_at_extreme_actions(extreme, spread):
    mean = torch.zeros(1, requires_grad=True)
    log_std = torch.full((1,), spread, requires_grad=True)
    u = torch.tensor([extreme], requires_grad=True)
    logp = squashed_log_prob(u, mean, log_std) + squashed_entropy(mean, log_std)
    logp.backward()
    assert all(torch.isfinite(x.grad).all() for x in (mean, log_std, u))


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("log_std", LOG_STDS)
def test_the_squashed_entropy_is_that_of_the_density(mean, log_std):
    # H = −∫ p(a) ln p(a) da = −∫ N(u) ln p(tanh u) du
    u = torch.linspace(
        mean - 14 * math.exp(log_std), mean + 14 * math.exp(log_std), 40_001
    ).double()
    moments = pair(mean, log_std)
    weight = gaussian_log_prob(u[:, None], *moments).exp()
    expected = -integral(weight * squashed_log_prob(u[:, None], *moments), u)
    tolerance = 2e-5 if log_std <= 0 else 2e-3
    assert float(squashed_entropy(*moments)) == pytest.approx(expected, abs=tolerance)


def test_the_gaussian_entropy_is_that_of_torch():
    log_std = torch.randn(3)
    assert_close(gaussian_entropy(log_std), Normal(0, log_std.exp()).entropy().sum())


def test_a_deviation_by_state_starts_where_the_constant_one_does_and_stays_in_its_range():
    raw = torch.tensor([0.0, -1e6, 1e6])
    assert_close(bounded_log_std(raw), torch.tensor([-0.5, *LOG_STD_RANGE]))
    assert np.isfinite(bounded_log_std(torch.tensor(1e30)).item())
