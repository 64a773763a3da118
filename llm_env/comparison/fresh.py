"""`crl evaluate` on a comparison: its finished models on prompts that no report has shown.

The prompts are new draws of the world; models, score models and gold are those of the comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from constrained_rl.devices import choose_device
from constrained_rl.errors import InputError
from constrained_rl.statistics import Interval
from llm_env.comparison.evaluate import Record, evaluate
from llm_env.comparison.methods import every_run
from llm_env.comparison.schedule import load_config
from llm_env.comparison.stages import Workspace
from llm_env.comparison.summaries import MODES, summarize_records

SHARES = {"unsafe": "unsafe %", "model_unsafe": "C > 0 %", "refusal": "refused %"}
MEANS = {"helpfulness": "helpful", "reward": "R", "cost": "C"}


def evaluate_comparison(
    folder: Path, home: Path, count: int, seed: int, device: str | None = None
) -> dict[str, Any]:
    """Greedy and sampled responses of the finished methods to `count` prompts drawn by `seed`.

    `folder` is the comparison `home`, or one `runs/<method>` in it.

    Raises:
        InputError: no method has finished, or the folder is that of none.
    """
    from transformers.utils import logging

    config = load_config(home)
    if device is not None:
        config = config.model_copy(update={"device": str(choose_device(device))})
    space = Workspace(home, config)
    runs = [run for run in every_run(space.config) if (home / "runs" / run.name).is_dir()]
    if not runs:
        raise InputError(f"{home}: no method has finished yet; continue it: crl resume {home}")
    if folder != home:
        names = ", ".join(run.name for run in runs)
        runs = [run for run in runs if folder.resolve() == (home / "runs" / run.name).resolve()]
        if not runs:
            raise InputError(f"{folder} is no finished method of {home}; finished are {names}")
    logging.disable_progress_bar()  # small models load at once
    rows = []
    for run in runs:
        for mode, records in _respond(space, run.name, count, seed).items():
            summary = summarize_records(records)
            found = {name: asdict(getattr(summary, name)) for name in (*SHARES, *MEANS)}
            rows.append({"method": run.name, "label": run.label, "mode": mode, **found})
    return {"run": str(folder), "prompts": count, "seed": seed, "methods": rows}


def _respond(space: Workspace, method: str, count: int, seed: int) -> dict[str, Sequence[Record]]:
    stage = "sft" if method == "sft" else f"runs/{method}/policy"
    records = evaluate(
        space.causal_lm(stage),
        space.tokenizer(),
        space.prompts(f"fresh/{seed}", count),
        (space.score_model("reward"), space.score_model("cost")),
        space.config.align.max_new_tokens,
        seed,
    )
    return {mode: [record for record in records if record.mode == mode] for mode in MODES}


def print_fresh(found: dict[str, Any], console: Console) -> None:
    """One line per method and mode: shares in per cent and gold helpfulness, with intervals."""
    title = f"{found['run']}: {found['prompts']} new prompts, seed {found['seed']}, 95% intervals"
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    table.add_column("mode")
    for label in (*SHARES.values(), MEANS["helpfulness"]):
        table.add_column(label, justify="right")
    for row in found["methods"]:
        shares = [_share(Interval(**row[name])) for name in SHARES]
        helpfulness = Interval(**row["helpfulness"])
        half = helpfulness.high - helpfulness.value
        table.add_row(row["method"], row["mode"], *shares, f"{helpfulness.value:.2f} ± {half:.2f}")
    console.print(table)


def _share(interval: Interval) -> str:
    value, low, high = (100 * x for x in (interval.value, interval.low, interval.high))
    return f"{value:.1f} ({low:.0f}–{high:.0f})"
