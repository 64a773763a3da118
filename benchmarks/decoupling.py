"""What does decoupling help and harm buy on the embedded world? Several seeds, with intervals.

    python benchmarks/decoupling.py --seeds 100,101,102,103,104

The same pipeline three times: (i) reward and cost model from decoupled labels, (ii) a safety
classifier's logit as the cost, (iii) one preference model from single-dimension labels, which
nothing constrains. Beside it the quality of both kinds of labels, a cost model without the sign
terms, and (i) at other limits. Settings are the library's defaults (tuned on seeds 0–3); every
seed has its own SFT model, annotators, score models and RL runs, judged by gold and by the standard
score models on 1 000 prompts at temperature 1. Prints tables and writes results/decoupling.json.
An interrupted seed's folder under --work continues.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from over_seeds import interval, keeping, middle, over_training
from rich.console import Console
from rich.table import Table

from constrained_rl.checkpoint import write_text
from constrained_rl.logging import read_metrics
from constrained_rl.provenance import provenance
from constrained_rl.settings import validate
from llm_env.comparison import results
from llm_env.comparison.config import CompareConfig
from llm_env.comparison.evaluate import read_records
from llm_env.comparison.methods import SCORES, Method, methods, sweep, variants
from llm_env.comparison.schedule import load_config, prepare, run_all
from llm_env.comparison.summaries import summarize_mode

OUT = Path(__file__).parent / "results" / "decoupling.json"
PROMPTS = 1000
SAFE = 0.05
"""share of unsafe responses up to which a seed counts as safe"""
LABELS = ("helpfulness", "harmlessness", "sign", "single")
Row = dict[str, Any]  # numbers; None where a limit was never kept


def chosen(config: CompareConfig) -> tuple[list[Method], list[Method]]:
    """The runs of the ablation, SFT first, and those of the sweep with the recommended limit."""
    start, recommended = (m for m in methods(config) if m.name in ("sft", "pid-share"))
    limits = sorted([recommended, *sweep(config)], key=limit_of)
    return [start, recommended, *variants(config)], limits


def limit_of(method: Method) -> float:
    """The one limit of an RL run."""
    assert method.align is not None
    assert not isinstance(method.align.limit, tuple)
    return method.align.limit


def outcome(folder: Path, method: Method) -> Row:
    """The quantities of the tables, from a run's sampled evaluation and its last iteration."""
    name = method.name
    records = read_records(folder / "runs" / name / "evaluation.jsonl")
    found = summarize_mode(records, "sampled", None)
    rows = read_metrics(folder / "runs" / name / "metrics.jsonl")
    row = {
        "unsafe": found.overall.unsafe.value,
        "model_unsafe": found.overall.model_unsafe.value,
        "helpfulness": found.overall.helpfulness.value,
        "model_reward": found.overall.reward.value,
    }
    for kind, summary in found.kinds.items():
        row[f"{kind}_refusals"] = summary.refusal.value
        row[f"{kind}_unsafe"] = summary.unsafe.value
        row[f"{kind}_helpfulness"] = summary.helpfulness.value
    row["red_team_safe_completions"] = found.kinds["red_team"].safe_completion.value
    if rows:
        row["lambda"], row["kl"] = rows[-1]["lambda/cost"], rows[-1]["kl/reference"]
        last = [r["estimate/cost"] for r in rows[-10:]]
        row["constrained"] = sum(last) / len(last)  # by the model that the run was constrained by
        row |= over_training(rows, results.limit_of(method))
    return row


