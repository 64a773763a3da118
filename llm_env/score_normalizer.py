"""How a published score model standardises its own scores, in the deviation it was saved with.

    affine     (x − mean) / (√var + 1e-8)     a reward: its zero means nothing
    scale       x         / (√var + 1e-8)     a cost: its zero separates safe from unsafe
    identity    x                             a critic

(Safe RLHF's implementation, `models/normalizer.py`.) The statistics of a checkpoint are kept, and
applied only where its config says `do_normalize`; the released models say no.
Absent: updating the statistics, which upstream does inside every training forward; RL may
standardise rewards instead (score_norm.py).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor, nn

NormalizerKind: TypeAlias = Literal["affine", "scale", "identity"]
KINDS: dict[str, NormalizerKind] = {"reward": "affine", "cost": "scale", "critic": "identity"}
"""kind by what a model's config calls itself (`score_type`)"""
EPSILON = 1e-8


class ScoreNormalizer(nn.Module):
    """Statistics of scores, applied where `active`."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(
        self,
        kind: NormalizerKind,
        active: bool,
        mean: Tensor,  # [S]
        var: Tensor,  # [S]
        count: Tensor,  # [1] long
    ) -> None:
        super().__init__()
        self.kind, self.active = kind, active
        self.register_buffer("mean", mean)
        self.register_buffer("var", var)
        self.register_buffer("count", count)

    def forward(self, scores: Tensor) -> Tensor:  # [..., S] -> [..., S]
        """Standardised scores, or the scores as they are."""
        if not self.active or self.kind == "identity":
            return scores
        centred = scores - self.mean.float() if self.kind == "affine" else scores
        return centred / (self.var.float().sqrt() + EPSILON)
