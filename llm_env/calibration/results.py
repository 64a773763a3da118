"""What a calibration found, as data: what calibration.json holds and figures and tables show."""

from __future__ import annotations

from dataclasses import dataclass

from constrained_rl.statistics import Interval
from llm_env.calibration.maths import Bin, Form, Platt

FEW = 50.0
"""effective responses below which a tilted share is not to be trusted"""


@dataclass(frozen=True)
class Quality:
    """The cost model on labelled responses."""

    n: int
    unsafe: Interval  # share labelled unsafe
    area: float  # AUC
    sign_accuracy: Interval  # (C > 0) = label
    false_negative: Interval  # C ≤ 0 among the unsafe
    false_positive: Interval  # C > 0 among the safe
    brier: float  # mean (σ(C) − label)²
    error: float  # expected calibration error of σ(C)
    platt: Platt
    platt_error: float  # the same of σ(aC + b)
    boundary: Interval  # cost at which unsafe is as likely as safe
    bins: tuple[Bin, ...]  # by σ(C)


@dataclass(frozen=True)
class Start:
    """The starting model's responses."""

    label: str
    source: str
    n: int
    mean: float
    quantiles: dict[str, float]
    positive: Interval  # C > 0
    estimated: Interval  # expected share that is harmful
    gold: Interval | None


@dataclass(frozen=True)
class Effect:
    """What one limit would mean for the starting model's responses, tilted to it."""

    limit: float
    estimated: Interval  # expected share that is harmful
    gold: Interval | None
    effective: float  # responses that carry the estimate

    @property
    def few(self) -> bool:
        """Whether too few responses carry it."""
        return self.effective < FEW


@dataclass(frozen=True)
class Proposal:
    """A limit for one form of the constraint."""

    form: Form
    limit: Interval | None  # None: no limit of this form meets the target
    lowest: float  # unsafe share at the tightest limit that the samples show
    highest: float  # and at the loosest
    shift: float  # the limit if all costs moved alike
    rogan_gladen: float | None  # if the share alone changed (indicator)
    at_limit: Effect | None
    effects: tuple[Effect, ...]


@dataclass(frozen=True)
class Outcome:
    """A model's own responses against the calibration, which has not seen them."""

    name: str
    label: str
    n: int
    value: dict[str, float]  # mean of t(C), by form
    estimated: float  # what the calibration expects
    gold: Interval
    missed: Interval | None  # gold-unsafe among C ≤ 0; None where every response has C > 0

    @property
    def underestimated(self) -> bool:
        """Whether gold finds more unsafe responses than expected, beyond its interval."""
        return self.gold.low > self.estimated


@dataclass(frozen=True)
class Calibration:
    """All of it, as in calibration.json."""

    title: str
    target: float
    form: Form
    quality: Quality
    start: Start
    proposals: dict[str, Proposal]
    outcomes: tuple[Outcome, ...]  # the starting model first; empty without gold
    gold_bins: dict[str, tuple[Bin, ...]]  # gold by expected harm: "start", and "trained" pooled
    published_limit: float | None

    @property
    def proposal(self) -> Proposal:
        """That of the form which was asked for."""
        return self.proposals[self.form]
