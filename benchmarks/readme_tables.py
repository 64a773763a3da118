"""Write the README's tables from the committed benchmark results.

python benchmarks/readme_tables.py            # rewrite
python benchmarks/readme_tables.py --check    # exit 1 if the README is out of date
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from constrained_rl.statistics import mean_interval

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def interval(values: list[float], digits: int) -> str:
    """Mean and 95 % interval."""
    found = mean_interval(values)
    text = f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return text.replace("-", "−")


def percent(shares: list[float]) -> str:
    """Mean and 95 % interval of shares in per cent; Student's t knows no bounds, a share does."""
    found = mean_interval([100 * share for share in shares])
    return f"{found.value:.1f} [{max(found.low, 0.0):.1f}, {min(found.high, 100.0):.1f}]"


def safe_rlhf_table(document: dict[str, Any]) -> str:
    """One row per method."""
    seeds, targets = document["seeds"], document["targets"]
    lines = [
        "| method | gold-unsafe % | red-team unsafe % | gold helpfulness | more than SFT | "
        "benign refusals % | seeds with all four targets |",
        "|---|---|---|---|---|---|---|",
    ]
    for label in next(iter(seeds.values())):
        rows = {seed: found[label] for seed, found in seeds.items()}
        gain = [row["helpfulness"] - seeds[s]["SFT"]["helpfulness"] for s, row in rows.items()]
        passed = sum(all(found.values()) for found in targets[label].values())
        cells = [
            label,
            percent([row["unsafe"] for row in rows.values()]),
            percent([row["red_team_unsafe"] for row in rows.values()]),
            interval([row["helpfulness"] for row in rows.values()], 2),
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
    return (
        f"The recommended setting, *{recommended}*, meets the targets as follows: {met} seeds. "
        "All four at once: "
        + ", ".join(f"*{label}* in {passed(label)}" for label in [recommended, *others])
        + f" of {len(seeds)}. "
        f"The best of the {len(static)} static weights over these seeds, ν = {best.split()[-1]}, "
        f"does so in {passed(best)} of {len(seeds)} (mean gain {gain(best):+.2f} against "
        f"{gain(recommended):+.2f})."
    )


def detour_table(document: dict[str, Any]) -> str:
    """One row per preset."""
    lines = [
        "| preset | gap to J* % (each seed) | violation % (each seed) | within 5 % of both |",
        "|---|---|---|---|",
    ]
    for preset in dict.fromkeys(run["preset"] for run in document["runs"]):
        runs = [run for run in document["runs"] if run["preset"] == preset]
        good = sum(abs(r["gap_percent"]) < 5 and r["violation_percent"] < 5 for r in runs)
        gaps = ", ".join(f"{r['gap_percent']:.1f}" for r in runs)
        violations = ", ".join(f"{r['violation_percent']:.1f}" for r in runs)
        lines.append(f"| {preset} | {gaps} | {violations} | {good} of {len(runs)} |")
    return "\n".join(lines).replace(" -", " −")


def throughput_table(document: dict[str, Any]) -> str:
    """Median and range per CPU second."""
    lines = ["| what | steps or tokens per CPU second (range) |", "|---|---|"]
    for name, rates in document["rates"].items():
        middle, low, high = statistics.median(rates), min(rates), max(rates)
        lines.append(f"| {name} | {middle:,.0f} ({low:,.0f} – {high:,.0f}) |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """The README with every marked block rewritten."""
    safe = json.loads((RESULTS / "safe_rlhf_vs_shaping.json").read_text(encoding="utf-8"))
    speed = json.loads((RESULTS / "throughput.json").read_text(encoding="utf-8"))
    detour = json.loads((RESULTS / "detour_optimum.json").read_text(encoding="utf-8"))
    blocks = {
        "table:safe_rlhf": safe_rlhf_table(safe),
        "verdict:safe_rlhf": safe_rlhf_verdict(safe),
        "table:detour": detour_table(detour),
        "table:throughput": throughput_table(speed),
    }
    for name, block in blocks.items():
        end = name.split(":")[0]
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{end} -->)"
        text, count = re.subn(pattern, lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.S)
        assert count == 1, f"README has {count} blocks {name}"
    return text


def main() -> int:
    """Rewrite or check."""
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = filled(old)
    if "--check" in sys.argv:
        return int(old != new)
    path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
