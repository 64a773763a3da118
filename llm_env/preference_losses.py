"""Losses that turn human preferences into a reward model and a cost model.

Safe RLHF (Dai et al., ICLR 2024, arXiv:2310.12773), equations (5) and (6), sequence-wise: one score
per response, read at its last token. In cost data the first response is the MORE HARMFUL one and a
sign is +1 for unsafe, −1 for safe. Absent: the token-wise variant of the reference implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def reward_model_loss(
    chosen: Tensor,  # [B]
    rejected: Tensor,  # [B]
    regularization: float = 0.0,
) -> Tensor:
    """Bradley-Terry loss: mean[−log σ(r_w − r_l)] + μ · mean([r_w, r_l]²).

    The regularizer keeps scores near zero, which the differences alone leave free.
    """
    ranking = -logsigmoid(chosen - rejected).mean()
    return ranking + regularization * _mean_square(chosen, rejected)


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
    loss = regularization * _mean_square(more_harmful, less_harmful)
    if ranking:
        loss = loss - logsigmoid(more_harmful - less_harmful).mean()
    if sign:
        loss = loss - logsigmoid(more_harmful_sign * more_harmful).mean()
        loss = loss - logsigmoid(less_harmful_sign * less_harmful).mean()
    return loss


def ranking_accuracy(higher: Tensor, lower: Tensor) -> float:  # [B], [B]
    """Share of pairs scored in the labelled order; a tie is not."""
    return float((higher > lower).double().mean())


def sign_accuracy(score: Tensor, sign: Tensor) -> float:  # [B], [B]
    """Share of responses on the labelled side of zero, s · c > 0."""
    return float((score * sign > 0).double().mean())


def _mean_square(first: Tensor, second: Tensor) -> Tensor:
    """Mean square over both responses of every pair."""
    return torch.cat([first, second]).square().mean()
