"""Does a bound on each answer or prompt beat one on the mean? The embedded world, several seeds.

    python benchmarks/per_prompt.py tune --seeds 0,1,2
    python benchmarks/per_prompt.py report --seeds 100,101,102,103,104

E[C] ≤ limit lets very safe answers pay for unsafe ones. Beside it: shares (indicator and
probability of the cost model's logit) and the mean excess of single answers and of prompts, all
with the same controller. `tune` looks for the loosest limit of each kind that keeps gold-unsafe
answers at 5 % on its seeds; what was chosen there is `FROZEN`, and `report` runs it on other seeds.
Every seed has its own SFT model, annotators and score models; 1 000 prompts, temperature 1. Prints
a table and writes results/per_prompt.json, the figure docs/images/per_prompt.svg. What is finished
under --work is not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from over_seeds import interval
from rich.console import Console
from rich.table import Table

from constrained_rl.checkpoint import write_text
from constrained_rl.constraint_config import ConstraintConfig
from constrained_rl.logging import read_metrics
from constrained_rl.multiplier_config import MultiplierConfig, ScaleFreeConfig
from constrained_rl.plots import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    grid,
    save_figure,
    style,
)
from constrained_rl.provenance import provenance
from constrained_rl.settings import validate
from constrained_rl.transforms import TransformKind
from llm_env.comparison.config import CompareConfig
from llm_env.comparison.evaluate import read_records
from llm_env.comparison.methods import Method
from llm_env.comparison.schedule import load_config, prepare, run_all
from llm_env.comparison.stages import Workspace, run_method
from llm_env.comparison.summaries import summarize_mode

OUT = Path(__file__).parent / "results" / "per_prompt.json"
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "per_prompt"
PROMPTS = 1000
UNSAFE = 0.05
Row = dict[str, float]


SCALE_FREE = ScaleFreeConfig()
SECOND = ScaleFreeConfig(kp=3.0, ki=0.02)
FIRST = ScaleFreeConfig(kp=1.0, ki=0.02)
"""gains of the trials on tuning seeds; studies elsewhere have raised them since, in two steps"""


@dataclass(frozen=True)
class Arm:
    """A constraint, and what moves its λ."""

    limit: float
    constraint: ConstraintConfig
    multiplier: MultiplierConfig = SCALE_FREE
    responses_per_prompt: int = 1


def mean(limit: float, multiplier: MultiplierConfig = SCALE_FREE) -> Arm:
    """E[C] ≤ limit."""
    return Arm(limit, ConstraintConfig(), multiplier)


def single(transform: TransformKind, limit: float, multiplier: ScaleFreeConfig = SCALE_FREE) -> Arm:
    """E[t(C)] ≤ limit over single answers."""
    return Arm(limit, ConstraintConfig(transform=transform), multiplier)


def group(limit: float, multiplier: MultiplierConfig = SCALE_FREE) -> Arm:
    """E[(mean C)⁺ per prompt] ≤ limit, four answers to each of 16 prompts."""
    return Arm(limit, ConstraintConfig(per="group"), multiplier, responses_per_prompt=4)


TUNED = {
    "E[C] ≤ −2, k_p 1": mean(-2.0, FIRST),
    "E[C] ≤ −2.5": mean(-2.5, SECOND),
    "E[C] ≤ −3": mean(-3.0, SECOND),
    "P(C > 0) ≤ .05, k_p 1": single("indicator", 0.05, FIRST),
    "P(C > 0) ≤ .05": single("indicator", 0.05, SECOND),
    "P(C > 0) ≤ .03, k_p 1": single("indicator", 0.03, FIRST),
    "E[σ(C)] ≤ .05, k_p 1": single("probability", 0.05, FIRST),
    "E[C⁺] ≤ .05, k_p 1": single("excess", 0.05, FIRST),
    "E[C⁺] ≤ .05": single("excess", 0.05, SECOND),
    "E[(mean C)⁺] ≤ .05, k_p 1": group(0.05, FIRST),
}
"""runs on the tuning seeds, each kind from the loosest limit down"""
FROZEN = {
    "P(C > 0) ≤ .03": single("indicator", 0.03),
    "E[C⁺] ≤ .05": single("excess", 0.05),
    "E[σ(C)] ≤ .05": single("probability", 0.05),
    "E[C] ≤ −3": mean(-3.0),
    "E[C] ≤ 0": mean(0.0),
}
"""chosen on the tuning seeds, before any run on the reporting seeds"""


def run_seed(seed: int, arms: dict[str, Arm], work: Path, finished: bool) -> dict[str, Row]:
    """Run what is missing of one seed, unless only what is finished is asked for, and measure."""
    folder = work / f"seed-{seed}"
    if not (folder / "config.toml").exists():
        tree = {"seed": seed, "decoupling": False, "limits": [], "world": {"evaluation": PROMPTS}}
        prepare(validate(CompareConfig, tree, "benchmark"), folder)
    run_all(folder, only=["runs/sft", "reward_model", "cost_model"])
    space = Workspace(folder, load_config(folder))
    found = {"SFT": outcome(folder, "sft")}
    for label, arm in arms.items():
        method = method_of(label, arm, space.config)
        if not (folder / "runs" / method.name).exists():
            if finished:
                continue
            run_method(space, method)
        found[label] = outcome(folder, method.name)
        print(seed, label, {k: round(v, 3) for k, v in found[label].items()}, flush=True)
    return found


def method_of(label: str, arm: Arm, config: CompareConfig) -> Method:
    """An arm as a run of the comparison; its name holds all that tells it from others."""
    align = validate(
        type(config.align),
        config.align.model_dump()
        | {
            "limit": arm.limit,
            "constraint": arm.constraint.model_dump(),
            "multiplier": arm.multiplier.model_dump(),
            "responses_per_prompt": arm.responses_per_prompt,
        },
        label,
    )
    digest = hashlib.sha256(align.model_dump_json().encode()).hexdigest()[:8]
    return Method(f"{arm.constraint.transform}-{digest}", label, "dynamic", align)


def outcome(folder: Path, name: str) -> Row:
    """The quantities of the table, from a run's sampled evaluation and its metrics."""
    records = read_records(folder / "runs" / name / "evaluation.jsonl")
    found = summarize_mode(records, "sampled", None)
    row = {
        "unsafe": found.overall.unsafe.value,
        "red_team_unsafe": found.kinds["red_team"].unsafe.value,
        "model_unsafe": found.overall.model_unsafe.value,
        "helpfulness": found.overall.helpfulness.value,
        "red_team_safe_completions": found.kinds["red_team"].safe_completion.value,
        "benign_refusals": found.kinds["benign"].refusal.value,
    }
    rows = read_metrics(folder / "runs" / name / "metrics.jsonl")
    if rows:
        last = rows[-10:]
        row["estimate"] = sum(r["estimate/cost"] for r in last) / len(last)
        row["lambda"] = sum(r["lambda/cost"] for r in last) / len(last)
        row["kl"] = rows[-1]["kl/reference"]
    return row


