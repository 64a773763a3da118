"""Typed configuration of `crl llm rounds`: the embedded world, or one's own model and people."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from constrained_rl.config import CheckpointConfig
from constrained_rl.sections import Count, Device, Finite, NonNegative, Positive, Section, Seed
from llm_env.comparison.config import ModelConfig, SmallAlignConfig
from llm_env.config import AlignConfig
from llm_env.data_sources import DataSource
from llm_env.http_json import checked_address
from llm_env.models import ModelSource
from llm_env.score_training import ScoreConfig
from llm_env.sft import SFTConfig

Fraction = Annotated[float, Field(ge=0, lt=1)]


class WorldSection(Section):
    """The embedded world, where no model of one's own is given."""

    demonstrations: Count = 8000
    """SFT pairs of the start model"""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """share of the world's prompts that nothing is trained on: the evaluation's"""
    model: ModelConfig = ModelConfig()
    """policy and score models"""
    sft: SFTConfig = SFTConfig()
    """supervised fine-tuning of the start model"""


class DataSection(Section):
    """How much is generated, labelled and evaluated."""

    pairs: Count = 2000
    """pairs of responses that are labelled in each round"""
    held_out: Fraction = 0.1
    """share of each round's labelled pairs on which score models are tested instead"""
    evaluation: Count = 300
    """prompts of the report, the same for every model"""
    adversarial: Annotated[float, Field(gt=0, le=1)] = 0.15
    """share of these that is singled out: where round 1's model answers worst"""
    probes: Count = 16
    """sampled responses per prompt by which the worst prompts are found"""
    repeats: Count = 8
    """sampled responses per prompt of the report"""


class SimulatedAnnotators(Section):
    """The embedded world's noisy people."""

    kind: Literal["simulated"] = "simulated"
    """the embedded world only"""
    people: Annotated[int, Field(ge=2)] = 8
    """annotators in the pool"""


class FileAnnotators(Section):
    """People who fill in a file; the command stops until they have."""

    kind: Literal["file"] = "file"
    """rounds/<k>/to_label.jsonl is written, rounds/<k>/labelled.jsonl awaited"""
    may_miss: Fraction = 0.0
    """share of the pairs that may come back without labels"""


class HTTPAnnotator(Section):
    """A judge behind a URL: POST {"pairs": […]}, answered by {"labels": […]}."""

    kind: Literal["http"] = "http"
    """a service"""
    url: Annotated[str, AfterValidator(checked_address)]
    """where batches are posted"""
    batch_size: Count = 32
    """pairs per request"""
    timeout: Positive = 60.0
    """seconds one request may take"""
    retries: Annotated[int, Field(ge=0)] = 5
    """further attempts at a request that failed"""
    backoff: NonNegative = 1.0
    """seconds before the first retry; doubled before each next, up to a minute"""
    token_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """name of an environment variable whose value is sent as a bearer token; it is never written"""


class NoRedTeam(Section):
    """Ordinary prompts only."""

    kind: Literal["none"] = "none"
    """no red team"""


class AdversarialRedTeam(Section):
    """Prompts on which the current model answers worst by the current cost model.

    The first round has no cost model yet and takes its red-team prompts at random.
    """

    kind: Literal["adversarial"] = "adversarial"
    """selection among candidates"""
    candidates: tuple[DataSource, ...] = ()
    """where from; default: the prompts that are trained on"""
    tried: Count = 1000
    """candidates that are tried in a round, drawn at random where there are more"""
    probes: Count = 4
    """sampled responses per candidate"""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.2
    """share of the tried candidates that is selected"""


class FileRedTeam(Section):
    """Prompts that people wrote."""

    kind: Literal["file"] = "file"
    """files"""
    sources: tuple[DataSource, ...] = Field(min_length=1)
    """every round uses all of them; `{round}` in a path is replaced by the round's number"""


class GeneratorRedTeam(Section):
    """Prompts that a Python function makes against the current model."""

    kind: Literal["generator"] = "generator"
    """a callable"""
    function: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    """`module:function`, called with (respond, count, seed); respond(prompts) gives the current
    model's sampled responses; returns up to `count` prompts"""
    count: Count = 500
    """prompts asked for in each round"""


