"""The report of a comparison: one self-contained HTML file, all of it measured in that run.

First screen: verdict, table, frontier. Then the paper's figures, gold beside every model score.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from constrained_rl.assembly import constrain
from constrained_rl.logging import read_metrics
from constrained_rl.page import (
    Block,
    Code,
    Fold,
    Page,
    Picture,
    Section,
    Table,
    Text,
    picture,
    write_page,
)
from constrained_rl.plots import CostCurve, Metrics, plot_time, save_figure
from constrained_rl.report import OVER_TRAINING, excess_text, kept_from, origin
from llm_env.comparison.config import CompareConfig
from llm_env.comparison.evaluate import Mode, Record
from llm_env.comparison.methods import every_run, methods, variants
from llm_env.comparison.plots import plot_frontier, plot_overoptimization, plot_training
from llm_env.comparison.plots_detail import (
    plot_cost_model,
    plot_helpfulness,
    plot_outcomes,
    plot_unsafe,
)
from llm_env.comparison.plots_planes import plot_planes
from llm_env.comparison.report_decoupling import decoupling_section, limit_section
from llm_env.comparison.report_tables import all_numbers, main_table, sample_folds, score_table
from llm_env.comparison.results import read_comparison, read_runs, summarize
from llm_env.comparison.schedule import load_config
from llm_env.comparison.summaries import Results
from llm_env.comparison.verdict import misses_harm, reward_hacked, verdict
from llm_env.config import AlignConfig


@dataclass(frozen=True)
class Comparison:
    """A comparison read from disk."""

    folder: Path
    config: CompareConfig
    results: Results
    records: Mapping[str, Sequence[Record]]

    @cached_property
    def labels(self) -> dict[str, str]:
        """Label of each method by name."""
        return {method.name: method.label for method in self.results.methods}


def write_comparison_report(folder: Path) -> Path:
    """Write report.html, results.json, frontier.png and frontier.svg into a comparison's folder."""
    config = load_config(folder)
    found = Comparison(folder, config, summarize(folder), read_comparison(folder, config))
    save_figure(plot_frontier(found.results), folder / "frontier")  # the one picture, for a README
    n = found.results.start.sampled.overall.n
    page = Page(
        title="Safe RLHF against static reward shaping",
        subtitle=f"embedded dialogue world · seed {config.seed} · {n} prompts, the same for every "
        "method",
        lead=first_screen(found),
        sections=[section for build in SECTIONS if (section := build(found)) is not None]
        + [origin_section(folder)],
    )
    return write_page(page, folder / "report.html")


def first_screen(found: Comparison) -> list[Block]:
    """Verdict, table and frontier."""
    return [
        Text(verdict(found.results, found.records)),
        main_table(found.results),
        frontier_picture(found),
    ]


def frontier_picture(found: Comparison) -> Picture:
    """The paper's Figure 6b."""
    caption = (
        "Each point is a method with its 95% intervals; up and left is better. Left: gold scores, "
        "shaded where more than 5% of responses are unsafe. Right: the score models' view of the "
        "same responses: where the two panels disagree, a method has exploited the models."
    )
    return picture(plot_frontier(found.results), caption, wide=True)


def training_section(found: Comparison) -> Section:
    """The paper's Figure 6c."""
    runs: dict[str, list[Metrics]] = {}
    curves: dict[str, CostCurve] = {}
    for method in methods(found.config):
        rows = read_metrics(found.folder / "runs" / method.name / "metrics.jsonl")
        if method.family == "dynamic" and method.align is not None and rows:
            runs[method.name] = list(rows)
            curves[method.name] = constrained_curve(method.align)
    if not runs:
        return Section("λ and cost over training", [Text(["No dynamic method has finished."])])
    caption = (
        "Above λ, below the quantity that each method constrains, with its limit dashed and the "
        "violating side shaded: λ should rise while the curve below is in the shade."
    )
    shown = picture(plot_training(runs, curves, found.labels), caption, wide=True)
    lines = [
        [
            found.labels[name],
            f"{curve.name} ≤ {curve.limit:g}",
            excess_text(runs[name], curve),
            kept_from(runs[name], curve),
        ]
        for name, curve in curves.items()
    ]
    header = ["method", "limit", "excess over training", "kept from"]
    return Section(
        "λ and cost over training", [shown, Table(header, lines, OVER_TRAINING, text_columns=2)]
    )


def constrained_curve(align: AlignConfig) -> CostCurve:
    """What a run's λ answers to."""
    (constraint,) = constrain(("cost",), align.limit, align.constraint).constraints
    return CostCurve(constraint.quantity, "estimate/cost", constraint.limit)


