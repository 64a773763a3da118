"""Log-densities and entropies of policies over actions, as pure functions.

A Gaussian action is stored as the drawn number u, before anything bounds it. "clip" scores u,
"squash" scores tanh(u), whose density follows from u's without inverting tanh. Absent: mixtures,
correlated dimensions. The last dimension A of every tensor is the action's; it is summed over.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
LOG_STD_RANGE = (-5.0, 1.0)  # of a deviation that depends on the state; the box is [−1, 1]
NODES = 16  # of the quadrature: exact to 2e-5 nats for σ ≤ 1, to 2e-2 for σ ≤ e


def categorical_log_prob(logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy [...] of `action` [...] under softmax(`logits` [..., n])."""
    # Actions first: over a short last dimension softmax and sums are several times slower.
    log_p = logits.movedim(-1, 0).contiguous().log_softmax(0)
    logp = log_p.gather(0, action.unsqueeze(0)).squeeze(0)
    return logp, -(log_p.exp() * log_p).sum(0)


def gaussian_log_prob(u: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:  # [..., A] → [...]
    """Log-density ln N(u; μ, σ) = Σ −½ ((u − μ)/σ)² − ln σ − ½ ln 2π."""
    z = (u - mean) * (-log_std).exp()
    return (-0.5 * z.square() - log_std - HALF_LOG_2PI).sum(-1)


def gaussian_entropy(log_std: Tensor) -> Tensor:  # [..., A] → [...]
    """H = Σ ln σ + ½ (1 + ln 2π)."""
    return (log_std + HALF_LOG_2PI + 0.5).sum(-1)


def log_slope_tanh(u: Tensor) -> Tensor:
    """Log-slope ln(1 − tanh² u) = 2 (ln 2 − u − softplus(−2u)), finite for every u."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


def squashed_log_prob(u: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:  # [..., A] → [...]
    """Log-density ln p(tanh u) = ln N(u; μ, σ) − Σ ln(1 − tanh² u) (change of variables)."""
    return gaussian_log_prob(u, mean, log_std) - log_slope_tanh(u).sum(-1)


@cache
def _hermite() -> tuple[Tensor, Tensor]:
    """Nodes and weights [NODES] with E f(ε) ≈ Σ w f(x) for a standard normal ε."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def squashed_entropy(mean: Tensor, log_std: Tensor) -> Tensor:  # [..., A] → [...]
    """H of tanh(u): Σ H(u) + E ln(1 − tanh² u), the expectation by Gauss–Hermite quadrature.

    It has no closed form. Quadrature needs no random numbers and has a gradient in μ and σ.
    """
    nodes, weights = (x.to(mean) for x in _hermite())
    u = mean.unsqueeze(-1) + log_std.exp().unsqueeze(-1) * nodes  # [..., A, NODES]
    return gaussian_entropy(log_std) + (log_slope_tanh(u) @ weights).sum(-1)


def bounded_log_std(raw: Tensor) -> Tensor:
    """Map a network's output smoothly into `LOG_STD_RANGE`; 0 maps to −0.5."""
    low, high = LOG_STD_RANGE
    start = math.atanh(2 * (-0.5 - low) / (high - low) - 1)
    return low + 0.5 * (high - low) * (1 + torch.tanh(raw + start))
