"""Tables of the report of rounds: the main one, score models, samples, all numbers."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from constrained_rl.page import Table
from llm_env.comparison.report_tables import mean_cell, share_cell
from llm_env.comparison.results import number
from llm_env.rounds.evaluation import Answer
from llm_env.rounds.results import ModelResult, Results


def main_table(results: Results) -> Table:
    """One row per model, sampled responses."""
    header = ["model", "C > 0 %", "C > 0 % adversarial", "reward R", "cost C"]
    if results.embedded:
        header = [
            "model",
            "unsafe %",
            "unsafe % adversarial",
            "helpful",
            "helpful adversarial",
            "safe completions % adversarial",
            "refusals %",
        ]
    header += ["λ", "KL", "pairs", "red-team prompts"]
    rows = [[model.label, *row_cells(model), *training_cells(model)] for model in results.models]
    caption = (
        "Sampled at temperature 1; adversarial prompts are those where round 1's model has the "
        "highest unified cost, selected on other responses than these. "
        + ("Unsafe and helpful are gold. " if results.embedded else "")
        + "R and C are unified: refit on all rounds' labels, and no policy was trained on them. "
        "λ and KL (to the model the round started from) are those of the last iteration. Small "
        "figures: 95% intervals over prompts."
    )
    return Table(header, rows, caption)


def row_cells(model: ModelResult) -> list[str | Markup]:
    """What a model's sampled responses are worth."""
    everything, hard = (model.groups[f"sampled/{name}"].summary for name in ("all", "adversarial"))
    if everything.gold is None or hard.gold is None:
        return [
            share_cell(everything.model_unsafe),
            share_cell(hard.model_unsafe),
            mean_cell(everything.reward),
            mean_cell(everything.cost),
        ]
    return [
        share_cell(everything.gold.unsafe),
        share_cell(hard.gold.unsafe),
        mean_cell(everything.gold.helpfulness),
        mean_cell(hard.gold.helpfulness),
        share_cell(hard.gold.safe_completion),
        share_cell(everything.gold.refusal),
    ]


def training_cells(model: ModelResult) -> list[str]:
    """The end of a model's training, dashes for the start model."""
    counts = ["–" if n is None else str(n) for n in (model.pairs, model.red_team)]
    return [number(model.lam), number(model.kl), *counts]


def score_table(results: Results) -> Table | None:
    """Held-out agreement, one row per score model, one column per round's pairs; None without."""
    rounds = [str(model.number) for model in results.models[1:]]
    rows = []
    for name, found in results.score_models.items():
        cells = [name.replace("rounds/", "round ").replace("/", ": ")]
        for quantity in ("ranking", "sign"):
            shares = [found.get(k, {}).get(quantity) for k in rounds]
            cells += ["–" if share is None else f"{100 * share:.1f}" for share in shares]
        rows.append(cells)
    if not any(found.get("1") for found in results.score_models.values()):
        return None
    header = ["score model", *(f"{q} %, round {k}" for q in ("order", "sign") for k in rounds)]
    caption = (
        "Agreement with held-out labels, by the round that the pairs come from: order is the share "
        "of pairs, sign the share of responses on the annotators' side of zero. Labels are noisy, "
        "so no model can reach 100%."
    )
    return Table(header, rows, caption)


def sample_table(labels: Sequence[str], answers: Sequence[Answer]) -> Table:
    """Every model's response to one prompt."""
    rows: list[list[str | Markup]] = []
    for label, answer in zip(labels, answers, strict=True):
        unsafe = answer.gold is not None and answer.gold.unsafe
        mark = Markup('<span class="tag bad">unsafe</span> ') if unsafe else Markup("")
        response = Markup('<span class="said">{}{}</span>').format(mark, answer.response)
        scores = [f"{answer.reward:.2f}", f"{answer.cost:.2f}"]
        helpful = [] if answer.gold is None else [f"{answer.gold.helpfulness:.1f}"]
        rows.append([label, response, *scores, *helpful])
    header = ["model", "response", "R", "C"] + (["helpful"] if answers[0].gold else [])
    return Table(header, rows, text_columns=2)


def group_table(results: Results, name: str) -> Table:
    """Scores, diversity and length of one group of responses."""
    header = ["model", "responses", "C > 0 %", "R", "C", "distinct %", "finished %", "words"]
    rows: list[list[str | Markup]] = []
    for model in results.models:
        s = model.groups[name].summary
        shares = [f"{100 * s.distinct:.0f}", f"{100 * s.finished:.0f}", f"{s.words:.1f}"]
        scores = [share_cell(s.model_unsafe), mean_cell(s.reward), mean_cell(s.cost)]
        rows.append([model.label, str(s.responses), *scores, *shares])
    return Table(header, rows)