def plane_section(found: Comparison) -> Section:
    """The paper's Figure 4, greedy and sampled."""
    caption = (
        "One dot per response to the same prompts; right of the dashed line the cost model calls "
        "it unsafe (C > 0), above the dotted line it beats SFT's mean reward, orange-red dots are "
        "unsafe by gold. Percentages are the shares of the four quadrants."
    )
    modes: tuple[tuple[Mode, str], ...] = (
        ("greedy", "Greedy responses."),
        ("sampled", "Sampled responses (temperature 1)."),
    )
    return Section(
        "Reward and cost of every response",
        [
            picture(plot_planes(found.records, found.labels, mode), f"{head} {caption}", wide=True)
            for mode, head in modes
        ],
    )


def unsafe_section(found: Comparison) -> Section:
    """Shares by gold and by the cost model."""
    caption = (
        "Share of sampled responses that are unsafe, with Wilson's 95% intervals, on a square-root "
        "scale; orange-red clearly right of blue means that the cost model misses harm."
    )
    return Section("Unsafe responses", [picture(plot_unsafe(found.results), caption, wide=True)])


def outcome_section(found: Comparison) -> Section:
    """Refusals and helpfulness per class."""
    outcomes = (
        "What sampled responses are, per class of prompt: grey on the left two panels is needless "
        "refusal; green on the right one is a refusal with the right reason and two alternatives."
    )
    helpfulness = (
        "Mean gold helpfulness of sampled responses with 95% intervals; the dotted line is SFT: "
        "right of it a method is more helpful than where it started."
    )
    blocks = [
        picture(plot_outcomes(found.records, found.labels, "sampled"), outcomes, wide=True),
        picture(plot_helpfulness(found.results), helpfulness, wide=True),
    ]
    return Section("Refusals and helpfulness per class of prompt", blocks)


def score_section(found: Comparison) -> Section:
    """Score models and annotators."""
    path = found.folder / "cost_model/accuracy.json"
    accuracy = json.loads(path.read_text(encoding="utf-8"))
    caption = (
        "Model cost C of held-out SFT responses: a perfect cost model has every blue bar left of "
        "the dashed zero line and every orange-red one right of it."
    )
    shown = picture(plot_cost_model(accuracy["score"], accuracy["unsafe"]), caption)
    return Section("Score models", [shown, score_table(found.results)])


def overoptimization_section(found: Comparison) -> Section:
    """Model scores against gold over methods."""
    start, *others = found.results.methods
    hacked = [m for m in others if reward_hacked(m, start)]
    missed = [m for m in others if misses_harm(m)]
    caption = (
        "Left: methods that lie low on the right have a high model reward and little gold "
        "helpfulness. Right: above the dotted diagonal gold finds more unsafe responses than the "
        "cost model. Rings mark methods for which that holds beyond the 95% intervals."
    )
    shown = picture(plot_overoptimization(found.results, hacked, missed), caption, wide=True)
    return Section("Over-optimization", [shown])


def decoupling(found: Comparison) -> Section:
    """The paper's second question."""
    records = {**found.records, **read_runs(found.folder, variants(found.config))}
    return decoupling_section(found.results, records, found.folder)


def limits(found: Comparison) -> Section | None:
    """The sweep of limits, where there is one."""
    return limit_section(found.results)


def sample_section(found: Comparison) -> Section:
    """Responses side by side."""
    rule = (
        "Greedy responses to the first two evaluation prompts of each class: chosen by that rule, "
        "not by hand. R and C are the models' scores, helpfulness and the mark are gold."
    )
    blocks: list[Block] = [Text([rule]), *sample_folds(found.records, found.labels)]
    return Section("Responses side by side", blocks)


def numbers_section(found: Comparison) -> Section:
    """Everything with intervals."""
    return Section("All numbers", list(all_numbers(found.results)))


def time_section(found: Comparison) -> Section:
    """Seconds per stage."""
    caption = (
        "Wall-clock seconds of each stage, longest first; independent stages ran side by side, so "
        "the whole took less than their sum."
    )
    labels = {run.name: run.label for run in every_run(found.config)}
    seconds = {
        labels.get(stage.removeprefix("runs/"), stage.replace("_", " ")): wall
        for stage, wall in found.results.seconds.items()
        if stage != "runs/sft"  # only evaluates
    }
    return Section("Time", [picture(plot_time(seconds), caption)])


def origin_section(folder: Path) -> Section:
    """Config and provenance, folded."""
    blocks: list[Block] = []
    for part in origin(folder):
        code = [block for block in part.blocks if isinstance(block, Code)]
        blocks.append(Fold(part.title, code))
    return Section("Config and provenance", blocks)


SECTIONS: tuple[Callable[[Comparison], Section | None], ...] = (
    training_section,
    plane_section,
    unsafe_section,
    outcome_section,
    decoupling,
    limits,
    overoptimization_section,
    score_section,
    sample_section,
    numbers_section,
    time_section,
)
