"""Two sections of the report: what decoupled labels buy, and which limit to ask for.

Sentences are chosen by the numbers of the run. All intervals are over prompts of one training seed;
`benchmarks/decoupling.py` repeats the runs over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from constrained_rl.page import Block, Picture, Section, Table, Text, picture
from constrained_rl.statistics import Interval
from llm_env.comparison.evaluate import Record
from llm_env.comparison.plots_decoupling import PANELS, percent_text, plot_sweep, plot_zero
from llm_env.comparison.report_tables import mean_cell, share_cell
from llm_env.comparison.results import kind_share, number, percent, weight
from llm_env.comparison.summaries import MethodResult, Results, paired_gain
from llm_env.comparison.verdict import SAFE_SHARE, is_safe, sampled, sign

ONE_SEED = (
    "One training seed; intervals are over prompts. benchmarks/decoupling.py repeats it over seeds."
)
QUESTIONS = {
    "helpfulness": "which is more helpful?",
    "harmlessness": "which is less harmful?",
    "sign": "is this response safe?",
    "single": "which is better on the whole?",
}
SCHEME = {"single": "single dimension"}


def decoupling_section(
    results: Results, records: Mapping[str, Sequence[Record]], folder: Path
) -> Section:
    """The paper's second question: labels, runs, and the zero of the cost model."""
    blocks: list[Block] = [Text([describe_labels(results)]), label_table(results)]
    if results.variants and results.recommended is not None:
        texts = [describe_variant(v, results.recommended, records) for v in results.variants]
        blocks += [Text([" ".join(texts)]), variant_table(results)]
    else:
        blocks.append(Text(["The variants were not trained in this run (decoupling=true does)."]))
    if all(name in results.score_models for name in PANELS):
        blocks += [Text([describe_zero(results)]), zero_picture(folder)]
    return Section("What decoupling buys", blocks)


def describe_labels(results: Results) -> str:
    """Which way of asking people agree on, and which an inspector approves of."""
    agreed, passed = results.agreement, results.approval
    separate = (agreed["helpfulness"], agreed["harmlessness"])
    above = sum(agreed["single"] > share for share in separate)
    place = ("less than on either", "in between", "more than on either")[above]
    return (
        f"Two annotators agree on {separate[0]:.0%} of pairs when asked which response is more "
        f"helpful and on {separate[1]:.0%} when asked which is less harmful; asked for one overall "
        f"preference, on {agreed['single']:.0%}, {place}. A gold inspector approves of "
        f"{passed['helpfulness']:.0%}, {passed['harmlessness']:.0%} and {passed['sign']:.0%} of "
        f"helpfulness, harmlessness and safety labels, and of {passed['single']:.0%} of the "
        f"single ones. A decoupled row holds four labels: she refuses none of them in "
        f"{passed['row']:.0%} of the rows."
    )


def label_table(results: Results) -> Table:
    """Agreement and approval, question by question."""
    rows = [
        [
            SCHEME.get(name, "decoupled"),
            question,
            f"{results.agreement[name]:.1%}",
            f"{results.approval[name]:.1%}",
        ]
        for name, question in QUESTIONS.items()
    ]
    caption = (
        "Agreement: share of held-out pairs on which two annotators of the pool answer alike. "
        "Approval: share of the training labels to which the inspector, an annotator without noise "
        "or bias who weighs help and harm equally, gives more than even odds; labels on which she "
        "is indifferent are left out."
    )
    header = ["annotation", "question", "agreement", "approval"]
    return Table(header, rows, caption, text_columns=2)


def describe_variant(
    variant: MethodResult, recommended: MethodResult, records: Mapping[str, Sequence[Record]]
) -> str:
    """A variant against the recommended method on the same prompts: harm, then help."""
    ours, theirs = recommended.sampled.overall, variant.sampled.overall
    gap = paired_gain(sampled(records[variant.name]), sampled(records[recommended.name]))
    harm = compare(theirs.unsafe, ours.unsafe)
    safety = {1: "less safe than", 0: "about as safe as", -1: "safer than"}[harm]
    help_ = {1: "more helpful", 0: "about as helpful", -1: "less helpful"}[sign(gap)]
    joint = "but" if harm * sign(gap) == 1 else "and"
    text = (
        f"{variant.label[:1].upper()}{variant.label[1:]} is {safety} {recommended.label} "
        f"({theirs.unsafe.value:.1%} against {ours.unsafe.value:.1%} unsafe by gold) {joint} "
        f"{help_} (difference {gap.value:+.2f}, 95% interval {gap.low:+.2f} to {gap.high:+.2f})."
    )
    benign, usual = (run.sampled.kinds.get("benign") for run in (variant, recommended))
    if benign is None or usual is None or compare(benign.refusal, usual.refusal) != 1:
        return text
    return f"{text} It refuses {benign.refusal.value:.0%} of benign prompts."


def compare(a: Interval, b: Interval) -> int:
    """1 where a lies above b with its whole interval, −1 below, 0 where they overlap."""
    return int(a.low > b.high) - int(a.high < b.low)


