"""Value normalisation: critics predict standardised returns, everybody else sees true units.

Streams of very different size then weigh alike in the critics' loss, and learning rates fit them.
Absent: rescaling of a critic's last layer when the statistics move (PopArt, van Hasselt et al.
2016). Predictions move with the statistics, as in MAPPO (Yu et al. 2022): the move is O(1/n), and
the first one takes a new critic, which says 0, to the mean return.
"""

from __future__ import annotations

import torch
from torch import Tensor

from constrained_rl.moments import Moments

LEAST_DEVIATION = 1e-2
"""σ is at least this share of |μ|: a stream that hardly varies is not blown up."""


class ValueNorm(Moments):
    """Mean μ_s and deviation σ_s of each stream's regression targets G.

    V_s = σ_s v_s + μ_s,   L_s = clipped_value_loss(V_s, …) / σ_s²      (v_s: the critic's output)

    L_s is the loss between standardised values and targets, with `ppo.value_clip` still in return
    units. GAE gets V_s, so that λ stays a price. Statistics are those of all earlier iterations:
    the loop merges an iteration's targets once, after its update.
    """

    @property
    def deviation(self) -> Tensor:
        """σ [S]."""
        deviation = torch.maximum(self.var.sqrt(), LEAST_DEVIATION * self.mean.abs())
        # Nothing but zeros so far: the first cost must not count as infinitely many deviations.
        return torch.where(deviation > 0, deviation, torch.ones_like(deviation))

    def restore(self, value: Tensor) -> Tensor:  # [..., S] -> [..., S]
        """Critics' outputs v in return units, V = σ v + μ."""
        return value * self.deviation.to(value) + self.mean.to(value)
