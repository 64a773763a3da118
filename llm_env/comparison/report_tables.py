"""Tables of a comparison: the main one, on the page and on a terminal; all numbers; samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup

from constrained_rl.page import Block, Fold, Table
from constrained_rl.statistics import Interval
from llm_env.comparison.evaluate import Record
from llm_env.comparison.plots_detail import KIND_NAMES
from llm_env.comparison.results import kind_share, number, percent, weight
from llm_env.comparison.summaries import KINDS, MODES, Results

SAMPLES = 2
"""prompts per class in the samples"""

COLUMNS = (
    "unsafe % (gold)",
    "red‑team unsafe %",
    "C > 0 %",
    "helpful (gold)",
    "gain over SFT",
    "benign refused %",
    "model R",
    "model C",
    "λ or ν",
    "KL",
)


def main_table(results: Results) -> Table:
    """One row per method, sampled: gold, models, λ."""
    rows = []
    for method in results.methods:
        mode, overall = method.sampled, method.sampled.overall
        rows.append(
            [
                method.label,
                share_cell(overall.unsafe),
                kind_share(mode, "red_team", "unsafe"),
                percent(overall.model_unsafe),
                mean_cell(overall.helpfulness),
                mean_cell(mode.gain),
                kind_share(mode, "benign", "refusal"),
                number(overall.reward.value),
                number(overall.cost.value),
                weight(method),
                number(method.kl),
            ]
        )
    caption = (
        "Sampled at temperature 1. Gold is the world's parser; R and C are the score models; KL "
        "to SFT in nats per response. Small figures: 95% intervals over prompts (Wilson, Student "
        "t; the gain is paired by prompt), which say nothing about other training seeds."
    )
    families = [method.family for method in results.methods]
    pairs = enumerate(pairwise(families))
    rules = frozenset(k for k, (family, following) in pairs if family != following)
    return Table(["method", *COLUMNS], rows, caption, rules=rules)


def share_cell(share: Interval) -> Markup:
    """A share in percent with the ends of its interval."""
    low, value, high = (f"{100 * x:.1f}" for x in (share.low, share.value, share.high))
    return Markup('{} <span class="ci">{}–{}</span>').format(value, low, high)


def mean_cell(mean: Interval | None) -> Markup:
    """A mean with half the width of its interval, or a dash; one number has no interval."""
    if mean is None:
        return Markup("–")
    half = mean.high - mean.value
    if not math.isfinite(half):
        return Markup(f"{mean.value:.2f}")
    return Markup('{} <span class="ci">±{}</span>').format(f"{mean.value:.2f}", f"{half:.2f}")


def all_numbers(results: Results) -> list[Block]:
    """Every quantity with its interval, per mode and per class."""
    blocks: list[Block] = []
    for mode in MODES:
        blocks.append(Fold(f"{mode}, all prompts", [overall_table(results, mode == "greedy")]))
        blocks += [
            Fold(f"{mode}, {KIND_NAMES[kind]} prompts", [kind_table(results, mode, kind)])
            for kind in KINDS
        ]
    return blocks


def overall_table(results: Results, greedy: bool) -> Table:
    """All prompts: scores, diversity and length."""
    header = ["method", "unsafe % (gold)", "C > 0 %", "helpfulness (gold)", "gain over SFT"]
    header += ["model R", "model C", "distinct %", "finished %", "words"]
    rows = []
    for method in results.methods:
        mode = method.greedy if greedy else method.sampled
        s = mode.overall
        rows.append(
            [
                method.label,
                share_cell(s.unsafe),
                share_cell(s.model_unsafe),
                mean_cell(s.helpfulness),
                mean_cell(mode.gain),
                mean_cell(s.reward),
                mean_cell(s.cost),
                f"{100 * s.distinct:.0f}",
                f"{100 * s.finished:.0f}",
                f"{s.length:.1f}",
            ]
        )
    return Table(header, rows)


def kind_table(results: Results, mode: str, kind: str) -> Table:
    """One class of prompts."""
    header = ["method", "n", "unsafe % (gold)", "C > 0 %", "refusals %", "safe completions %"]
    rows: list[list[str | Markup]] = []
    for method in results.methods:
        found = (method.greedy if mode == "greedy" else method.sampled).kinds.get(kind)
        if found is not None:
            shares = (found.unsafe, found.model_unsafe, found.refusal, found.safe_completion)
            cells = [share_cell(share) for share in shares]
            helpfulness = mean_cell(found.helpfulness)
            rows.append([method.label, str(found.n), *cells, helpfulness])
    return Table([*header, "helpfulness (gold)"], rows)


MODEL_NAMES = {
    "reward": "reward model",
    "cost": "cost model (ranking + sign)",
    "classifier": "safety classifier (sign only)",
    "ranking": "cost model without sign terms",
    "free": "cost model without sign terms and regularizer",
    "single": "preference model (single labels)",
}
"""what score models are called"""


def score_table(results: Results) -> Table:
    """Accuracies of the score models."""
    rows = []
    for name, found in results.score_models.items():
        shares = (found.ranking, found.gold_ranking, found.sign, found.gold_sign)
        cells = ["–" if share is None else f"{share:.1%}" for share in shares]
        area = "–" if found.gold_auc is None else f"{found.gold_auc:.3f}"
        rows.append([MODEL_NAMES[name], *cells, area])
    header = ["", "pairs ranked as annotators", "pairs ranked as gold"]
    header += ["signs as annotators", "signs as gold", "AUC (gold)"]
    pairs = next(iter(results.score_models.values())).pairs
    return Table(
        header,
        rows,
        f"On {pairs} held-out pairs of SFT responses. Annotators are noisy: agreement with gold "
        "may exceed agreement with them. Gold is helpfulness for the reward model, harm for cost "
        "models, and both weighed equally for a preference model.",
    )


def sample_folds(records: Mapping[str, Sequence[Record]], labels: Mapping[str, str]) -> list[Block]:
    """Greedy responses of all methods to the first prompts of each class."""
    folds: list[Block] = []
    for kind in KINDS:
        prompts = [r.prompt for r in records["sft"] if r.kind == kind and r.mode == "greedy"]
        for k, prompt in enumerate(list(dict.fromkeys(prompts))[:SAMPLES]):
            table = sample_table(records, labels, prompt)
            folds.append(Fold(f"{KIND_NAMES[kind]}: {prompt}", [table], is_open=k == 0))
    return folds


def sample_table(
    records: Mapping[str, Sequence[Record]], labels: Mapping[str, str], prompt: str
) -> Table:
    """Every method's response to one prompt."""
    rows: list[list[str | Markup]] = []
    for name, said in records.items():
        r = next(r for r in said if r.prompt == prompt and r.mode == "greedy")
        mark = Markup('<span class="tag bad">unsafe</span> ') if r.unsafe else Markup("")
        response = Markup('<span class="said">{}{}</span>').format(mark, r.response)
        scores = [f"{r.reward:.2f}", f"{r.cost:.2f}", f"{r.helpfulness:.1f}"]
        rows.append([labels[name], response, *scores])
    return Table(["method", "response", "R", "C", "helpfulness"], rows, text_columns=2)
