"""What a calibration says in words and rows: the proposal, its reasons, what it leaves out."""

from __future__ import annotations

import math

from constrained_rl.statistics import Interval
from llm_env.calibration.maths import Form
from llm_env.calibration.results import FEW, Calibration, Effect, Proposal
from llm_env.calibration.summary import FORMS

NAMES: dict[Form, str] = {
    "indicator": "P(C > 0)",
    "probability": "E[σ(C)]",
    "identity": "E[C]",
}
"""What each form of the constraint bounds"""
STEPS: dict[Form, float] = {"indicator": 1e-3, "probability": 1e-3, "identity": 1e-2}
"""to which a proposed limit is rounded, downwards"""


def chosen(found: Calibration) -> Proposal | None:
    """The proposal of the form that was asked for, else of the first that reaches the target."""
    order = [found.form, *(form for form in FORMS if form != found.form)]
    return next((p for f in order if (p := found.proposals[f]).limit is not None), None)


def rounded(proposal: Proposal) -> float:
    """The proposed limit, rounded to the safe side."""
    assert proposal.limit is not None
    step = STEPS[proposal.form]
    return round(math.floor(proposal.limit.value / step + 1e-9) * step, 3)


def override(proposal: Proposal) -> str:
    """The proposal as settings of `crl llm compare`."""
    return f"align.limit={rounded(proposal):g} align.constraint.transform={proposal.form}"


def paste(found: Calibration, proposal: Proposal) -> str:
    """The proposal as a command on the embedded world, as Python for one's own models."""
    if found.published_limit is not None:
        return f"crl llm compare {override(proposal)}"
    return (
        f"AlignConfig(limit={rounded(proposal):g}, "
        f'constraint=ConstraintConfig(transform="{proposal.form}"))'
    )


def toml(proposal: Proposal) -> str:
    """The same for a config file."""
    return (
        f"[align]\nlimit = {rounded(proposal):g}\n\n"
        f'[align.constraint]\ntransform = "{proposal.form}"'
    )


def sentence(found: Calibration) -> str:
    """The proposal in one line, or why there is none."""
    best = chosen(found)
    asked = "" if best is found.proposal else unreachable(found) + " "
    if best is None:
        return asked + "No other form of the constraint reaches it either: there is no proposal."
    assert best.limit is not None
    assert best.at_limit is not None
    text = (
        f"{asked}Propose: {override(best)}. At that limit {percent(found.target)} of the starting "
        f"model's responses, tilted to meet it, are expected to be unsafe (95% interval of the "
        f"limit {best.limit.low:.3g} … {best.limit.high:.3g})"
    )
    gold = best.at_limit.gold
    return text + (
        "." if gold is None else f"; gold finds {percent_interval(gold)} of them unsafe."
    )


def unreachable(found: Calibration) -> str:
    """Why the form that was asked for has no limit that meets the target."""
    proposal, name = found.proposal, NAMES[found.form]
    if proposal.highest <= found.target:
        return (
            f"Every limit on {name} meets {percent(found.target)}: even the starting model's worst "
            f"responses are expected to be {percent(proposal.highest)} unsafe."
        )
    return (
        f"No limit on {name} reaches {percent(found.target)} unsafe: the tightest still leaves "
        f"{percent(proposal.lowest)}, which the cost model does not see or annotators mislabel."
    )


def confirmation(found: Calibration) -> str | None:
    """Whether runs that keep the proposed limit are as safe as the target, by gold."""
    best, trained = chosen(found), found.outcomes[1:]
    if best is None or not trained:
        return None
    limit = rounded(best)
    kept = [run for run in trained if run.value[best.form] <= limit]
    safe = [run for run in kept if run.gold.value <= found.target]
    if not kept:
        return f"None of the {len(trained)} finished runs keeps {NAMES[best.form]} ≤ {limit:g}."
    nearest = max(kept, key=lambda run: run.value[best.form])
    return (
        f"Of {len(trained)} finished runs {len(kept)} keep {NAMES[best.form]} ≤ {limit:g} on their "
        f"own responses; gold finds at most {percent(found.target)} unsafe in {len(safe)} of "
        f"these {len(kept)}. The one nearest to the limit, {nearest.label}, ends at "
        f"{nearest.value[best.form]:.3g} with {percent_interval(nearest.gold)} unsafe by gold."
    )


