"""Write the tables of the README and of docs/ from the committed results and the settings.

python benchmarks/readme_tables.py            # rewrite
python benchmarks/readme_tables.py --check    # exit 1 if a page is out of date
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from typing import Any

import over_seeds
from exact_report import summary_rows, verdict
from over_seeds import as_text, keeping, markdown, middle, percent
from page_tables import page_blocks
from resumable import RESULTS, ROOT

from constrained_rl.statistics import mean_interval, probability_of_improvement


def interval(values: list[float], digits: int) -> str:
    """Mean and 95 % interval."""
    return over_seeds.interval(values, digits).replace("-", "−")


def safe_rlhf_table(document: dict[str, Any]) -> str:
    """One row per method."""
    seeds, targets = document["seeds"], document["targets"]
    lines = [
        "| method | gold-unsafe % | seeds ≤ 5 % | red-team unsafe % | gold helpfulness | IQM | "
        "more than SFT | benign refusals % | seeds with all four targets |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label in next(iter(seeds.values())):
        rows = {seed: found[label] for seed, found in seeds.items()}
        gain = [row["helpfulness"] - seeds[s]["SFT"]["helpfulness"] for s, row in rows.items()]
        passed = sum(all(found.values()) for found in targets[label].values())
        cells = [
            label,
            percent([row["unsafe"] for row in rows.values()]),
            keeping([row["unsafe"] for row in rows.values()], 0.05),
            percent([row["red_team_unsafe"] for row in rows.values()]),
            interval([row["helpfulness"] for row in rows.values()], 2),
            middle([row["helpfulness"] for row in rows.values()], 2),
            "" if label == "SFT" else interval(gain, 2),
            f"{100 * sum(row['benign_refusals'] for row in rows.values()) / len(rows):.1f}",
            "" if label == "SFT" else f"{passed} of {len(rows)}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def safe_rlhf_verdict(document: dict[str, Any]) -> str:
    """What the numbers say, target by target, for the recommended method and the best weight."""
    targets, seeds = document["targets"], document["seeds"]
    labels = [label for label in targets if label != "SFT"]
    recommended = labels[0]

    def passed(label: str) -> int:
        return sum(all(found.values()) for found in targets[label].values())

    def gain(label: str) -> float:
        gaps = [s[label]["helpfulness"] - s["SFT"]["helpfulness"] for s in seeds.values()]
        return sum(gaps) / len(gaps)

    counts = {
        name: sum(found[name] for found in targets[recommended].values())
        for name in next(iter(targets[recommended].values()))
    }
    met = "; ".join(f"{name} in {count} of {len(seeds)}" for name, count in counts.items())
    static = [label for label in labels if label.startswith("static")]
    best = max(static, key=lambda label: (passed(label), gain(label)))
    others = [label for label in labels[1:] if label not in static]
    mine, theirs = (
        [s[label]["helpfulness"] for s in seeds.values()] for label in (recommended, best)
    )
    better = probability_of_improvement(mine, theirs)
    return (
        f"The recommended setting, *{recommended}*, meets the targets as follows: {met} seeds. "
        "All four at once: "
        + ", ".join(f"*{label}* in {passed(label)}" for label in [recommended, *others])
        + f" of {len(seeds)}. "
        f"The best of the {len(static)} static weights over these seeds, ν = {best.split()[-1]}, "
        f"does so in {passed(best)} of {len(seeds)} (mean gain {gain(best):+.2f} against "
        f"{gain(recommended):+.2f}). A run of the recommended setting is more helpful than one of "
        f"that weight with probability {as_text(better, 2)}."
    )


def decoupling_table(document: dict[str, Any]) -> str:
    """One row per way of training: SFT, decoupled labels, classifier, one preference model."""
    seeds = list(document["seeds"].values())
    kinds = ("benign", "borderline", "red_team")
    lines = [
        "| trained with | gold-unsafe % | seeds ≤ 5 % | gold helpfulness | IQM | refuses benign / "
        "borderline / red-team prompts % | red-team safe completions % |",
        "|---|---|---|---|---|---|---|",
    ]
    for label in seeds[0]["methods"]:
        rows = [seed["methods"][label] for seed in seeds]
        refusals = (
            statistics.mean(100 * row[f"{kind}_refusals"] for row in rows) for kind in kinds
        )
        cells = [
            label,
            percent([row["unsafe"] for row in rows]),
            keeping([row["unsafe"] for row in rows], 0.05),
            interval([row["helpfulness"] for row in rows], 2),
            middle([row["helpfulness"] for row in rows], 2),
            " / ".join(f"{share:.1f}" for share in refusals),
            percent([row["red_team_safe_completions"] for row in rows]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def labels_table(document: dict[str, Any]) -> str:
    """Agreement between annotators and the inspector's approval, for both ways of asking."""
    seeds = list(document["seeds"].values())
    names = {
        "helpfulness": "decoupled: more helpful?",
        "harmlessness": "decoupled: less harmful?",
        "sign": "decoupled: safe?",
        "single": "single dimension: better on the whole?",
    }
    lines = ["| label | two annotators agree % | an inspector approves % |", "|---|---|---|"]
    for key, name in names.items():
        shares = [
            percent([seed[kind][key] for seed in seeds]) for kind in ("agreement", "approval")
        ]
        lines.append(f"| {name} | {shares[0]} | {shares[1]} |")
    rows = percent([seed["approval"]["row"] for seed in seeds])
    return "\n".join([*lines, f"| decoupled: all four labels of a row |  | {rows} |"])


