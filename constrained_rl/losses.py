"""Losses of PPO as pure functions: tensors in, a scalar out.

Every mean is Σ weight · x with weights that sum to 1 over the *minibatch* (`Batch.weight`), so the
losses of micro-batches add up to the loss of their minibatch whatever their size.
"""

import torch
from torch import Tensor


def clipped_surrogate(
    logp: Tensor,  # [B, T]
    logp_old: Tensor,  # [B, T]
    advantage: Tensor,  # [B, T]
    weight: Tensor,  # [B, T]
    clip: float,
    dual_clip: float | None = None,
) -> Tensor:
    """PPO's policy loss (Schulman et al. 2017, eq. 7), to be minimised.

    L = −Σ w · min(ρ A, clip(ρ, 1 − ε, 1 + ε) A),  ρ = exp(logp − logp_old)

    That is unbounded where A < 0 and ρ is large. `dual_clip` c > 1 bounds it (Ye et al. 2020,
    eq. 5): there the term is max(min(ρ A, clip(ρ) A), c A), flat beyond ρ = c.
    """
    ratio = (logp - logp_old).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    if dual_clip is not None:
        bounded = torch.maximum(surrogate, dual_clip * advantage)
        surrogate = torch.where(advantage < 0, bounded, surrogate)
    return -(weight * surrogate).sum()


def clipped_value_loss(
    value: Tensor,  # [B, T] or [B, T, S]
    value_old: Tensor,  # as value
    target: Tensor,  # as value
    weight: Tensor,  # [B, T] or [B, T, 1]
    clip: float | None,
) -> Tensor:  # a scalar, or [S]: each stream's
    """Value regression, pessimistic about moves beyond ± clip; `None` does not clip.

    L = ½ Σ w · max((V − G)², (clip(V, V_old ± ε_v) − G)²)     (Safe RLHF reference, §1.9)
    """
    error = (value - target).square()
    if clip is not None:
        clipped = torch.clamp(value, value_old - clip, value_old + clip)
        error = torch.maximum(error, (clipped - target).square())
    return 0.5 * (weight * error).sum((0, 1))


def approximate_kl(logp: Tensor, logp_old: Tensor, weight: Tensor) -> Tensor:
    """KL(π_old ‖ π) by the low-variance estimator Σ w (ρ − 1 − ln ρ) (Schulman 2020, k3)."""
    log_ratio = logp - logp_old
    return (weight * (log_ratio.exp() - 1 - log_ratio)).sum()


def clip_fraction(logp: Tensor, logp_old: Tensor, weight: Tensor, clip: float) -> Tensor:
    """Share of decisions whose ratio has left [1 − ε, 1 + ε]."""
    outside = ((logp - logp_old).exp() - 1).abs() > clip
    return (weight * outside).sum()


def explained_variance(value: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """1 − Var(G − V) / Var(G) over masked decisions; NaN-free: 0 where the target is constant."""
    residual = (target - value)[mask]
    spread = target[mask].var(correction=0)
    if float(spread) < 1e-12:
        return torch.zeros_like(spread)
    return 1 - residual.var(correction=0) / spread
