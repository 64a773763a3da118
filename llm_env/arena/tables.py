"""Tables of an evaluation, on the page and on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from rich.console import Console

from constrained_rl.page import Fold, Table
from constrained_rl.statistics import Interval
from llm_env.arena.answers import Mode
from llm_env.arena.engine import Answers
from llm_env.arena.judging import Answer
from llm_env.arena.pairs import Corners, Verdict
from llm_env.arena.summaries import Group, Result
from llm_env.comparison.report_tables import mean_cell, share_cell
from llm_env.terminal import print_table

SAMPLES = 2
"""prompts per class whose answers are shown"""
SHORTER = {"helpfulness": "helpful", "harmlessness": "harmless"}
NONE = Markup("–")
Cell = str | Markup


def main_table(results: Sequence[Result], mode: Mode) -> Table:
    """One row per model: safety, scores, refusals, lengths, KL."""
    chosen = [result for result in results if result.mode == mode]
    first = chosen[0].all
    header = ["model"]
    header += ["unsafe % (gold)", "helpful (gold)"] if first.gold else []
    header += ["safe % (C ≤ 0)"] if first.safe else []
    header += [symbol(name) for name in first.scores]
    header += ["refusals %", "tokens", "cut off %", "distinct %"]
    header += ["KL"] if any(result.kl for result in chosen) else []
    rows = [_main_row(result, "KL" in header) for result in chosen]
    return Table(header, rows, f"{mode.capitalize()} answers to {first.n} prompts. {INTERVALS}")


INTERVALS = (
    "Small figures: 95% intervals over prompts (Wilson for shares, Student's t for means); they "
    "say nothing about other training seeds. Cut off: ended by the longest length allowed."
)


def _main_row(result: Result, kl: bool) -> list[Cell]:
    group = result.all
    row: list[Cell] = [result.model]
    if group.gold is not None:
        row += [share_cell(group.gold.unsafe), mean_cell(group.gold.helpfulness)]
    row += [share_cell(group.safe)] if group.safe else []
    row += [mean_cell(score) for score in group.scores.values()]
    row += [share_cell(group.refusal), f"{group.tokens.value:.1f}", f"{_percent(group.by_length)}"]
    row += [f"{100 * group.distinct:.0f}"]
    return [*row, mean_cell(result.kl)] if kl else row


def symbol(name: str) -> str:
    """Column title of a score."""
    return {"reward": "R", "cost": "C"}.get(name, name)


def gain_table(results: Sequence[Result], baseline: str) -> Table | None:
    """Paired differences to the baseline."""
    rows: list[list[Cell]] = [
        [result.model, result.mode, *map(mean_cell, result.gain.values())]
        for result in results
        if result.gain
    ]
    if not rows:
        return None
    names = [f"Δ {symbol(name)}" for name in results[0].all.scores]
    caption = f"Mean difference to {baseline} on the same prompts, Student's t over prompts."
    return Table(["model", "mode", *names], rows, caption, text_columns=2)


def quadrant_table(results: Sequence[Result], baseline: str) -> Table | None:
    """Counts of the four quadrants."""
    rows: list[list[Cell]] = []
    for result in results:
        q = result.quadrants
        if q is not None:
            counts = (q.better_safe, q.better_unsafe, q.worse_safe, q.worse_unsafe)
            cells = [f"{count} ({count / result.all.n:.0%})" for count in counts]
            rows.append([result.model, result.mode, *cells])
    if not rows:
        return None
    header = [
        "model",
        "mode",
        "R above, safe",
        "R above, unsafe",
        "R below, safe",
        "R below, unsafe",
    ]
    caption = f"R above or below the mean reward of {baseline} in the same mode; unsafe is C > 0."
    return Table(header, rows, caption, text_columns=2)


def kind_table(results: Sequence[Result], mode: Mode, kind: str) -> Table:
    """One class of prompts."""
    groups = [(r.model, r.kinds[kind]) for r in results if r.mode == mode and kind in r.kinds]
    first = groups[0][1]
    header = ["model", "n", *(["unsafe % (gold)", "helpful (gold)"] if first.gold else [])]
    header += ["safe % (C ≤ 0)"] if first.safe else []
    header += [*map(symbol, first.scores), "refusals %", "tokens"]
    return Table(header, [[model, *_kind_cells(group)] for model, group in groups])


def _kind_cells(group: Group) -> list[Cell]:
    row: list[Cell] = [str(group.n)]
    if group.gold is not None:
        row += [share_cell(group.gold.unsafe), mean_cell(group.gold.helpfulness)]
    row += [share_cell(group.safe)] if group.safe else []
    row += [mean_cell(score) for score in group.scores.values()]
    return [*row, share_cell(group.refusal), f"{group.tokens.value:.1f}"]


def duel_table(verdicts: Sequence[Verdict], mode: Mode) -> Table:
    """Win, tie and loss of every pair, judge and dimension."""
    rows: list[list[Cell]] = []
    for verdict in verdicts:
        if verdict.mode == mode:
            rows += [
                [
                    f"{duel.first} : {duel.second}",
                    verdict.judge,
                    verdict.dimension,
                    *map(share_cell, (duel.win, duel.tie, duel.loss)),
                ]
                for duel in verdict.duels
            ]
    return Table(["pair", "judge", "dimension", "win %", "tie %", "loss %"], rows, text_columns=3)


def elo_table(verdicts: Sequence[Verdict], mode: Mode) -> Table:
    """Ratings with intervals, one column per judge and dimension."""
    chosen = [verdict for verdict in verdicts if verdict.mode == mode]
    header = ["model", *(f"{SHORTER[verdict.dimension]} ({verdict.judge})" for verdict in chosen)]
    anchor = chosen[0].models[0]
    rows: list[list[Cell]] = [
        [model, *(rating_cell(verdict.elo[model], model == anchor) for verdict in chosen)]
        for model in chosen[0].models
    ]
    caption = (
        f"Bradley–Terry ratings of {mode} answers, {anchor} = 1000, 400 points are "
        "odds of ten to one; 95% bootstrap intervals over prompts."
    )
    return Table(header, rows, caption)


def rating_cell(rating: Interval, anchor: bool = False) -> Markup:
    """A rating with the ends of its interval."""
    width = f"{rating.low:.0f}–{rating.high:.0f}" if rating.low < rating.high else "no interval"
    ends = "fixed" if anchor else width  # no interval: every resample gave the same
    return Markup('{} <span class="ci">{}</span>').format(f"{rating.value:.0f}", ends)


def corner_table(corners: Sequence[Corners], baseline: str) -> Table:
    """Signs of (ΔR, ΔC)."""
    header = ["model", "mode", "better, safer", "better, riskier", "worse, safer"]
    header += ["worse, riskier", "equal in one"]
    rows: list[list[Cell]] = [
        [c.model, c.mode, *map(str, counts)]
        for c in corners
        for counts in (
            (c.better_safer, c.better_riskier, c.worse_safer, c.worse_riskier, c.undecided),
        )
    ]
    caption = f"Prompts by the signs of ΔR and ΔC to {baseline}'s answer to the same prompt."
    return Table(header, rows, caption, text_columns=2)


def sample_folds(found: Answers, mode: Mode) -> list[Fold]:
    """All models' answers to the first prompts of each class."""
    kinds = list(dict.fromkeys(question.kind for question in found.questions))
    folds = []
    for kind in kinds:
        chosen = [i for i, question in enumerate(found.questions) if question.kind == kind]
        for k, index in enumerate(chosen[:SAMPLES]):
            asked = _prompt_text(found.questions[index].prompt)
            title = f"{kind}: {asked}" if kind else asked
            table = _sample_table([found.of(model, mode)[index] for model in found.models])
            folds.append(Fold(title.replace("_", "-"), [table], is_open=k == 0))
    return folds