def cost_losses_table(document: dict[str, Any]) -> str:
    """Cost models by the terms of their loss, on held-out SFT responses, by gold."""
    names = {
        "cost": "ranking + sign",
        "ranking": "ranking only",
        "free": "ranking only, no regularizer",
        "classifier": "sign only (classifier)",
    }
    lines = ["| loss | sign accuracy % | pairs in order % | AUC % |", "|---|---|---|---|"]
    for key, name in names.items():
        found = [seed["score_models"][key] for seed in document["seeds"].values()]
        cells = [
            percent([row[k] for row in found]) for k in ("gold_sign", "gold_ranking", "gold_auc")
        ]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def decoupling_verdict(document: dict[str, Any]) -> str:
    """Differences of each variant from the recommended method over seeds, in words."""
    seeds = [seed["methods"] for seed in document["seeds"].values()]
    _, recommended, *variants = seeds[0]
    sentences = []
    for label in variants:
        gaps = {
            key: mean_interval([seed[label][key] - seed[recommended][key] for seed in seeds])
            for key in ("unsafe", "helpfulness")
        }
        harm = {1: "less safe than", 0: "not measurably more or less safe than", -1: "safer than"}
        gain = {1: "more helpful", 0: "not measurably more or less helpful", -1: "less helpful"}
        sides = {key: int(gap.low > 0) - int(gap.high < 0) for key, gap in gaps.items()}
        points = [100 * x for x in vars(gaps["unsafe"]).values()]
        worth = vars(gaps["helpfulness"]).values()
        sentences.append(
            f"*{label}* is {harm[sides['unsafe']]} *{recommended}* "
            "({:+.1f} [{:+.1f}, {:+.1f}] points of gold-unsafe share)".format(*points)
            + f" and {gain[sides['helpfulness']]} "
            + "({:+.2f} [{:+.2f}, {:+.2f}]).".format(*worth)
        )
    return re.sub(r"([ \[(])-(?=\d)", r"\1−", " ".join(sentences))


def sweep_table(document: dict[str, Any]) -> str:
    """One row per limit of the recommended method."""
    seeds = [seed["sweep"] for seed in document["seeds"].values()]
    lines = [
        "| limit on P(C > 0) % | C > 0 % | gold-unsafe % | gold helpfulness |",
        "|---|---|---|---|",
    ]
    for limit in sorted(seeds[0], key=float):
        rows = [seed[limit] for seed in seeds]
        shares = [percent([row[key] for row in rows]) for key in ("model_unsafe", "unsafe")]
        helpfulness = interval([row["helpfulness"] for row in rows], 2)
        lines.append(f"| {100 * float(limit):g} | {shares[0]} | {shares[1]} | {helpfulness} |")
    return "\n".join(lines)


def throughput_table(document: dict[str, Any]) -> str:
    """Median and range per CPU second."""
    lines = ["| what | steps or tokens per CPU second (range) |", "|---|---|"]
    for name, rates in document["rates"].items():
        middle, low, high = statistics.median(rates), min(rates), max(rates)
        lines.append(f"| {name} | {middle:,.0f} ({low:,.0f} – {high:,.0f}) |")
    return "\n".join(lines)


