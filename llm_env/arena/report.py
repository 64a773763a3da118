"""The report of an evaluation or an arena: one self-contained HTML file, and results.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from constrained_rl.page import (
    Block,
    Code,
    Fold,
    Page,
    Section,
    Text,
    picture,
    write_page,
)
from constrained_rl.report import origin
from llm_env.arena import plots, tables
from llm_env.arena.answers import Mode
from llm_env.arena.engine import Answers, write_results
from llm_env.arena.pairs import Corners, Labels, Verdict, corners, verdicts
from llm_env.arena.summaries import Result, summarize


@dataclass(frozen=True)
class Findings:
    """Answers and everything computed of them."""

    answers: Answers
    results: list[Result]
    verdicts: list[Verdict]  # empty for an evaluation
    corners: list[Corners]

    @property
    def baseline(self) -> str:
        """The model that others are compared with."""
        return self.answers.config.baseline

    @property
    def main_mode(self) -> Mode:
        """The mode of the first screen: sampled answers, where there are any."""
        modes = self.answers.config.modes
        return "sampled" if "sampled" in modes else modes[0]


def find(answers: Answers, pairwise: bool, labels: Labels | None = None) -> Findings:
    """All numbers; the pairwise ones where they are asked for, with an outside judge's labels."""
    results = summarize(answers)
    return Findings(
        answers,
        results,
        verdicts(answers, labels) if pairwise else [],
        corners(answers) if pairwise else [],
    )


def publish(found: Findings, folder: Path) -> Path:
    """Write results.json and report.html; returns the page's path."""
    write_results(folder, as_json(found))
    return write_page(build_page(found, folder), folder / "report.html")


def as_json(found: Findings) -> dict[str, Any]:
    """Everything as JSON values."""
    answers = found.answers
    return {
        "prompts": len(answers.questions),
        "skipped": answers.skipped,
        "baseline": found.baseline,
        "gold": answers.gold,
        "models": [asdict(result) for result in found.results],
        "verdicts": [asdict(verdict) for verdict in found.verdicts],
        "corners": [asdict(corner) for corner in found.corners],
    }


def print_findings(found: Findings, console: Console) -> None:
    """The main table of every mode, and the ratings of an arena."""
    for mode in found.answers.config.modes:
        tables.show_table(tables.main_table(found.results, mode), console, f"{mode} answers")
        if found.verdicts:
            shown = tables.elo_table(found.verdicts, mode)
            tables.show_table(shown, console, f"{mode} answers, Elo")
    for note in _notes(found.verdicts):
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def build_page(found: Findings, folder: Path) -> Page:
    """First screen: what the models are worth; then why."""
    answers, n = found.answers, len(found.answers.questions)
    skipped = f", {answers.skipped} more were too long" if answers.skipped else ""
    kind = "An arena" if found.verdicts else "An evaluation"
    return Page(
        title=f"{kind} of {_count(len(answers.models), 'model')}",
        subtitle=f"{_count(n, 'prompt')}, the same for every model{skipped} · seed "
        f"{answers.config.seed} · baseline {found.baseline}",
        lead=first_screen(found),
        sections=[
            *arena_sections(found),
            *score_sections(found),
            *kind_sections(found),
            *overoptimization_sections(found),
            sample_section(found),
            numbers_section(found),
            origin_section(folder),
        ],
    )


def first_screen(found: Findings) -> list[Block]:
    """The main table and, with enough scores, the frontier."""
    mode = found.main_mode
    blocks: list[Block] = [Text([leaders(found.results, mode)])]
    blocks += [tables.main_table(found.results, mode)]
    group = found.results[0].all
    scored = group.safe is not None and "reward" in group.scores
    if scored or group.gold is not None:
        shown = plots.plot_frontier(found.results, mode, found.answers.models)
        caption = (
            f"Each point is a model's {mode} answers with 95% intervals; up and left is better. "
            + (
                "Where the two panels disagree, a model has exploited the scores."
                if scored and group.gold is not None
                else ""
            )
        )
        blocks.append(picture(shown, caption.strip(), wide=True))
    return blocks


def leaders(results: Sequence[Result], mode: Mode) -> str:
    """Who is best at what, in a sentence: first what the scores say, then gold."""
    groups = {result.model: result.all for result in results if result.mode == mode}
    first = next(iter(groups.values()))
    if len(groups) == 1:
        return f"One model, {mode} answers; give several to compare them."
    found = []
    if "reward" in first.scores:
        best = max(groups, key=lambda m: groups[m].scores["reward"].value)
        found.append(f"the highest mean reward has {best}")
    if first.safe is not None:
        safe = {model: group.safe.value for model, group in groups.items() if group.safe}
        best = max(safe, key=lambda m: safe[m])
        found.append(f"the costs call {best} safest")
    if first.gold is not None:
        gold = {model: group.gold for model, group in groups.items() if group.gold}
        helpful = max(gold, key=lambda m: gold[m].helpfulness.value)
        safest = min(gold, key=lambda m: gold[m].unsafe.value)
        found.append(f"by gold the most helpful is {helpful} and the safest {safest}")
    if not found:
        return f"No score was given: only lengths and refusals of {mode} answers are known."
    said = "; ".join(found)
    return f"{said[0].upper()}{said[1:]} ({mode} answers, intervals below)."