def warnings(found: Calibration) -> list[str]:
    """What the proposal does not cover."""
    quality, best = found.quality, chosen(found)
    texts = [
        "Not covered: all of this knows the cost alone. A policy that is paid by a reward will "
        "move to where the cost model is wrong, because reward is cheap there. Calibrate again on "
        "labelled responses of the trained model before it is relied on.",
    ]
    if quality.platt.noise == 0:
        texts.append(
            "Labels are taken as the truth: what annotators mislabel counts as harm, so the limit "
            "is cautious. Give --agreement if two people labelled the same responses."
        )
    kinds = (quality.n * quality.unsafe.value, quality.n * (1 - quality.unsafe.value))
    if min(kinds) < FEW:
        texts.append(
            f"Only {min(kinds):.0f} labelled responses of the rarer kind: every number here is a "
            "rough one."
        )
    if best is not None and best.at_limit is not None and best.at_limit.few:
        texts.append(
            f"The proposal rests on {best.at_limit.effective:.0f} effective responses of the "
            f"starting model, fewer than {FEW:.0f}: sample more."
        )
    return texts


Rows = tuple[list[str], list[list[str]]]


def quality_rows(found: Calibration) -> Rows:
    """The cost model on labels, and the starting model."""
    quality, start = found.quality, found.start
    platt = quality.platt
    agreement = (1 - platt.noise) ** 2 + platt.noise**2
    noise = f"{platt.noise:.3f}, as two annotators agree on {percent(agreement)}"
    if not platt.noise:
        noise = "0: no disagreement is known"
    quantiles = ", ".join(f"{name} {value:.2f}" for name, value in start.quantiles.items())
    rows = [
        ["labelled responses", f"{quality.n}, {percent(quality.unsafe.value)} unsafe"],
        ["AUC", f"{quality.area:.3f}"],
        ["sign accuracy", percent_interval(quality.sign_accuracy)],
        ["false negatives, C ≤ 0 of the unsafe", percent_interval(quality.false_negative)],
        ["false positives, C > 0 of the safe", percent_interval(quality.false_positive)],
        ["Brier score of σ(C)", f"{quality.brier:.3f}"],
        ["expected calibration error of σ(C)", f"{quality.error:.3f}"],
        ["fit P(unsafe | C)", f"σ({platt.slope:.2f} C {platt.intercept:+.2f})"],
        ["its error", f"{quality.platt_error:.3f}"],
        ["unsafe as likely as safe at C =", interval(quality.boundary)],
        ["label noise ε", noise],
        ["starting model", f"{start.label}: {start.source}"],
        ["its costs", f"mean {start.mean:.2f}; quantiles {quantiles}"],
        ["its share C > 0", percent_interval(start.positive)],
        ["its expected unsafe share", percent_interval(start.estimated)],
    ]
    if start.gold is not None:
        rows.append(["its unsafe share by gold", percent_interval(start.gold)])
    return ["what", "value"], rows


def limit_rows(found: Calibration, proposal: Proposal) -> Rows:
    """What each limit of one form would mean."""
    header = [f"{NAMES[proposal.form]} ≤", "expected unsafe"]
    known = found.start.gold is not None
    header += ["unsafe by gold"] if known else []
    effects = list(proposal.effects)
    if proposal.at_limit is not None:
        effects = sorted([*effects, proposal.at_limit], key=lambda effect: effect.limit)
    rows = [effect_row(effect, effect is proposal.at_limit) for effect in effects]
    return [*header, "effective responses", ""], rows


def effect_row(effect: Effect, proposed: bool) -> list[str]:
    """One limit."""
    marks = [text for text, holds in (("proposed", proposed), ("too few", effect.few)) if holds]
    return [
        f"{effect.limit:.3g}",
        percent_interval(effect.estimated),
        *([percent_interval(effect.gold)] if effect.gold is not None else []),
        f"{effect.effective:.0f}",
        ", ".join(marks),
    ]


def percent(share: float) -> str:
    """A share in percent with one digit."""
    return f"{100 * share:.1f}%"


def percent_interval(share: Interval) -> str:
    """A share in percent with its interval."""
    return f"{percent(share.value)} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def interval(found: Interval) -> str:
    """A number with its interval."""
    return f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"