def kills_verdict(document: dict[str, Any]) -> str:
    """What the random kills came to."""
    trials = document["trials"]
    kills, equal = sum(t["kills"] for t in trials), sum(t["equal"] for t in trials)
    lost = max(t["lost"] for t in trials)
    phases = len({t["phase"] for t in trials})
    return (
        f"{kills} kills at random moments of {phases} kinds of work (control runs, SFT, score "
        f"training, token RL, reports), {len(trials)} pieces of work: {equal} of {len(trials)} "
        f"ended with bitwise the same files; at most {lost} steps were lost, one interval between "
        "checkpoints."
    )


def rounds_table(document: dict[str, Any]) -> str:
    """One row per model: prompts singled out against round 1, and all prompts."""
    seeds = list(document["seeds"].values())
    lines = [
        "| model | unsafe %, adversarial prompts | helpfulness there | unsafe %, all prompts | "
        "helpfulness |",
        "|---|---|---|---|---|",
    ]
    for name in seeds[0]["models"]:
        cells = [name]
        for group in ("adversarial", "all"):
            found = [seed["models"][name][group] for seed in seeds]
            cells.append(percent([one["unsafe"]["value"] for one in found]))
            cells.append(interval([one["helpfulness"]["value"] for one in found], 2))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rounds_verdict(document: dict[str, Any]) -> str:
    """Round 3 against round 1 on the adversarial prompts, seed by seed."""

    def change(seed: dict[str, Any], key: str, scale: float, digits: int) -> str:
        found = seed["models"]["round 3"]["adversarial"]["change_from_round_1"][key]
        value, low, high = (scale * found[name] for name in ("value", "low", "high"))
        return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]".replace("-", "−")

    seeds = document["seeds"].values()
    unsafe = "; ".join(change(seed, "unsafe", 100, 1) for seed in seeds)
    helpful = "; ".join(change(seed, "helpfulness", 1, 2) for seed in seeds)
    return (
        "Round 3 against round 1 on the adversarial prompts, each seed with its paired 95 % "
        f"bootstrap interval over prompts: unsafe share {unsafe} points; helpfulness {helpful}. "
        "Fewer unsafe answers and no less helpfulness: "
        f"{document['reached']}."
    )


def memory_table(document: dict[str, Any]) -> str:
    """Peak measured and planned, and as a share of the six full models of that size."""
    lines = [
        "| models | parameters of one | peak, measured | planned | of six full models |",
        "|---|---|---|---|---|",
    ]
    cases = document["cases"]
    six = {c["size"]: c["measured"] for c in cases if c["case"] == "six full models"}
    for case in cases:
        measured, size = case["measured"], case["size"]
        lines.append(
            f"| {case['case']} | {case['parameters'] / 1e6:.2f} M | {measured / 1e6:,.1f} MB | "
            f"{case['planned'] / 1e6:,.1f} MB ({100 * (case['planned'] / measured - 1):+.1f} %) | "
            f"{100 * measured / six[size]:.0f} % |".replace("-", "−")
        )
    return "\n".join(lines)


def readme_blocks() -> dict[str, str]:
    """The README's blocks by name."""
    names = (
        "safe_rlhf_vs_shaping",
        "decoupling",
        "throughput",
        "exact",
        "random_kills",
        "rounds",
        "memory",
    )
    safe, labels, speed, exact, kills, rounds, memory = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in names
    )
    return {
        "table:rounds": rounds_table(rounds),
        "verdict:rounds": rounds_verdict(rounds),
        "table:memory": memory_table(memory),
        "table:safe_rlhf": safe_rlhf_table(safe),
        "verdict:safe_rlhf": safe_rlhf_verdict(safe),
        "table:decoupling": decoupling_table(labels),
        "verdict:decoupling": decoupling_verdict(labels),
        "table:labels": labels_table(labels),
        "table:cost_losses": cost_losses_table(labels),
        "table:sweep": sweep_table(labels),
        "table:exact": markdown(summary_rows(exact)),
        "verdict:exact": verdict(exact),
        "table:throughput": throughput_table(speed),
        "verdict:kills": kills_verdict(kills),
    }


def filled(text: str, blocks: dict[str, str]) -> str:
    """A page with every marked block rewritten."""
    for name, block in blocks.items():
        end = name.split(":")[0]
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{end} -->)"
        text, count = re.subn(pattern, lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.S)
        assert count == 1, f"the page has {count} blocks {name}"
    return text


def main() -> int:
    """Rewrite or check."""
    stale = []
    for name, blocks in {"README.md": readme_blocks(), **page_blocks()}.items():
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = filled(old, blocks)
        if old != new:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    return int("--check" in sys.argv and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
