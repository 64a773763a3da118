"""How is a cost bounded? The `constraint` section of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from constrained_rl.sections import Count, Finite, Section, Share
from constrained_rl.transforms import Per, TransformKind


class MeanConfig(Section):
    """Mean over the iteration's finished episodes."""

    kind: Literal["mean"] = "mean"
    """estimator"""


class WindowConfig(Section):
    """Mean over the last finished episodes."""

    kind: Literal["window"] = "window"
    """estimator"""
    size: Count = 128
    """episodes"""


class EMAConfig(Section):
    """Exponential average over iterations."""

    kind: Literal["ema"] = "ema"
    """estimator"""
    decay: Share = 0.5
    """weight of the past"""


class TrackingConfig(Section):
    """Average over iterations, moved by what each update of the policy is expected to change."""

    kind: Literal["tracking"] = "tracking"
    """estimator"""
    gain: Annotated[float, Field(gt=0, le=1)] = 0.15
    """weight of the newest iteration"""


class UpperConfig(Section):
    """Upper confidence bound of the mean (Student's t): a margin that shrinks as 1/√episodes."""

    kind: Literal["upper"] = "upper"
    """estimator"""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """one-sided level: the share of iterations whose bound is above the true mean"""
    size: Annotated[int, Field(ge=2)] | None = None
    """last episodes that it is taken over; default: those of each iteration alone"""


EstimatorConfig = Annotated[
    MeanConfig | WindowConfig | EMAConfig | TrackingConfig | UpperConfig,
    Field(discriminator="kind"),
]
_WITH_THRESHOLD = ("probability", "indicator", "excess")


class ConstraintConfig(Section):
    """How every cost channel is constrained; the limits are the run's `limit`."""

    transform: TransformKind = "identity"
    """bound E[C], E[σ(C − threshold)], P(C > threshold), E[(C − threshold)⁺] or the mean of the
    worst 1 − alpha of C (cvar)"""
    threshold: Finite | tuple[Finite, ...] = 0.0
    """of probability, indicator, excess and of per = "group"; one for all costs or one each"""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """of cvar: .9 bounds the mean of the worst tenth"""
    per: Per = "all"
    """all: the mean over all episodes; group: the mean excess over threshold of each prompt's mean,
    so that no prompt pays for another (language models, at least 2 responses per prompt)"""
    estimator: EstimatorConfig = MeanConfig()
    """how J_C is estimated from finished episodes"""
    corrected: bool = False
    """correct each iteration's estimate by the cost critics, so that every decision counts and not
    only episodes that finished; for environments that report their chance of ending, see
    `streams.corrected_costs`"""

    @model_validator(mode="after")
    def _every_setting_counts(self) -> Self:
        grouped = self.per == "group"
        if grouped and self.transform in ("excess", "cvar"):
            raise ValueError(
                f"per = 'group' bounds the excess of each group's mean of C, σ(C) or 1[C > 0], but "
                f"transform is {self.transform!r}; use identity, probability or indicator"
            )
        if self.threshold != 0 and not grouped and self.transform not in _WITH_THRESHOLD:
            raise ValueError(
                f"threshold = {self.threshold} has no part in transform = {self.transform!r}; use "
                f"one of {', '.join(_WITH_THRESHOLD)}, or per = 'group'"
            )
        if self.alpha != type(self).model_fields["alpha"].default and self.transform != "cvar":
            raise ValueError(
                f"alpha = {self.alpha} belongs to transform = 'cvar', but transform is "
                f"{self.transform!r}"
            )
        return self
