"""The page of a calibration: the proposal first, then what it rests on."""

from __future__ import annotations

from constrained_rl.page import Block, Code, Page, Section, Table, Text, picture
from llm_env.calibration.evidence import Evidence
from llm_env.calibration.plots import plot_drift, plot_limits, plot_reliability, plot_start
from llm_env.calibration.results import FEW, Calibration
from llm_env.calibration.summary import FORMS
from llm_env.calibration.wording import (
    NAMES,
    chosen,
    confirmation,
    interval,
    limit_rows,
    paste,
    percent,
    percent_interval,
    quality_rows,
    sentence,
    toml,
    warnings,
)


def build_page(found: Calibration, evidence: Evidence) -> Page:
    """The report: proposal first, then what it rests on."""
    return Page(
        title="A limit for this cost model",
        subtitle=f"{found.title} · target {percent(found.target)} unsafe responses",
        lead=first_screen(found),
        sections=[
            limit_section(found),
            model_section(found),
            start_section(found, evidence),
            *drift_sections(found),
        ],
    )


def first_screen(found: Calibration) -> list[Block]:
    """The sentence, what to paste, the curve, and what is not covered."""
    best = chosen(found)
    said = confirmation(found)
    caption = (
        "What a limit would mean. The starting model's own responses are weighted by exp(−λ t(C)) "
        "to meet each limit, which is the policy closest in KL that does: blue is the unsafe share "
        "that the calibration expects of them, with its bootstrap interval"
        + (
            ", orange-red what gold finds in them, dots what gold finds in the trained models' own "
            "responses"
            if found.outcomes
            else ""
        )
        + ". The limit is proposed where blue meets the dashed target, its 95% interval shaded. "
        f"Hollow marks rest on fewer than {FEW:.0f} effective responses; both axes of shares are "
        "square-root scaled."
    )
    form = found.form if best is None else best.form
    return [
        Text([sentence(found), *([said] if said else [])]),
        *([Code(f"{paste(found, best)}\n\n{toml(best)}")] if best else []),
        picture(plot_limits(found, [form]), caption, wide=True),
        Text(warnings(found)),
    ]


def limit_section(found: Calibration) -> Section:
    """Tables of limits, the other forms, and the other readings."""
    best = chosen(found)
    form = found.form if best is None else best.form
    others = [other for other in FORMS if other != form]
    header, rows = limit_rows(found, found.proposals[form])
    caption = (
        "A false alarm and a miss of the cost model do not cancel: with the limit at 0 its misses "
        "remain."
    )
    return Section(
        "What each limit would mean",
        [
            Table(header, rows, caption),
            readings_table(found),
            picture(
                plot_limits(found, others),
                "The same for the other forms. A mean cost can be met in many ways, by very safe "
                "responses that pay for harmful ones or by none of either, so trained models need "
                "not lie near the curve of E[C].",
                wide=True,
            ),
        ],
    )


def readings_table(found: Calibration) -> Table:
    """The proposal of each form beside other ways to choose a limit."""
    header = ["form", "by tilting (proposed)", "if all costs shift alike", "Rogan–Gladen"]
    caption = (
        "Other ways to read the same target. The shift moves every response alike. Rogan–Gladen "
        "corrects the share C > 0 by the error rates on labels, and so lets false alarms pay for "
        "harm: a policy that learns from C removes its alarms first, and the misses stay. Neither "
        "is proposed."
    )
    rows = []
    for form in FORMS:
        proposal = found.proposals[form]
        limit = "out of reach" if proposal.limit is None else interval(proposal.limit)
        other = "–" if proposal.rogan_gladen is None else f"{proposal.rogan_gladen:.3g}"
        rows.append([NAMES[form], limit, f"{proposal.shift:.3g}", other])
    if found.published_limit is not None:
        header, caption = [*header, "published"], f"{caption} Published: −d of this comparison."
        for form, row in zip(FORMS, rows, strict=True):
            row.append(f"{found.published_limit:g}" if form == "identity" else "–")
    return Table(header, rows, caption)


def model_section(found: Calibration) -> Section:
    """Calibration on labels."""
    header, rows = quality_rows(found)
    caption = (
        "Tenths of the labelled responses with Wilson's 95% intervals. Left: on the dotted "
        "diagonal σ(C) is a probability. Right: dashed is the model's zero, shaded the cost at "
        "which unsafe is as likely as safe; the blue curve takes off what annotators are known to "
        "mislabel."
    )
    return Section(
        "The cost model on labels",
        [picture(plot_reliability(found), caption, wide=True), Table(header, rows, text_columns=2)],
    )


def start_section(found: Calibration, evidence: Evidence) -> Section:
    """Costs before training."""
    caption = (
        f"Costs of {found.start.n} responses ({found.start.source}); the marks on the axis are the "
        "5, 25, 50, 75 and 95% quantiles, the dashed line is where the model's verdict changes."
    )
    return Section("The starting model's costs", [picture(plot_start(evidence.start), caption)])


def drift_sections(found: Calibration) -> list[Section]:
    """Does the calibration hold on the responses of trained models? Needs gold."""
    if not found.outcomes:
        return []
    worse = [o.label for o in found.outcomes if o.underestimated]
    verdict = (
        f"On {len(worse)} of {len(found.outcomes)} models gold finds more harm than the "
        f"calibration expects, beyond its interval: {', '.join(worse)}."
        if worse
        else "On no model does gold find more harm than the calibration expects."
    )
    rows = [
        [
            outcome.label,
            f"{outcome.value['identity']:.2f}",
            percent(outcome.value["indicator"]),
            percent(outcome.estimated),
            percent_interval(outcome.gold),
            "–" if outcome.missed is None else percent_interval(outcome.missed),
        ]
        for outcome in found.outcomes
    ]
    header = ["model", "E[C]", "P(C > 0)", "expected unsafe", "by gold", "by gold, of C ≤ 0"]
    caption = (
        "The calibration of the starting model's labels on responses that it has not seen; above "
        "the dotted diagonal it is too hopeful, below it too cautious."
    )
    blocks: list[Block] = [
        Text([verdict]),
        picture(plot_drift(found), caption, wide=True),
        Table(header, rows, "The last column is what the cost model misses."),
    ]
    return [Section("Does it hold after training?", blocks)]
