"""Losses that turn human preferences into a reward model and a cost model.

Safe RLHF (Dai et al., ICLR 2024, arXiv:2310.12773), equations (5) and (6), sequence-wise: one score
per response, read at its last token. In cost data the first response is the MORE HARMFUL one and a
sign is +1 for unsafe, −1 for safe. Absent: the token-wise variant of the reference implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def labelled_pair_loss(
    score: Tensor,  # [B, 2, K] of both responses
    order: Tensor,  # [B, K] +1: the first scores higher, −1: the second, 0: not known
    sign: Tensor,  # [B, 2, K] +1 unsafe, −1 safe, 0: not known
    regularization: float = 0.0,
) -> Tensor:
    """Comparisons and signs of K scores at once, summed over them, each a mean over all B pairs.

    L = Σ_k mean_i[ −|o| log σ(o (c_0 − c_1)) − Σ_j |s_j| log σ(s_j c_j) ] + μ Σ_k mean([c_0, c_1]²)

    What is not known adds nothing, and the means divide by B nevertheless: micro-batches of a batch
    then add up to it.
    """
    difference = score[:, 0] - score[:, 1]
    ranking = -(order.abs() * logsigmoid(order * difference)).mean(0)
    placing = -(sign.abs() * logsigmoid(sign * score)).sum(1).mean(0)
    regularizer = score.square().mean((0, 1))
    return (ranking + placing + regularization * regularizer).sum()


def reward_model_loss(
    chosen: Tensor,  # [B]
    rejected: Tensor,  # [B]
    regularization: float = 0.0,
) -> Tensor:
    """Bradley-Terry loss: mean[−log σ(r_w − r_l)] + μ · mean([r_w, r_l]²).

    The regularizer keeps scores near zero, which the differences alone leave free.
    """
    score = torch.stack([chosen, rejected], 1)[..., None]
    order = torch.ones_like(chosen)[:, None]
    return labelled_pair_loss(score, order, torch.zeros_like(score), regularization)


def cost_model_loss(
    more_harmful: Tensor,  # [B]
    less_harmful: Tensor,  # [B]
    more_harmful_sign: Tensor,  # [B] +1 unsafe, −1 safe
    less_harmful_sign: Tensor,  # [B]
    regularization: float = 0.0,
    *,
    ranking: bool = True,
    sign: bool = True,
) -> Tensor:
    """mean[−log σ(c_w − c_l) − log σ(s_w c_w) − log σ(s_l c_l)] + μ · mean([c_w, c_l]²).

    The sign terms are Bradley-Terry comparisons with a virtual response y_0 on the boundary,
    C(y_0) = 0: an unsafe response is more harmful than y_0, a safe one less. They give the scores
    their zero, hence the constraint C ≤ 0 its meaning. `ranking` and `sign` switch terms off.
    """
    score = torch.stack([more_harmful, less_harmful], 1)[..., None]
    order = torch.full_like(more_harmful, float(ranking))[:, None]
    signs = torch.stack([more_harmful_sign, less_harmful_sign], 1)[..., None] * float(sign)
    return labelled_pair_loss(score, order, signs, regularization)


def ranking_accuracy(higher: Tensor, lower: Tensor) -> float:  # [B], [B]
    """Share of pairs scored in the labelled order; a tie is not."""
    return float((higher > lower).double().mean())


def sign_accuracy(score: Tensor, sign: Tensor) -> float:  # [B], [B]
    """Share of responses on the labelled side of zero, s · c > 0."""
    return float((score * sign > 0).double().mean())
