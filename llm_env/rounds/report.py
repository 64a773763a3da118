"""The report of rounds: one self-contained HTML file, all of it measured on the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from constrained_rl.logging import read_metrics
from constrained_rl.page import (
    Block,
    Code,
    Fold,
    Page,
    Section,
    Text,
    picture,
    write_page,
)
from constrained_rl.plots import plot_time, save_figure
from constrained_rl.report import origin
from constrained_rl.statistics import Interval
from llm_env.comparison.report import constrained_curve
from llm_env.rounds.config import RoundsConfig
from llm_env.rounds.plots import (
    plot_elo,
    plot_helpfulness,
    plot_planes,
    plot_training,
    plot_unsafe,
)
from llm_env.rounds.report_tables import group_table, main_table, sample_table, score_table
from llm_env.rounds.results import Results, Said, summarize_rounds
from llm_env.rounds.schedule import load_config
from llm_env.rounds.stages import read_red_team

SAMPLES = 4
"""adversarial prompts whose responses are shown"""


@dataclass(frozen=True)
class Rounds:
    """A folder of rounds read from disk."""

    folder: Path
    config: RoundsConfig
    results: Results
    said: Said

    @property
    def labels(self) -> list[str]:
        """Names of the models."""
        return [model.label for model in self.results.models]


def write_rounds_report(folder: Path) -> Path:
    """Write report.html, results.json, planes.{png,svg} and elo.{png,svg} into the folder."""
    results, said = summarize_rounds(folder)
    found = Rounds(folder, load_config(folder), results, said)
    save_figure(plot_planes(said, found.labels, "greedy"), folder / "planes")
    save_figure(plot_elo(results), folder / "elo")
    start = "the embedded dialogue world" if results.embedded else str(found.config.policy.path)  # type: ignore[union-attr]
    hard = sum(prompt.adversarial for prompt in said.prompts)
    page = Page(
        title=f"{found.config.rounds} rounds of Safe RLHF",
        subtitle=f"{start} · seed {results.seed} · {len(said.prompts)} prompts that nothing was "
        f"trained on, {hard} of them adversarial",
        lead=first_screen(found),
        sections=[build(found) for build in SECTIONS] + [origin_section(folder)],
    )
    return write_page(page, folder / "report.html")


def first_screen(found: Rounds) -> list[Block]:
    """Verdict, table, Figure 5."""
    caption = (
        "Elo (Bradley–Terry) of sampled responses, the start model at 1000, with 95% bootstrap "
        "intervals over prompts; up is better in both panels."
    )
    if found.results.embedded:
        caption += (
            " Harmlessness is more than the absence of unsafe responses: here a bare refusal beats "
            "a plain answer, and both beat a safe completion."
        )
    notes = [
        f"{ratings.judge}, {name}: {note}."
        for ratings in found.results.ratings
        for name, elo in (
            ("helpfulness", ratings.helpfulness),
            ("harmlessness", ratings.harmlessness),
        )
        for note in elo.notes
    ]
    blocks: list[Block] = [Text(verdict(found.results)), main_table(found.results)]
    blocks.append(picture(plot_elo(found.results), caption, wide=True))
    return blocks + ([Text(notes)] if notes else [])


def verdict(results: Results) -> list[str]:
    """What the last round changed against the first, on adversarial prompts, in sentences."""
    last, first = results.models[-1], results.models[1]
    change = last.groups["sampled/adversarial"].change
    if last.number == 1:
        return ["One round: there is no later model to compare its policy with."]
    if change is None:
        a, b = (m.groups["sampled/adversarial"].summary.model_unsafe.value for m in (first, last))
        return [
            f"On the prompts where round 1's model answers worst, the unified cost model calls "
            f"{a:.1%} of its responses unsafe, and {b:.1%} of those of {last.label}. "
            "There is no gold here: read responses before you believe it."
        ]
    before, after = (
        m.groups["sampled/adversarial"].summary.gold.unsafe.value  # type: ignore[union-attr]
        for m in (first, last)
    )
    return [
        f"On the prompts where round 1's model answers worst, {before:.1%} of its responses are "
        f"unsafe by gold and {after:.1%} of those of {last.label}: {said(change.unsafe, 'points')}"
        f". Gold helpfulness there: {said(change.helpfulness, '')}."
    ]


def said(interval: Interval, unit: str) -> str:
    """A change with its interval, and whether it is clear."""
    scale, digits = (100.0, 1) if unit else (1.0, 2)
    value, low, high = (scale * x for x in (interval.value, interval.low, interval.high))
    clear = "" if interval.excludes(0.0) else ", which may be chance"
    name = f" {unit}" if unit else ""
    return (
        f"a change of {value:+.{digits}f}{name} (95% interval {low:+.{digits}f} … "
        f"{high:+.{digits}f}){clear}"
    )


def plane_section(found: Rounds) -> Section:
    """The paper's Figure 4, greedy and sampled."""
    caption = (
        "One mark per prompt, the same for every model; right of the dashed line the unified cost "
        "model calls the response unsafe (C > 0), above the dotted line it beats the start "
        "model's mean reward. Percentages are the shares of the four quadrants."
    )
    blocks = [
        picture(plot_planes(found.said, found.labels, mode), f"{head} {caption}", wide=True)
        for mode, head in (("greedy", "Greedy."), ("sampled", "Sampled at temperature 1."))
    ]
    return Section("Reward and cost of every response", blocks)


