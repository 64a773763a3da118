"""Every number of a comparison, from the records on disk: model scores and gold scores side by side.

    share unsafe     Wilson's interval        mean score     Student's t interval
    gain over SFT    mean of paired differences on the same prompts, Student's t interval

Gold comes from the world's parser and judges; the models' R and C are what training saw. Pure
functions of records: nothing is generated or scored here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from constrained_rl.checkpoint import write_text
from constrained_rl.logging import read_metrics
from constrained_rl.statistics import Interval, mean_interval, proportion_interval
from llm_env.compare import Method, load_config, methods, tasks
from llm_env.config import CompareConfig
from llm_env.evaluate import Mode, Record, read_records
from llm_env.world import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Summary:
    """Responses to all prompts, or to one class of them."""

    n: int
    unsafe: Interval  # by gold
    model_unsafe: Interval  # C > 0
    refusal: Interval  # refuses and offers nothing
    safe_completion: Interval  # refuses, gives the right reason and both alternatives
    helpfulness: Interval  # gold
    reward: Interval  # model R
    cost: Interval  # model C
    distinct: float  # different responses / responses
    finished: float  # ended by themselves
    length: float  # words


@dataclass(frozen=True)
class ModeResult:
    """One method's responses in one mode."""

    overall: Summary
    kinds: dict[str, Summary]  # prompt classes that occur
    gain: Interval | None  # gold helpfulness over SFT, paired by prompt; None for SFT


@dataclass(frozen=True)
class MethodResult:
    """One row of the comparison."""

    name: str
    label: str
    family: Literal["start", "dynamic", "static"]
    greedy: ModeResult
    sampled: ModeResult
    lam: float | None  # last λ, or the static weight
    kl: float | None  # to the SFT model, nats per response, last iteration

    def mode(self, mode: Mode) -> ModeResult:
        """Greedy or sampled."""
        return self.greedy if mode == "greedy" else self.sampled


@dataclass(frozen=True)
class ScoreModelResult:
    """Shares of held-out pairs and responses that a score model gets right."""

    pairs: int
    ranking: float  # pairs, by annotators
    sign: float | None  # responses, by annotators (cost model)
    gold_ranking: float  # pairs, by gold
    gold_sign: float | None  # responses, by gold (cost model)


@dataclass(frozen=True)
class Results:
    """All of a comparison, as in results.json."""

    seed: int
    methods: tuple[MethodResult, ...]  # SFT, dynamic, static
    score_models: dict[str, ScoreModelResult]  # reward, cost
    agreement: dict[str, float]  # share of pairs on which two annotators agree
    seconds: dict[str, float]  # wall, per stage

    @property
    def start(self) -> MethodResult:
        """The SFT model, where every method starts."""
        return self.methods[0]

    def family(self, family: str) -> list[MethodResult]:
        """The methods of one family."""
        return [method for method in self.methods if method.family == family]


def summarize(folder: Path) -> Results:
    """Summarize a comparison and write `results.json` beside it."""
    config = load_config(folder)
    records = read_comparison(folder, config)
    results = Results(
        seed=config.seed,
        methods=tuple(
            summarize_method(method, said, records["sft"], folder)
            for method in methods(config)
            if (said := records.get(method.name)) is not None
        ),
        score_models={kind: read_score_model(folder, kind) for kind in ("reward", "cost")},
        agreement=json.loads((folder / "preferences/agreement.json").read_text(encoding="utf-8")),
        seconds=read_seconds(folder, config),
    )
    text = json.dumps(_finite(asdict(results)), indent=1, allow_nan=False)
    write_text(folder / "results.json", text + "\n")
    return results


def read_comparison(folder: Path, config: CompareConfig) -> dict[str, list[Record]]:
    """Records of SFT and of every method that has finished, by name."""
    found = {"sft": read_records(folder / "runs/sft/evaluation.jsonl")}
    for method in methods(config):
        path = folder / "runs" / method.name / "evaluation.jsonl"
        if path.is_file():
            found[method.name] = read_records(path)
    return found


def summarize_method(
    method: Method, records: Sequence[Record], start: Sequence[Record], folder: Path
) -> MethodResult:
    """One method's records and the last line of its training."""
    rows = read_metrics(folder / "runs" / method.name / "metrics.jsonl")
    last = rows[-1] if rows else {}
    compared = None if method.family == "start" else start
    greedy, sampled = (summarize_mode(records, mode, compared) for mode in MODES)
    assert method.family in ("start", "dynamic", "static")
    return MethodResult(
        name=method.name,
        label=method.label,
        family=method.family,
        greedy=greedy,
        sampled=sampled,
        lam=last.get("lambda/cost"),
        kl=last.get("kl/reference"),
    )


def summarize_mode(
    records: Sequence[Record], mode: Mode, start: Sequence[Record] | None
) -> ModeResult:
    """Overall and per class; `start` are SFT's records, for the gain over it."""
    chosen = [record for record in records if record.mode == mode]
    kinds = {kind: [r for r in chosen if r.kind == kind] for kind in KINDS}
    gain = None
    if start is not None:
        gain = paired_gain(chosen, [record for record in start if record.mode == mode])
    return ModeResult(
        overall=summarize_records(chosen),
        kinds={kind: summarize_records(said) for kind, said in kinds.items() if said},
        gain=gain,
    )


def summarize_records(records: Sequence[Record]) -> Summary:
    """All quantities of a non-empty group of responses."""

    def share(holds: Callable[[Record], bool]) -> Interval:
        return proportion_interval(sum(map(holds, records)), len(records))

    n = len(records)
    return Summary(
        n=n,
        unsafe=share(lambda r: r.unsafe),
        model_unsafe=share(lambda r: r.cost > 0),
        refusal=share(lambda r: r.refusal),
        safe_completion=share(lambda r: r.safe_completion),
        helpfulness=mean_interval([r.helpfulness for r in records]),
        reward=mean_interval([r.reward for r in records]),
        cost=mean_interval([r.cost for r in records]),
        distinct=len(Counter(r.response for r in records)) / n,
        finished=sum(r.finished for r in records) / n,
        length=sum(r.length for r in records) / n,
    )


def paired_gain(records: Sequence[Record], others: Sequence[Record]) -> Interval:
    """Mean difference of gold helpfulness on the same prompts."""
    pairs = list(zip(records, others, strict=True))
    different = next((i for i, (a, b) in enumerate(pairs) if a.prompt != b.prompt), None)
    if different is not None:
        raise ValueError(f"response {different} answers another prompt; nothing can be paired")
    return mean_interval([a.helpfulness - b.helpfulness for a, b in pairs])


def read_score_model(folder: Path, kind: str) -> ScoreModelResult:
    """Accuracies that a score model's stage has measured."""
    found = json.loads((folder / f"{kind}_model/accuracy.json").read_text(encoding="utf-8"))
    return ScoreModelResult(
        pairs=len(found["score"]) // 2,
        ranking=found["labels"]["ranking"],
        sign=found["labels"]["sign"],
        gold_ranking=found["gold_ranking"],
        gold_sign=found["gold_sign"],
    )


def read_seconds(folder: Path, config: CompareConfig) -> dict[str, float]:
    """Wall seconds of every finished stage."""
    paths = {task.folder: folder / task.folder / "time.json" for task in tasks(config)}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))["wall"]
        for name, path in paths.items()
        if path.is_file()
    }


def _finite(value: object) -> object:
    """The same tree with numbers that JSON cannot hold replaced by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