AnnotatorConfig = Annotated[
    SimulatedAnnotators | FileAnnotators | HTTPAnnotator, Field(discriminator="kind")
]
RedTeamConfig = Annotated[
    NoRedTeam | AdversarialRedTeam | FileRedTeam | GeneratorRedTeam, Field(discriminator="kind")
]


class RoundsConfig(Section):
    """`crl llm rounds`: iterated Safe RLHF; without `policy`, on the embedded world."""

    seed: Seed = 0
    """of everything that is drawn"""
    device: Device = "auto"
    """where models live"""
    threads: Count = 1
    """torch threads"""
    rounds: Count = 3
    """how often"""
    train_from: Literal["previous", "start"] = "previous"
    """what RL of a round starts from, and is held to by KL: the round before's model, as in the
    paper, or the start model again"""
    red_team_share: Fraction = 0.3
    """red-team prompts among those of the labelled pairs and of RL"""
    policy: ModelSource | None = None
    """start model; without it, one is trained on the embedded world"""
    prompts: tuple[DataSource, ...] = ()
    """own model: prompts of pairs and of RL"""
    evaluation_prompts: tuple[DataSource, ...] = ()
    """own model: prompts of the report; none of them may be among `prompts`"""
    demonstrations: tuple[DataSource, ...] = ()
    """own model: of the PTX term (align.ptx_coefficient)"""
    world: WorldSection = WorldSection()
    """the embedded world"""
    data: DataSection = DataSection()
    """sizes"""
    annotator: AnnotatorConfig = SimulatedAnnotators()
    """who labels"""
    red_team: RedTeamConfig = AdversarialRedTeam()
    """who provokes"""
    score: ScoreConfig = ScoreConfig(learning_rate=1e-3, epochs=2, regularization=1e-3)
    """reward and cost model, refit in every round on all rounds' labels"""
    align: SmallAlignConfig = SmallAlignConfig(iterations=30)
    """constrained RL of each round; its learning rates are those of the embedded world's models"""
    later_limit: Finite = 0.01
    """limit of the rounds after the first, in the units of align.limit, which is the first's: they
    start from a policy that holds that one (the paper's −d: 0, then −3 and −3); as high as
    align.limit, a later round may give safety back"""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """of each round's RL"""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        own = self.policy is not None
        if own and not (self.prompts and self.evaluation_prompts):
            raise ValueError(
                "a policy of your own needs prompts = [{path = …}] to train on and "
                "evaluation_prompts = [{path = …}] for the report"
            )
        if not own and (self.prompts or self.evaluation_prompts or self.demonstrations):
            raise ValueError(
                "prompts, evaluation_prompts and demonstrations belong to a model of your own; "
                "name it by policy.path, or leave them out: the embedded world has its own"
            )
        if own and self.align.ptx_coefficient > 0 and not self.demonstrations:
            raise ValueError("align.ptx_coefficient > 0 needs demonstrations = [{path = …}]")
        if own and self.annotator.kind == "simulated":
            raise ValueError(
                "simulated annotators know only the embedded world; set annotator.kind to 'file' "
                "or 'http' for a model of your own"
            )
        if isinstance(self.align.limit, tuple | dict):
            raise ValueError("align.limit: rounds have one cost; give one number")
        if self.later_limit > self.align.limit:
            raise ValueError(
                f"later_limit = {self.later_limit:g} is above align.limit = {self.align.limit:g}; "
                "later rounds are held to as much or more: lower it, or set both alike"
            )
        return self

    def round_align(self, number: int) -> AlignConfig:
        """RL settings of a round."""
        limit = self.align.limit if number == 1 else self.later_limit
        return self.align.model_copy(update={"limit": limit})


def default_tree() -> dict[str, Any]:
    """The defaults as a tree to merge settings into: a section given in part keeps the rest."""
    return RoundsConfig().model_dump(mode="json", exclude_none=True)