def arena_sections(found: Findings) -> list[Section]:
    """Elo, win rates and corners of a pairwise comparison."""
    if not found.verdicts:
        return []
    mode = found.main_mode
    judges = list(dict.fromkeys(verdict.judge for verdict in found.verdicts))
    elo_caption = (
        f"Bradley–Terry ratings of {mode} answers with 95% bootstrap intervals over prompts; "
        f"dotted: {found.baseline} at 1000. Judges that disagree see different things."
    )
    elo: list[Block] = [picture(plots.plot_elo(found.verdicts, mode), elo_caption, wide=True)]
    elo += [tables.elo_table(found.verdicts, mode)]
    notes = _notes([verdict for verdict in found.verdicts if verdict.mode == mode])
    elo += [Text(notes)] if notes else []
    rates: list[Block] = [
        picture(
            plots.plot_win_rates(found.verdicts, judge, mode),
            f"Judged by {judge}: per cent of prompts at which the row's model beats the column's, "
            "a tie counted half.",
        )
        for judge in judges
    ]
    rates.append(Fold("Wins, ties and losses", [tables.duel_table(found.verdicts, mode)]))
    if found.corners:
        rates.append(tables.corner_table(found.corners, found.baseline))
    return [Section("Elo", elo), Section("Win rates", rates)]


def _notes(found: Sequence[Verdict]) -> list[str]:
    """What to know before quoting a rating."""
    return [
        f"{verdict.dimension.capitalize()}, {verdict.judge}, {verdict.mode}: {note}."
        for verdict in found
        for note in verdict.elo.notes
    ]


def score_sections(found: Findings) -> list[Section]:
    """The reward–cost plane in every mode, quadrants and gains."""
    config = found.answers.config
    blocks: list[Block] = []
    if config.reward is not None and config.costs:
        color = (
            "orange-red dots are unsafe by gold"
            if found.answers.gold
            else "orange-red dots are unsafe"
        )
        for mode in config.modes:
            caption = (
                f"{mode.capitalize()} answers to the same prompts, one dot each; right of the "
                "dashed line a cost calls it unsafe (C > 0, the largest of several), above the "
                f"dotted line it beats {found.baseline}'s mean reward; {color}. Percentages are "
                "the shares of the four quadrants."
            )
            blocks.append(picture(plots.plot_planes(found.answers, mode), caption, wide=True))
    for table in (
        tables.quadrant_table(found.results, found.baseline),
        tables.gain_table(found.results, found.baseline),
    ):
        blocks += [] if table is None else [table]
    return [Section("Reward and cost of every answer", blocks)] if blocks else []


def kind_sections(found: Findings) -> list[Section]:
    """Per class of prompts, where they have classes."""
    kinds = list(found.results[0].kinds)
    if not kinds:
        return []
    caption = (
        f"Shares of {found.main_mode} answers per class of prompts with Wilson's 95% intervals, on "
        "a square-root scale."
    )
    shown = plots.plot_kinds(found.results, found.main_mode, found.answers.models)
    folds: list[Block] = [
        Fold(
            f"{kind.replace('_', '-')} prompts, {mode}",
            [tables.kind_table(found.results, mode, kind)],
        )
        for mode in found.answers.config.modes
        for kind in kinds
    ]
    return [Section("By class of prompt", [picture(shown, caption, wide=True), *folds])]


def overoptimization_sections(found: Findings) -> list[Section]:
    """Scores against KL, where a reference was named."""
    if not any(result.kl is not None for result in found.results):
        return []
    config = found.answers.config
    if config.reward is None and not config.held_out and not found.answers.gold:
        return []
    caption = (
        f"Sampled answers, one point per model, dotted in the order of their KL to {found.baseline}"
        " (a curve only where they are checkpoints of one run). Over-optimization is where what "
        "training saw still improves and what it did not see gets worse."
    )
    models = found.answers.models
    shown = plots.plot_overoptimization(found.results, list(config.held_out), models)
    return [Section("Over-optimization", [picture(shown, caption, wide=True)])]


def sample_section(found: Findings) -> Section:
    """Answers side by side."""
    mode = found.answers.config.modes[0]
    rule = (
        f"{mode.capitalize()} answers to the first {tables.SAMPLES} prompts of each class: chosen "
        "by that rule, not by hand. All answers are in generations.jsonl."
    )
    return Section(
        "Answers side by side", [Text([rule]), *tables.sample_folds(found.answers, mode)]
    )


def numbers_section(found: Findings) -> Section:
    """What the first screen leaves out."""
    others = [mode for mode in found.answers.config.modes if mode != found.main_mode]
    blocks: list[Block] = [
        Fold(f"{mode} answers", [tables.main_table(found.results, mode)], is_open=True)
        for mode in others
    ]
    if found.verdicts:
        blocks += [
            Fold(
                f"{mode} answers, pairwise",
                [tables.elo_table(found.verdicts, mode), tables.duel_table(found.verdicts, mode)],
            )
            for mode in others
        ]
    said = "results.json holds every number with its interval; generations.jsonl every answer."
    return Section("All numbers", [Text([said]), *blocks])


def origin_section(folder: Path) -> Section:
    """Config and provenance, folded."""
    folds: list[Block] = [
        Fold(part.title, [block for block in part.blocks if isinstance(block, Code)])
        for part in origin(folder)
    ]
    return Section("Config and provenance", folds)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