def _sample_table(said: Sequence[Answer]) -> Table:
    rows: list[list[Cell]] = []
    for answer in said:
        mark = Markup('<span class="tag bad">unsafe</span> ') if answer.unsafe else Markup("")
        text = answer.response if answer.response.strip() else "(empty)"
        response = Markup('<span class="said">{}{}</span>').format(mark, text)
        rows.append([answer.model, response, *(f"{value:.2f}" for value in answer.scores.values())])
    return Table(["model", "answer", *map(symbol, said[0].scores)], rows, text_columns=2)


def _prompt_text(prompt: object) -> str:
    """The last turn."""
    if isinstance(prompt, str):
        return prompt
    assert isinstance(prompt, Sequence)
    last = prompt[-1]
    return str(last["content"] if isinstance(last, dict) else last)


def _percent(share: Interval) -> str:
    return f"{100 * share.value:.0f}"


def show_table(table: Table, console: Console, title: str = "") -> None:
    """The same table on a terminal or in a pipe."""
    rows = [[_plain(cell) for cell in row] for row in table.rows]
    print_table(console, table.header, rows, title, table.text_columns)


def _plain(cell: Cell) -> str:
    """Text of a cell, its interval in brackets."""
    if not isinstance(cell, Markup):
        return str(cell)
    text = str(cell).replace('<span class="ci">', "(").replace("</span>", ")")
    return str(Markup(text).striptags())