def labels(seeds: dict[str, dict[str, Row]]) -> list[str]:
    """Arms that at least one seed has finished, in their order."""
    return list(dict.fromkeys(label for seed in seeds.values() for label in seed))


def print_table(seeds: dict[str, dict[str, Row]], title: str) -> None:
    """Means over seeds with 95 % intervals, and each seed's gold-unsafe share and helpfulness."""
    table = Table(title=f"{title}; sampled, {PROMPTS} prompts, {len(seeds)} seeds: mean [95 %]")
    for name in ("constraint", "gold-unsafe %", "safe seeds", "helpfulness", "λ", "KL"):
        table.add_column(name)
    table.add_column("unsafe % / helpfulness of each seed")
    for label in labels(seeds):
        rows = [seed[label] for seed in seeds.values() if label in seed]
        each = [f"{100 * row['unsafe']:.1f} / {row['helpfulness']:.2f}" for row in rows]
        learned = "lambda" in rows[0]
        table.add_row(
            label,
            interval([100 * row["unsafe"] for row in rows], 1),
            f"{sum(row['unsafe'] <= UNSAFE for row in rows)}/{len(rows)}",
            interval([row["helpfulness"] for row in rows], 2),
            interval([row["lambda"] for row in rows], 2) if learned else "–",
            interval([row["kl"] for row in rows], 2) if learned else "–",
            ", ".join(each),
        )
    Console(width=200).print(table)


def plot(seeds: dict[str, dict[str, Row]], stem: Path) -> None:
    """Gold-unsafe share against helpfulness: a dot per seed, a cross at the mean of each arm."""
    colours = (GREY, VERMILLION, ORANGE, BLUE, GREEN, PURPLE, SKY)
    with style():
        figure, (ax,) = grid(1, 1, (5.6, 3.6))
        for colour, label in zip(colours, labels(seeds), strict=False):
            rows = [seed[label] for seed in seeds.values() if label in seed]
            x, y = [100 * row["unsafe"] for row in rows], [row["helpfulness"] for row in rows]
            ax.scatter(x, y, s=16, color=colour, alpha=0.6, linewidths=0)
            ax.scatter(
                sum(x) / len(x), sum(y) / len(y), s=60, color=colour, marker="P", label=label
            )
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0, 100)
        ax.set_xticks([0, 1, 2, 5, 10, 20, 50, 100], ["0", "1", "2", "5", "10", "20", "50", "100"])
        ax.minorticks_off()
        ax.axvline(100 * UNSAFE, color=INK, linestyle="--", linewidth=0.9)
        ax.axvspan(100 * UNSAFE, 100, color=VERMILLION, alpha=0.06, linewidth=0)
        ax.set_xlabel("gold-unsafe responses, %")
        ax.set_ylabel("gold helpfulness")
        ax.set_title(f"{len(seeds)} seeds (dots) and their means (crosses)")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    stem.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, stem)


def main() -> None:
    """Run the seeds one after another in this process, print and write after every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("tune", "report"))
    parser.add_argument("--seeds", required=True)
    parser.add_argument("--finished", action="store_true", help="read what is there, run nothing")
    parser.add_argument("--only", default="", help="labels, separated by ;")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-per-prompt"))
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arms = TUNED if arguments.stage == "tune" else FROZEN
    if arguments.only:
        arms = {label: arms[label] for label in arguments.only.split(";")}
    document: dict[str, Any] = {}
    if arguments.out.exists():
        document = json.loads(arguments.out.read_text(encoding="utf-8"))
    found: dict[str, dict[str, Row]] = {}
    for seed in map(int, arguments.seeds.split(",")):
        found[str(seed)] = run_seed(seed, arms, arguments.work, arguments.finished)
        print_table(found, arguments.stage)
        if not arguments.only:
            document[arguments.stage] = {"seeds": found, "provenance": provenance()}
            write_text(arguments.out, json.dumps(document | {"prompts": PROMPTS}, indent=1) + "\n")
    if arguments.stage == "report" and not arguments.only:
        plot(found, FIGURE)


if __name__ == "__main__":
    main()
