"""The numbers of a comparison, pure functions of records: model scores beside gold scores.

    share unsafe     Wilson's interval        mean score     Student's t interval
    gain over SFT    mean of paired differences on the same prompts, Student's t interval

Gold comes from the world's parser and judges; the models' R and C are what training saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from constrained_rl.statistics import Interval, mean_interval, proportion_interval
from llm_env.comparison.evaluate import Mode, Record
from llm_env.world import Kind

RECOMMENDED = "pid-share"
"""name of the method with the recommended settings"""
KINDS: tuple[Kind, ...] = get_args(Kind)
MODES: tuple[Mode, ...] = get_args(Mode)
Family = Literal["start", "dynamic", "static", "variant", "sweep"]


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

    def interval(self, name: str) -> Interval:
        """The quantity of that name, for figures that take any two."""
        found = {
            "unsafe": self.unsafe,
            "model_unsafe": self.model_unsafe,
            "helpfulness": self.helpfulness,
            "reward": self.reward,
            "cost": self.cost,
        }
        return found[name]


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
    family: Family
    greedy: ModeResult
    sampled: ModeResult
    limit: float | None  # of the constraint; None for SFT and static weights
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
    gold_auc: float | None  # P(C of an unsafe response > C of a safe one), by gold (cost model)


@dataclass(frozen=True)
class Results:
    """All of a comparison, as in results.json."""

    seed: int
    methods: tuple[MethodResult, ...]  # SFT, dynamic, static
    variants: tuple[MethodResult, ...]  # the recommended method on other labels or another cost
    sweep: tuple[MethodResult, ...]  # the recommended method by limit, its own included
    score_models: dict[str, ScoreModelResult]  # reward, cost, and those of the variants
    agreement: dict[str, float]  # share of pairs on which two annotators agree
    approval: dict[str, float]  # share of labels that a gold inspector approves of
    seconds: dict[str, float]  # wall, per stage

    @property
    def start(self) -> MethodResult:
        """The SFT model, where every method starts."""
        return self.methods[0]

    @property
    def recommended(self) -> MethodResult | None:
        """The recommended method, None where it has not finished."""
        return next((m for m in self.methods if m.name == RECOMMENDED), None)

    def family(self, family: str) -> list[MethodResult]:
        """The methods of one family."""
        return [method for method in self.methods if method.family == family]


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
        distinct=len({r.response for r in records}) / n,
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