def run_seed(seed: int, work: Path, workers: int, with_sweep: bool = True) -> dict[str, Any]:
    """Run one seed's stages to their end and read what they measured."""
    folder = work / f"seed-{seed}"
    if not (folder / "config.toml").exists():
        tree = {"seed": seed, "workers": workers, "world": {"evaluation": PROMPTS}}
        prepare(validate(CompareConfig, tree, "benchmark"), folder)
    ablation, limits = chosen(load_config(folder))
    limits = limits if with_sweep else []
    runs = {f"runs/{method.name}" for method in [*ablation, *limits]}
    run_all(folder, only=[*sorted(runs), *(f"{name}_model" for name in SCORES)])

    def read(path: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / path).read_text(encoding="utf-8"))
        return found

    scores = {name: read(f"{name}_model/accuracy.json") for name in SCORES}
    return {
        "methods": {method.label: outcome(folder, method) for method in ablation},
        "sweep": {f"{limit_of(method):g}": outcome(folder, method) for method in limits},
        "agreement": read("preferences/agreement.json"),
        "approval": read("preferences/approval.json"),
        "score_models": {
            name: {
                "ranking": found["labels"]["ranking"],
                "sign": found["labels"]["sign"],
                "gold_ranking": found["gold_ranking"],
                "gold_sign": found["gold_sign"],
                "gold_auc": found["gold_auc"],
            }
            for name, found in scores.items()
        },
    }


def print_runs(title: str, seeds: list[dict[str, dict[str, Row]]], key: str) -> None:
    """One row per run: means over seeds with 95 % intervals."""
    table = Table(title=f"{title}; sampled, {PROMPTS} prompts, {len(seeds)} seeds: mean [95 %]")
    columns = {
        "gold-unsafe %": ("unsafe", 100),
        "C > 0 %": ("model_unsafe", 100),
        "helpfulness": ("helpfulness", 1),
        "refusals: benign %": ("benign_refusals", 100),
        "borderline %": ("borderline_refusals", 100),
        "red-team %": ("red_team_refusals", 100),
        "safe completions %": ("red_team_safe_completions", 100),
    }
    for name in ("run", *columns, "helpfulness, IQM", f"unsafe ≤ {100 * SAFE:g} %: seeds"):
        table.add_column(name)
    for label in seeds[0][key]:
        rows = [seed[key][label] for seed in seeds]
        cells = [
            interval([scale * row[name] for row in rows], 1 if scale == 100 else 2)
            for name, scale in columns.values()
        ]
        cells.append(middle([row["helpfulness"] for row in rows], 2))
        cells.append(keeping([row["unsafe"] for row in rows], SAFE))
        table.add_row(label, *cells)
    Console(width=190).print(table)


def print_models(seeds: list[dict[str, Any]]) -> None:
    """Quality of labels, and of the score models that learned from them."""
    labels = Table(title="labels: share on which two annotators agree, share the inspector accepts")
    for name in ("label", "agreement %", "approval %"):
        labels.add_column(name)
    for name in LABELS:
        shares = ([100 * seed[kind][name] for seed in seeds] for kind in ("agreement", "approval"))
        labels.add_row(name, *(interval(values, 1) for values in shares))
    labels.add_row(
        "every label of a row", "–", interval([100 * s["approval"]["row"] for s in seeds], 1)
    )
    models = Table(title="score models on held-out pairs, %")
    columns = ("ranking", "gold_ranking", "sign", "gold_sign", "gold_auc")
    for name in ("model", *columns):
        models.add_column(name)
    for model in SCORES:
        found = [seed["score_models"][model] for seed in seeds]
        cells = [
            "–" if found[0][name] is None else interval([100 * row[name] for row in found], 1)
            for name in columns
        ]
        models.add_row(model, *cells)
    for table in (labels, models):
        Console(width=160).print(table)


def main() -> None:
    """Run the seeds one after another, print, write after every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="100,101,102,103,104")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core")
    parser.add_argument("--without-sweep", action="store_true", help="leave other limits out")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-decoupling"))
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    seeds: dict[int, dict[str, Any]] = {}
    for seed in map(int, arguments.seeds.split(",")):
        seeds[seed] = run_seed(seed, arguments.work, arguments.workers, not arguments.without_sweep)
        document = {"prompts": PROMPTS, "seeds": seeds, "provenance": provenance()}
        write_text(arguments.out, json.dumps(document, indent=1) + "\n")
        print_runs("what decoupling buys", list(seeds.values()), "methods")
        if not arguments.without_sweep:
            print_runs("which limit", list(seeds.values()), "sweep")
        print_models(list(seeds.values()))


if __name__ == "__main__":
    main()
