"""From evidence to a proposed limit: calibration, the starting model, and each limit's meaning.

For every form of the constraint the limit is that at which the starting model's responses, tilted
to meet it, are expected to hold the target share of unsafe ones (maths.py). Intervals of what has
no formula are percentiles of a bootstrap over labelled pairs, with the calibration fitted again,
and over the starting model's responses. Absent: multiple costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np

from constrained_rl.errors import InputError
from constrained_rl.statistics import Interval, proportion_interval
from llm_env.calibration.evidence import Evidence, Labelled, Sample
from llm_env.calibration.maths import (
    Bin,
    Bools,
    Floats,
    Form,
    Platt,
    apparent_share,
    area_under_curve,
    calibration_error,
    effective_size,
    fit_platt,
    limit_by_tilting,
    reliability,
    shift_to,
    tilt_to,
    transform,
)
from llm_env.calibration.results import (
    Calibration,
    Effect,
    Outcome,
    Proposal,
    Quality,
    Start,
)

FORMS: tuple[Form, ...] = ("indicator", "probability", "identity")
assert set(FORMS) == set(get_args(Form))
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SHARES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
"""limits on a share that are looked at"""
RESAMPLES = 200


def check_request(form: str, target: float) -> Form:
    """The form of the constraint, if it and the target make sense."""
    if not 0 < target < 1:
        raise InputError(
            f"target: found {target:g}; expected a share of unsafe responses above 0 and below 1, "
            "e.g. 0.05 for 5 %"
        )
    for known in FORMS:
        if form == known:
            return known
    raise InputError(f"transform: found {form!r}; expected one of {', '.join(FORMS)}")


def calibrate(
    evidence: Evidence,
    form: Form = "indicator",
    target: float = 0.05,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Calibration:
    """Propose limits that keep the share of unsafe responses at `target`, in (0, 1)."""
    draws = list(bootstrap(evidence, resamples, seed))
    platt = fit_platt(evidence.labelled.cost.ravel(), evidence.labelled.unsafe.ravel())
    platt = replace(platt, noise=evidence.noise)
    if platt.slope <= 0:
        raise InputError(
            f"the share of unsafe labels falls as the cost rises (Platt slope {platt.slope:.3g}); "
            "the costs of a few responses must be far off: look at them before choosing a limit"
        )
    return Calibration(
        title=evidence.title,
        target=target,
        form=form,
        quality=measure(evidence.labelled, platt, [fit for fit, _ in draws]),
        start=describe(evidence, platt, draws),
        proposals={kind: propose(evidence, platt, draws, kind, target) for kind in FORMS},
        outcomes=tuple(
            outcome(sample, platt)
            for sample in (evidence.start, *evidence.runs)
            if sample.unsafe is not None
        ),
        gold_bins=gold_bins(evidence, platt),
        published_limit=evidence.published_limit,
    )


Draw = tuple[Platt, Sample]


def bootstrap(evidence: Evidence, resamples: int, seed: int) -> Iterator[Draw]:
    """Resampled labelled pairs, of which the fit is kept, and resampled starting responses."""
    rng = np.random.default_rng(seed)
    labelled, start = evidence.labelled, evidence.start
    pairs, n = len(labelled.cost), len(start.cost)
    while resamples:
        row = rng.integers(pairs, size=pairs)
        column = rng.integers(n, size=n)
        cost, unsafe = labelled.cost[row].ravel(), labelled.unsafe[row].ravel()
        if unsafe.all() or not unsafe.any():
            continue  # few labels: a resample of one kind says nothing
        gold = None if start.unsafe is None else start.unsafe[column]
        resamples -= 1
        yield (
            replace(fit_platt(cost, unsafe), noise=evidence.noise),
            Sample(start.name, start.label, start.cost[column], gold),
        )


def spread(value: float, drawn: Sequence[float]) -> Interval:
    """A point estimate with the middle 95 % of its resamples."""
    low, high = np.quantile(np.asarray(drawn), (0.025, 0.975))
    return Interval(value, min(value, float(low)), max(value, float(high)))


def share(holds: Bools) -> Interval:
    """Share of responses with Wilson's interval."""
    return proportion_interval(int(holds.sum()), holds.size)


def measure(labelled: Labelled, platt: Platt, fits: Sequence[Platt]) -> Quality:
    """Calibration and errors of the cost model on labels."""
    cost, unsafe = labelled.cost.ravel(), labelled.unsafe.ravel()
    chance = transform(cost, "probability")
    bins = reliability(chance, cost, unsafe)
    return Quality(
        n=len(cost),
        unsafe=share(unsafe),
        area=area_under_curve(cost, unsafe),
        sign_accuracy=share((cost > 0) == unsafe),
        false_negative=share(cost[unsafe] <= 0),
        false_positive=share(cost[~unsafe] > 0),
        brier=float(np.square(chance - unsafe).mean()),
        error=calibration_error(bins),
        platt=platt,
        platt_error=calibration_error(reliability(platt.labelled(cost), cost, unsafe)),
        boundary=spread(platt.boundary, [fit.boundary for fit in fits]),
        bins=tuple(bins),
    )


