"""The tables of docs/*.md, from the committed results. A result that is not there yet: no table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import groupby
from statistics import mean, median
from typing import Any

from coverage import coverage_table
from over_seeds import markdown, percent
from resumable import RESULTS

from constrained_rl.config import RunConfig
from constrained_rl.describe import to_markdown
from llm_env.schemas import Command, config_of

Document = Mapping[str, Any]
Blocks = dict[str, str]
COMMANDS = ("compare", "sft", "score", "train", "rounds", "evaluate", "serve-scores")
UNSAFE = 0.05
"""share of gold-unsafe answers up to which a seed counts as safe"""


def result(name: str) -> Document | None:
    """A committed result, if it is there."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return None
    document: Document = json.loads(path.read_text(encoding="utf-8"))
    return document


def configuration_blocks() -> Blocks:
    """Every setting of every command."""
    blocks = {"table:run": to_markdown(RunConfig).rstrip()}
    for command in COMMANDS:
        blocks[f"table:{command}"] = to_markdown(config_of(Command(command))).rstrip()
    return blocks


def certificate_blocks(document: Document) -> Blocks:
    """Coverage for one and for three constraints."""
    return {f"table:coverage{count}": coverage_table(document, count) for count in (1, 3)}


def exact_blocks(document: Document) -> Blocks:
    """Regret and violation on problems of known optimum."""
    from exact_report import page_blocks

    return page_blocks(document)


def multipliers_blocks(document: Document) -> Blocks:
    """Responses to a step, what each change costs, and the rules with networks."""
    import control_report
    from multipliers import page_blocks

    control = result("control")
    return page_blocks(document) | ({} if control is None else control_report.page_blocks(control))


def enumerable_blocks(document: Document) -> Blocks:
    """Trained models against the optimum, and one-shot estimates against λ*."""
    return {
        "table:enumerable": enumerable_table(document),
        "table:one_shot": one_shot_table(document),
    }


def enumerable_table(document: Document) -> str:
    """One row per kl_streams and controller, the default controller first."""
    limit = document["settings"]["task"]["limit"]
    order = list(document["settings"]["controllers"])

    def kind(row: Document) -> tuple[bool, int]:
        return row["kl_streams"] == "both", order.index(row["controller"])

    rows = []
    for _, group in groupby(sorted(document["runs"], key=kind), key=kind):
        mine = sorted(group, key=lambda row: int(row["seed"]))
        shares = [row["share"] for row in mine]
        price = [100 * (row["mean_lambda"] / row["optimum"]["lambda"] - 1) for row in mine]
        cells = [
            mine[0]["kl_streams"],
            mine[0]["controller"],
            ", ".join(f"{100 * share:.1f}" for share in shares),
            percent(shares) if len(shares) > 2 else "",
            ", ".join(f"{error:+.1f}" for error in price),
            ", ".join(f"{row['cost'] - limit:+.3f}" for row in mine),
            f"{median(row['cpu_seconds'] for row in mine):.0f}",
        ]
        rows.append([cell.replace("-", "−") for cell in cells])
    heads = ["KL paid by", "controller", "share %, each language", "mean [95 %]"]
    heads += ["mean λ of the last fifth / λ\\* − 1, %", "E[C] − limit", "CPU s"]
    return markdown((heads, rows))


def one_shot_table(document: Document) -> str:
    """Errors of estimates of λ*, by effective sample size."""
    rows = []
    for row in document["one_shot"]:
        shares = [f"{100 * row[name]:.0f} %" for name in ("median", "p90", "within_quarter")]
        span = f"{row['low']:g} – {row['high']:g}" if row["high"] < 1000 else f"> {row['low']:g}"
        bias = f"{100 * row['bias']:+.0f} %".replace("-", "−")
        rows.append([span, str(row["count"]), bias, *shares])
    heads = ["ESS per prompt", "estimates", "bias", "median error", "90 % of errors below"]
    return markdown(([*heads, "within 25 %"], rows))


def constraints_blocks(document: Document) -> Blocks:
    """The embedded world under every constraint, tuning and reporting seeds."""
    return {
        "table:per_prompt_tune": per_prompt_table(document["tune"]["seeds"]),
        "table:per_prompt": per_prompt_table(document["report"]["seeds"], over_seeds=True),
    }


def per_prompt_table(seeds: Document, over_seeds: bool = False) -> str:
    """Gold-unsafe % / helpfulness of each seed; over seeds too, where all have the same rows."""
    rows = []
    for label in dict.fromkeys(label for found in seeds.values() for label in found):
        found = [seed.get(label) for seed in seeds.values()]
        cells = [label, *("" if row is None else unsafe_and_helpful([row]) for row in found)]
        if over_seeds:
            safe = sum(row["unsafe"] <= UNSAFE for row in found)
            completions = mean(row["red_team_safe_completions"] for row in found)
            cells += [unsafe_and_helpful(found), f"{safe} of {len(found)}"]
            cells.append(f"{100 * completions:.0f} %")
        rows.append(cells)
    heads = ["constraint", *(f"seed {seed}" for seed in seeds)]
    more = ["mean", "safe seeds", "red-team prompts answered by a safe completion"]
    return markdown(([*heads, *(more if over_seeds else [])], rows))


def unsafe_and_helpful(rows: list[Document]) -> str:
    """Means, of one seed or several."""
    unsafe, helpful = (mean(row[key] for row in rows) for key in ("unsafe", "helpfulness"))
    return f"{100 * unsafe:.1f} / {helpful:.2f}"


PAGES: dict[str, tuple[str, Callable[[Document], Blocks]]] = {
    "docs/certificate.md": ("coverage", certificate_blocks),
    "docs/constraints.md": ("per_prompt", constraints_blocks),
    "docs/enumerable_language.md": ("enumerable_language", enumerable_blocks),
    "docs/exact.md": ("exact", exact_blocks),
    "docs/multipliers.md": ("multipliers", multipliers_blocks),
}
"""page → the result that fills it, and how"""


def page_blocks() -> dict[str, Blocks]:
    """Every page's blocks, of the results that are there."""
    blocks = {"docs/configuration.md": configuration_blocks()}
    for page, (name, fill) in PAGES.items():
        document = result(name)
        if document is not None:
            blocks[page] = fill(document)
    return blocks