def unsafe_section(found: Rounds) -> Section:
    """Shares of unsafe responses and helpfulness by round."""
    unsafe = (
        "Share of sampled responses that are unsafe, with 95% intervals over prompts, by every "
        "judge. Where the cost model lies below gold, it misses harm."
    )
    if found.results.embedded:
        unsafe += (
            " Annotators are noisy: one of average strictness calls a safe completion unsafe in "
            "14% of cases (σ((−0.05 − 0.5) / 0.3)), so their share cannot fall to zero."
        )
    helpful = "Mean helpfulness of sampled responses with 95% intervals over prompts."
    return Section(
        "Unsafe responses by round",
        [
            picture(plot_unsafe(found.results), unsafe, wide=True),
            picture(plot_helpfulness(found.results), helpful, wide=True),
        ],
    )


def training_section(found: Rounds) -> Section:
    """λ and the constrained quantity."""
    runs = {
        f"round {k}": read_metrics(found.folder / f"rounds/{k}/policy/metrics.jsonl")
        for k in range(1, found.config.rounds + 1)
    }
    costs = {
        f"round {k}": constrained_curve(found.config.round_align(k))
        for k in range(1, found.config.rounds + 1)
    }
    caption = (
        "Training of each round's policy: λ, and below what it answers to, by that round's own "
        "cost model, with its limit dashed. A round starts where the round before ended."
        if found.config.train_from == "previous"
        else "Training of each round's policy, always from the start model: λ, and below what it "
        "answers to, by that round's own cost model, with its limit dashed."
    )
    shown = picture(plot_training(runs, costs), caption, wide=True)
    return Section("λ and cost over training", [shown])


def score_section(found: Rounds) -> Section:
    """Held-out agreement of every refit with the labels of every round."""
    table = score_table(found.results)
    said_ = Text(["No labels were held out (data.held_out = 0)."]) if table is None else table
    return Section("Score models", [said_])


def red_team_section(found: Rounds) -> Section:
    """What each round's red team asked."""
    blocks: list[Block] = []
    for k in range(1, found.config.rounds + 1):
        prompts = read_red_team(found.folder / f"rounds/{k}")
        shown = [str(prompt) for prompt in prompts[:8]]
        if shown:
            blocks.append(Fold(f"round {k}: {len(prompts)} prompts, the first 8", [Text(shown)]))
    return Section("Red team", blocks or [Text(["No red team was asked for."])])


def sample_section(found: Rounds) -> Section:
    """Greedy responses of all models side by side."""
    prompts = found.said.prompts
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].risk, reverse=True)
    rule = (
        f"Greedy responses to the {SAMPLES} prompts on which round 1's model has the highest risk: "
        "chosen by that rule, not by hand. R and C are unified."
    )
    blocks: list[Block] = [Text([rule])]
    for index in order[:SAMPLES]:
        answers = [next(a for a in said if a.prompt == index) for said in found.said.answers]
        table = sample_table(found.labels, answers)
        blocks.append(Fold(str(prompts[index].prompt), [table], is_open=index == order[0]))
    return Section("Responses side by side", blocks)


def numbers_section(found: Rounds) -> Section:
    """Every group of responses."""
    names = found.results.models[0].groups
    blocks = [Fold(f"{name.replace('/', ', ')} prompts", [group_table(found.results, name)])
              for name in names]  # fmt: skip
    return Section("All numbers", blocks)


def time_section(found: Rounds) -> Section:
    """Seconds per stage."""
    total: dict[str, float] = {}
    for stage, seconds in found.results.seconds.items():
        name = "evaluation" if stage.startswith("evaluation/") else stage.split("/")[-1]
        label = name.replace("_", " ")
        total[label] = total.get(label, 0.0) + seconds
    caption = "Wall-clock seconds of each kind of stage, all rounds together; stages follow one "
    return Section("Time", [picture(plot_time(total), caption + "another.")])


def origin_section(folder: Path) -> Section:
    """Config and provenance, folded."""
    blocks: list[Block] = [
        Fold(part.title, [block for block in part.blocks if isinstance(block, Code)])
        for part in origin(folder)
    ]
    return Section("Config and provenance", blocks)


SECTIONS: Sequence[Callable[[Rounds], Section]] = (
    plane_section,
    unsafe_section,
    training_section,
    score_section,
    red_team_section,
    sample_section,
    numbers_section,
    time_section,
)
"""The sections of a report, in order."""
