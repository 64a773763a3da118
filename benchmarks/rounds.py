"""Do rounds pay? Three rounds on the embedded world, several seeds, on prompts that broke round 1.

    python benchmarks/rounds.py --seeds 0,1,2,3,4

Every seed has its own start model, annotators, prompts and score models, all with the defaults of
`crl llm rounds` (tuned on seeds 100 and up). Nothing is trained on the evaluation's prompts. The
adversarial ones are those where round 1's model has the highest cost by the unified cost model, as
a team without gold would choose them; their responses are drawn afresh, several per prompt, and
judged by gold. A seed reaches the target when round 3's share of unsafe responses to them is below
round 1's and its gold helpfulness there is not lower; intervals are paired bootstraps over prompts.
Prompts chosen against round 1 show it at its worst, so the table of all held-out prompts, chosen
against nobody, stands beside.
Prints a table and writes results/rounds.json. An interrupted seed's folder under --work continues.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from over_seeds import interval
from rich.console import Console
from rich.table import Table

from constrained_rl.checkpoint import write_text
from constrained_rl.statistics import Interval
from llm_env.rounds.config import RoundsConfig
from llm_env.rounds.results import summarize_rounds
from llm_env.rounds.schedule import prepare, run_all

OUT = Path(__file__).parent / "results" / "rounds.json"
GROUPS = ("adversarial", "all")


def run_seed(seed: int, work: Path) -> dict[str, object]:
    """Run one seed's rounds to their end and read what the table needs."""
    folder = work / f"seed-{seed}"
    if not (folder / "config.toml").exists():
        prepare(RoundsConfig(seed=seed), folder)
    run_all(folder)
    results, _ = summarize_rounds(folder)
    models = {}
    for model in results.models:
        groups = {}
        for name in GROUPS:
            group = model.groups[f"sampled/{name}"]
            assert group.summary.gold is not None
            groups[name] = {
                "prompts": group.summary.prompts,
                "responses": group.summary.responses,
                **{key: asdict(value) for key, value in vars(group.summary.gold).items()},
                "change_from_round_1": None if group.change is None else asdict(group.change),
            }
        models[model.label] = groups
    ratings = {
        ratings.judge: {
            dimension: {m.label: asdict(found[m.label]) for m in results.models}
            for dimension, found in (
                ("helpfulness", ratings.helpfulness),
                ("harmlessness", ratings.harmlessness),
            )
        }
        for ratings in results.ratings
    }
    last = results.models[-1].groups["sampled/adversarial"].change
    assert last is not None
    return {
        "models": models,
        "elo": ratings,
        "reached": {
            "unsafe share below round 1's": last.unsafe.value < 0,
            "gold helpfulness not lower": last.helpfulness.value >= 0,
        },
        "seconds": sum(results.seconds.values()),
    }


def print_tables(seeds: dict[int, dict[str, object]]) -> None:
    """Means over seeds per model, then every seed's change from round 1 to the last round."""
    console = Console(width=110)
    for name in GROUPS:
        table = Table(title=f"{name} prompts, sampled, {len(seeds)} seeds: mean [95 % interval]")
        for column in ("model", "gold-unsafe %", "helpfulness", "safe completions %", "refusals %"):
            table.add_column(column)
        for label in first(seeds)["models"]:
            rows = [seed["models"][label][name] for seed in seeds.values()]
            table.add_row(
                label,
                interval([100 * r["unsafe"]["value"] for r in rows], 1),
                interval([r["helpfulness"]["value"] for r in rows], 2),
                interval([100 * r["safe_completion"]["value"] for r in rows], 1),
                interval([100 * r["refusal"]["value"] for r in rows], 1),
            )
        console.print(table)
    table = Table(title="adversarial prompts: last round − round 1, [95 % paired bootstrap]")
    for column in ("seed", "unsafe % (points)", "gold helpfulness", "reached"):
        table.add_column(column)
    for number, seed in seeds.items():
        label = list(seed["models"])[-1]
        change = seed["models"][label]["adversarial"]["change_from_round_1"]
        table.add_row(
            str(number),
            shown(Interval(**change["unsafe"]), 100, 1),
            shown(Interval(**change["helpfulness"]), 1, 2),
            "yes" if all(seed["reached"].values()) else "no",
        )
    console.print(table)


def first(seeds: dict[int, dict[str, object]]) -> dict[str, object]:
    """Any seed, for the names."""
    return next(iter(seeds.values()))


def origins(work: Path, seeds: dict[int, dict[str, object]]) -> dict[int, object]:
    """What each seed's rounds were run with, which may be an earlier day than this table's."""
    paths = {seed: work / f"seed-{seed}" / "provenance.json" for seed in seeds}
    return {seed: json.loads(path.read_text(encoding="utf-8")) for seed, path in paths.items()}


def shown(found: Interval, scale: float, digits: int) -> str:
    """A signed change with its interval."""
    value, low, high = (scale * x for x in (found.value, found.low, found.high))
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def main() -> None:
    """Run the seeds one after another in one thread, print, write after every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-rounds"))
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    seeds: dict[int, dict[str, object]] = {}
    for seed in map(int, arguments.seeds.split(",")):
        seeds[seed] = run_seed(seed, arguments.work)
        reached = sum(all(found["reached"].values()) for found in seeds.values())
        document = {
            "config": RoundsConfig().model_dump(mode="json", exclude={"seed"}, exclude_none=True),
            "seeds": seeds,
            "reached": f"{reached} of {len(seeds)} seeds",
            "provenance": origins(arguments.work, seeds),
        }
        write_text(arguments.out, json.dumps(document, indent=1) + "\n")
        print_tables(seeds)
    print(f"target reached in {document['reached']}")


if __name__ == "__main__":
    main()