def describe(evidence: Evidence, platt: Platt, draws: Sequence[Draw]) -> Start:
    """Where the starting model stands."""
    start = evidence.start
    estimated = [float(fit.harmful(drawn.cost).mean()) for fit, drawn in draws]
    return Start(
        label=start.label,
        source=evidence.start_source,
        n=len(start.cost),
        mean=float(start.cost.mean()),
        quantiles={f"{q:.0%}": float(np.quantile(start.cost, q)) for q in QUANTILES},
        positive=share(start.cost > 0),
        estimated=spread(float(platt.harmful(start.cost).mean()), estimated),
        gold=None if start.unsafe is None else share(start.unsafe),
    )


def propose(
    evidence: Evidence, platt: Platt, draws: Sequence[Draw], form: Form, target: float
) -> Proposal:
    """The limit of one form of the constraint, and what others of its form would mean."""
    cost = evidence.start.cost
    t, chance = transform(cost, form), platt.harmful(cost)
    value = limit_by_tilting(t, chance, target)
    limit = None
    if value is not None:
        limit = spread(value, [nearest_limit(fit, drawn, form, target) for fit, drawn in draws])
    limits = grid_of_limits(t, form)
    labels = evidence.labelled
    missed, alarmed = labels.cost[labels.unsafe] <= 0, labels.cost[~labels.unsafe] > 0
    corrected = apparent_share(target, 1 - float(missed.mean()), 1 - float(alarmed.mean()))
    return Proposal(
        form=form,
        limit=limit,
        lowest=float(chance[t == t.min()].mean()),
        highest=float(chance[t == t.max()].mean()),
        shift=float(transform(cost - shift_to(cost, platt, target), form).mean()),
        rogan_gladen=corrected if form == "indicator" else None,
        at_limit=None if value is None else effect(evidence.start, platt, draws, form, value),
        effects=tuple(effect(evidence.start, platt, draws, form, at) for at in limits),
    )


def nearest_limit(platt: Platt, sample: Sample, form: Form, target: float) -> float:
    """The limit for a resample; where it cannot reach the target, the end that comes closest."""
    t, chance = transform(sample.cost, form), platt.harmful(sample.cost)
    found = limit_by_tilting(t, chance, target)
    if found is not None:
        return found
    return float(t.min() if chance[t == t.min()].mean() >= target else t.max())


def grid_of_limits(t: Floats, form: Form) -> list[float]:
    """Limits to look at: plain shares, or round costs inside the range of the samples."""
    low, high = float(t.min()), float(t.max())
    if form != "identity":
        return [limit for limit in SHARES if low <= limit <= high] or [low]
    top = min(high, float(t.mean()) + 0.5 * float(t.std()))
    step = next((s for s in (0.1, 0.25, 0.5, 1, 2, 5, 10) if (top - low) / s <= 12), top - low)
    if step <= 0:
        return [low]
    steps = range(int(np.ceil(low / step)), int(np.floor(top / step)) + 1)
    return [k * step for k in steps] or [low]


def effect(start: Sample, platt: Platt, draws: Sequence[Draw], form: Form, limit: float) -> Effect:
    """Unsafe shares under the weights that meet the limit."""
    weight = tilt_to(transform(start.cost, form), limit)
    estimated, gold = [], []
    for fit, drawn in draws:
        t = transform(drawn.cost, form)
        drawn_weight = tilt_to(t, float(np.clip(limit, t.min(), t.max())))
        estimated.append(float(drawn_weight @ fit.harmful(drawn.cost)))
        if drawn.unsafe is not None:
            gold.append(float(drawn_weight @ drawn.unsafe))
    return Effect(
        limit=limit,
        estimated=spread(float(weight @ platt.harmful(start.cost)), estimated),
        gold=None if start.unsafe is None else spread(float(weight @ start.unsafe), gold),
        effective=effective_size(weight),
    )


def outcome(sample: Sample, platt: Platt) -> Outcome:
    """Gold against the calibration on a model's own responses."""
    assert sample.unsafe is not None  # the embedded world knows
    passed = sample.cost <= 0
    return Outcome(
        name=sample.name,
        label=sample.label,
        n=len(sample.cost),
        value={form: float(transform(sample.cost, form).mean()) for form in FORMS},
        estimated=float(platt.harmful(sample.cost).mean()),
        gold=share(sample.unsafe),
        missed=share(sample.unsafe[passed]) if passed.any() else None,
    )


def gold_bins(evidence: Evidence, platt: Platt) -> dict[str, tuple[Bin, ...]]:
    """Gold by expected harm, for the starting model and for all trained ones together."""
    groups = {"start": [evidence.start], "trained": list(evidence.runs)}
    found = {}
    for name, samples in groups.items():
        known = [(sample.cost, sample.unsafe) for sample in samples if sample.unsafe is not None]
        if known:
            cost = np.concatenate([cost for cost, _ in known])
            gold = np.concatenate([unsafe for _, unsafe in known])
            found[name] = tuple(reliability(platt.harmful(cost), cost, gold))
    return found