def variant_table(results: Results) -> Table:
    """SFT, the recommended method and the variants."""
    assert results.recommended is not None
    rows = []
    for run in (results.start, results.recommended, *results.variants):
        overall, kinds = run.sampled.overall, run.sampled.kinds
        red_team = kinds.get("red_team")
        rows.append(
            [
                run.label,
                share_cell(overall.unsafe),
                percent(overall.model_unsafe),
                mean_cell(overall.helpfulness),
                *(kind_share(run.sampled, k, "refusal") for k in ("benign", "borderline")),
                kind_share(run.sampled, "red_team", "refusal"),
                "–" if red_team is None else percent(red_team.safe_completion),
                weight(run),
                number(run.kl),
            ]
        )
    header = ["trained with", "unsafe % (gold)", "C > 0 %", "helpful (gold)", "benign refused %"]
    header += ["borderline refused %", "red‑team refused %", "safe completions %"]
    caption = (
        "The same pipeline, pairs, settings and seeds; only labels or cost differ. C is the "
        f"standard cost model's, also where a run was trained with another. {ONE_SEED}"
    )
    return Table([*header, "λ", "KL"], rows, caption, rules=frozenset({0, 1}))


def describe_zero(results: Results) -> str:
    """What the sign terms do to a cost model."""
    both, ranking, free = (results.score_models[name] for name in ("cost", "ranking", "free"))
    shares = [100 * (model.gold_sign or 0.0) for model in (both, ranking, free)]
    worst = shares[0] - min(shares)
    found = (
        "Without the sign terms zero is misplaced"
        if worst > 3.0
        else "In this run zero falls between safe and unsafe all the same; no term asks for it"
    )
    return (
        f"Without the sign terms a cost model orders {ranking.gold_ranking:.0%} of held-out pairs "
        f"as gold does, with them {both.gold_ranking:.0%}; but ranking says nothing about zero, "
        "where a constraint on C > 0 stands. Share of responses on their side of it: "
        f"{shares[0]:.1f}% with the sign terms, {shares[1]:.1f}% without them, {shares[2]:.1f}% "
        f"also without the regularizer, which pulls scores towards 0. {found}."
    )


def zero_picture(folder: Path) -> Picture:
    """Histograms of C under three losses."""
    accuracy = {
        name: json.loads((folder / f"{name}_model/accuracy.json").read_text(encoding="utf-8"))
        for name in PANELS
    }
    caption = (
        "Cost of held-out SFT responses by the terms of the loss: with a usable zero, blue lies "
        "left of the dashed line and orange-red right of it. Ranking fixes only differences; μ is "
        "the weight of the regularizer."
    )
    return picture(plot_zero(accuracy), caption, wide=True)


def limit_section(results: Results) -> Section | None:
    """The recommended method at several limits; None where only one was run."""
    runs = [run for run in results.sweep if run.limit is not None]
    if len(runs) < 2:
        return None
    own = results.recommended
    recommended = own.limit if own is not None and own.limit is not None else float("nan")
    caption = (
        "The recommended method at several limits. Left, the model's share (blue) should lie on or "
        "below the dashed line, and gold (orange-red) near blue; right, what a limit costs in "
        f"helpfulness. Bold: the default limit. {ONE_SEED}"
    )
    shown = picture(plot_sweep(runs, results.start, recommended), caption, wide=True)
    return Section("Which limit?", [Text([describe_sweep(runs)]), shown, limit_table(runs)])


def describe_sweep(runs: Sequence[MethodResult]) -> str:
    """How far limits are kept, and where gold draws the line."""
    kept = [
        r for r in runs if r.limit is not None and r.sampled.overall.model_unsafe.low <= r.limit
    ]
    names = ", ".join(percent_text(run.limit) for run in kept) or "none"
    safe = [run for run in runs if is_safe(run)]
    text = (
        f"The cost model's own share is within the limit, as far as the interval can tell, at "
        f"{len(kept)} of {len(runs)} limits ({names})."
    )
    if not safe:
        return f"{text} At none of them are at most {SAFE_SHARE:.0%} of responses unsafe by gold."
    best = max(safe, key=lambda run: run.sampled.overall.helpfulness.value)
    return (
        f"{text} By gold at most {SAFE_SHARE:.0%} of responses are unsafe at limits of "
        f"{', '.join(f'{run.limit:.0%}' for run in safe)}; the most helpful of these is "
        f"{percent_text(best.limit)} (helpfulness {best.sampled.overall.helpfulness.value:.2f})."
    )


def limit_table(runs: Sequence[MethodResult]) -> Table:
    """One row per limit."""
    rows: list[list[str | Markup]] = []
    for run in runs:
        overall, red_team = run.sampled.overall, run.sampled.kinds.get("red_team")
        rows.append(
            [
                percent_text(run.limit),
                share_cell(overall.model_unsafe),
                share_cell(overall.unsafe),
                mean_cell(overall.helpfulness),
                kind_share(run.sampled, "benign", "refusal"),
                kind_share(run.sampled, "red_team", "refusal"),
                "–" if red_team is None else percent(red_team.safe_completion),
                weight(run),
                number(run.kl),
            ]
        )
    header = ["limit", "C > 0 %", "unsafe % (gold)", "helpful (gold)", "benign refused %"]
    header += ["red‑team refused %", "safe completions %", "λ", "KL"]
    return Table(header, rows)
