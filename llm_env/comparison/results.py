"""From a comparison's folder to results.json and to a table on the terminal.

Nothing is generated or scored here: everything is read from what the stages have written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from constrained_rl.checkpoint import write_text
from constrained_rl.errors import InputError
from constrained_rl.logging import read_metrics
from constrained_rl.multiplier_config import FixedConfig
from constrained_rl.sections import limits_in
from constrained_rl.statistics import Interval
from llm_env.comparison.config import CompareConfig
from llm_env.comparison.evaluate import Record, read_records
from llm_env.comparison.methods import Method, methods, scores, sweep, variants
from llm_env.comparison.schedule import load_config, tasks
from llm_env.comparison.summaries import (
    MODES,
    RECOMMENDED,
    MethodResult,
    ModeResult,
    Results,
    ScoreModelResult,
    summarize_mode,
)
from llm_env.stages import read_seconds, results_json

ANOTHER_VERSION = (
    "the folder was made by another version, or a file was removed; start again with "
    "crl llm compare and a new --out"
)
MEASURED = ("score", "labels", "gold_ranking", "gold_sign", "gold_auc")
"""what a score model's stage has measured"""


def summarize(folder: Path) -> Results:
    """Summarize a comparison and write `results.json` beside it."""
    config = load_config(folder)
    start = read_records(folder / "runs/sft/evaluation.jsonl")

    def summarized(runs: Sequence[Method]) -> tuple[MethodResult, ...]:
        records = read_runs(folder, runs)
        return tuple(
            summarize_method(run, records[run.name], start, folder)
            for run in runs
            if run.name in records
        )

    main = summarized(methods(config))
    by_limit = [*(m for m in main if m.name == RECOMMENDED), *summarized(sweep(config))]
    results = Results(
        seed=config.seed,
        methods=main,
        variants=summarized(variants(config)),
        sweep=tuple(sorted(by_limit, key=lambda m: m.limit or 0.0)),
        score_models={name: read_score_model(folder, name) for name in scores(config)},
        agreement=read_shares(folder / "preferences/agreement.json"),
        approval=read_shares(folder / "preferences/approval.json"),
        seconds=read_seconds(folder, [task.folder for task in tasks(config)]),
    )
    write_text(folder / "results.json", results_json(asdict(results)) + "\n")
    return results


def read_comparison(folder: Path, config: CompareConfig) -> dict[str, list[Record]]:
    """Records of SFT and of every method that has finished, by name."""
    start = {"sft": read_records(folder / "runs/sft/evaluation.jsonl")}
    return start | read_runs(folder, methods(config))


def read_runs(folder: Path, runs: Sequence[Method]) -> dict[str, list[Record]]:
    """Records of those runs that have finished, by name."""
    paths = {run.name: folder / "runs" / run.name / "evaluation.jsonl" for run in runs}
    return {name: read_records(path) for name, path in paths.items() if path.is_file()}


def read_shares(path: Path) -> dict[str, float]:
    """What a stage has counted, by name."""
    try:
        found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {ANOTHER_VERSION}") from None
    return found


def summarize_method(
    method: Method, records: Sequence[Record], start: Sequence[Record], folder: Path
) -> MethodResult:
    """One method's records and the last line of its training."""
    rows = read_metrics(folder / "runs" / method.name / "metrics.jsonl")
    last = rows[-1] if rows else {}
    compared = None if method.family == "start" else start
    greedy, sampled = (summarize_mode(records, mode, compared) for mode in MODES)
    return MethodResult(
        name=method.name,
        label=method.label.replace("≤ -", "≤ −"),
        family=method.family,
        greedy=greedy,
        sampled=sampled,
        limit=limit_of(method),
        lam=last.get("lambda/cost"),
        kl=last.get("kl/reference"),
    )


def limit_of(method: Method) -> float | None:
    """What a run is held to; None where nothing is."""
    if method.align is None or isinstance(method.align.multiplier, FixedConfig):
        return None
    return limits_in(method.align.limit)[0]


def read_score_model(folder: Path, name: str) -> ScoreModelResult:
    """Accuracies that a score model's stage has measured."""
    path = folder / f"{name}_model/accuracy.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    missing = [key for key in MEASURED if key not in found]
    if missing:
        raise InputError(f"{path}: holds no {', '.join(missing)}; {ANOTHER_VERSION}")
    return ScoreModelResult(
        pairs=len(found["score"]) // 2,
        ranking=found["labels"]["ranking"],
        sign=found["labels"]["sign"],
        gold_ranking=found["gold_ranking"],
        gold_sign=found["gold_sign"],
        gold_auc=found["gold_auc"],
    )


def print_summary(results: Results, console: Console) -> None:
    """The main table on a terminal, within 100 columns."""
    table = Table(title="sampled at temperature 1", title_justify="left", pad_edge=False)
    table.add_column("method", max_width=40)
    for name in ("unsafe\ngold %", "red-team\ngold %", "unsafe\nC > 0 %", "helpful\ngold"):
        table.add_column(name, justify="right")
    for name in ("benign\nrefused %", "λ or ν"):
        table.add_column(name, justify="right")
    for k, method in enumerate(results.methods):
        following = results.methods[k + 1 : k + 2]
        overall = method.sampled.overall
        table.add_row(
            method.label,
            percent(overall.unsafe),
            kind_share(method.sampled, "red_team", "unsafe"),
            percent(overall.model_unsafe),
            number(overall.helpfulness.value),
            kind_share(method.sampled, "benign", "refusal"),
            weight(method),
            end_section=any(m.family != method.family for m in following),
        )
    console.print(table)


def percent(share: Interval) -> str:
    """A share in percent with one digit."""
    return f"{100 * share.value:.1f}"


def kind_share(mode: ModeResult, kind: str, quantity: str) -> str:
    """A share of one class in percent, or a dash where the class is absent."""
    if kind not in mode.kinds:
        return "–"
    summary = mode.kinds[kind]
    return percent(summary.unsafe if quantity == "unsafe" else summary.refusal)


def number(value: float | None) -> str:
    """Two digits, or a dash for what a method does not have."""
    return "–" if value is None else f"{value:.2f}"


def weight(method: MethodResult) -> str:
    """Last λ, or the static weight as it was given."""
    if method.lam is None:
        return "–"
    return f"{method.lam:g}" if method.family == "static" else f"{method.lam:.2f}"
