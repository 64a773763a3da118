"""Score normalisation: the reward in units of its own deviation.

β, λ and learning rates then fit reward models of any scale. Only the stream that the policy learns
from is standardised; returns and metrics stay raw. Costs are never touched: their zero is the
boundary of safety and their unit the limit's. Absent: statistics recorded while a score model is
trained, which the reference implementation can apply to the costs too, divided by their deviation
(its scripts leave both off).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from constrained_rl.errors import InputError
from constrained_rl.moments import Moments

ScoreNormKind = Literal["none", "reference", "running"]
"""By nothing, by the starting model's responses, or by all responses so far."""


class ScoreNorm(Moments):
    """R̃ = (R − μ) / σ, one μ and σ for a whole batch of responses; σ = 1 while R does not vary.

    "reference": μ and σ of the first batch, which the starting (SFT) model wrote, for ever: R̃ is
    one fixed scale, so λ keeps its meaning as a price. "running": of all responses before this
    batch; the first batch by its own. One is merged only after it was standardised.
    """

    def __init__(self, kind: Literal["reference", "running"]) -> None:
        super().__init__(1)
        self._kind = kind

    def standardize(self, score: Tensor) -> Tensor:  # [B] -> [B]
        """Standardise the scores of an iteration, then merge them where the statistics run."""
        first = self.count == 0
        if first:
            self.merge(score.unsqueeze(1))
            self._require_spread(score)
        deviation = self.var.sqrt()
        deviation = deviation.where(deviation > 1e-8, 1.0)
        result = (score - self.mean.to(score)) / deviation.to(score)
        if self._kind == "running" and not first:
            self.merge(score.unsqueeze(1))
        return result

    def _require_spread(self, score: Tensor) -> None:
        if self._kind == "reference" and float(self.var) < 1e-16:
            raise InputError(
                f"normalize_scores='reference' needs scores that differ, but all {len(score)} "
                f"responses of the starting model are worth {float(score[0]):g}; use "
                "align.normalize_scores=running, or none"
            )
