"""How are the phases of many configs counted in seconds? Each job once, deep models from shallow.

Advice asks for the plans of a dozen changed configs, most of which change one phase or none.
Of a model whose layers are alike, memory at a place of the code grows by the same amount with
every layer, so it is taken from a model of `SHALLOW` layers at every place where a peak may be:

    bytes(n) = bytes(a) + (n − a) (bytes(b) − bytes(a)) / (b − a)

Absent: models whose layers differ (sliding windows every other layer), which are run whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from constrained_rl.errors import InputError, short
from llm_env.models import ModelSource
from llm_env.plan.phases import Counted, Job, Kind, Loss, Working, count
from llm_env.plan.shapes import Shapes, build_shapes, depth, give_fake_tensors, score_sources
from llm_env.score_sources import ScoreSource
from llm_env.training.config import TrainConfig

SHALLOW = (2, 3)
"""layers of the models from which deep ones are taken"""


@dataclass(frozen=True)
class Sizes:
    """Rows of each phase on one rank, and their width."""

    prompt: int  # P, tokens of the longest prompt
    response: int  # T, tokens of the longest response
    generate: int  # rows decoded together
    score: dict[str, int]  # rows scored together, by the name of the score
    annotate: int  # rows annotated together
    update: int  # rows of a micro-batch
    accumulated: bool  # a minibatch is several micro-batches


class Tracer:
    """Counts phases of configs, and keeps what it has built and counted."""

    def __init__(self) -> None:
        self._mode = FakeTensorMode()
        self._shapes: dict[tuple[object, ...], Shapes] = {}
        self._counted: dict[tuple[Job, int | None], Counted] = {}

    def shapes(self, config: TrainConfig, layers: int | None = None) -> Shapes:
        """The models of a config, whole or with fewer layers."""
        key = (layers, _shape_of(config), *score_sources(config), *_score_shapes(config))
        if key not in self._shapes:
            self._shapes[key] = build_shapes(config, layers)
        return self._shapes[key]

    def phases(self, config: TrainConfig, sizes: Sizes) -> list[Working]:
        """Working memory of every phase, in the order of an iteration.

        The policy's and the critic's updates include the gradients of the model they update.
        """
        return [
            self._deep(config, model, job).working(name)
            for name, model, job in _jobs(config, sizes)
        ]

    def _deep(self, config: TrainConfig, model: str, job: Job) -> Counted:
        layers = _layers(config, model)
        if layers is None or layers <= max(SHALLOW):
            return self._count(config, model, job, None)
        low, high = SHALLOW
        few, more = (self._count(config, model, job, n) for n in SHALLOW)
        steps = (layers - low) / (high - low)

        def deep(a: int, b: int) -> int:
            return a + round(steps * (b - a))

        # a middle layer, of which two layers have none, lies between the first and the last
        peaks = {
            segment: (deep(few.peaks[segment][0], most), deep(few.peaks[segment][1], logits))
            for segment, (most, logits) in more.peaks.items()
            if segment in few.peaks
        }
        return Counted(peaks, deep(few.cache, more.cache))

    def _count(self, config: TrainConfig, model: str, job: Job, layers: int | None) -> Counted:
        key = (job, layers)
        if key not in self._counted:
            module = _module(self.shapes(config, layers), model)
            with self._mode:
                give_fake_tensors(module)
                self._counted[key] = _counted(model, job, module)
        return self._counted[key]


def _counted(model: str, job: Job, module: nn.Module) -> Counted:
    """As `count`; `InputError` where a family's operators do not run without data."""
    try:
        return count(job, module)
    except RuntimeError as error:
        raise InputError(
            f"the plan cannot count {model} ({job.kind}): its layers do not run on tensors without "
            f"data ({short(str(error))}). Experts do in bfloat16 alone: set the dtype of {model} "
            "to bfloat16 (float32 takes at most twice as much), or train and watch the memory"
        ) from error


def _jobs(config: TrainConfig, sizes: Sizes) -> list[tuple[str, str, Job]]:
    """Name, model and job of every phase, in the order of an iteration."""
    ppo = config.align.ppo
    loss = Loss(ppo.clip, ppo.entropy, ppo.dual_clip, ppo.value_clip, sizes.accumulated)
    scores = dict(zip(_local_scores(config), _score_shapes(config), strict=True))

    def job(kind: Kind, model: str, rows: int, loss: Loss | None = None) -> tuple[str, str, Job]:
        name = f"score {model}" if kind == "score" else kind
        policy = (config.policy.model_dump_json(),)
        shape = policy if model == "policy" else scores.get(model, (_shape_of(config),))
        return name, model, Job(kind, shape, rows, sizes.prompt, sizes.response, loss)

    found = [job("generate", "policy", sizes.generate)]
    found += [job("score", name, sizes.score[name]) for name in scores]
    if config.policy.dtype != "float32":  # what decoding computed is not exact
        found.append(job("annotate policy", "policy", sizes.annotate))
    if ppo.kl_coefficient > 0:
        found.append(job("annotate reference", "policy", sizes.annotate))
    if ppo.advantage == "gae":
        found.append(job("annotate critic", "critic", sizes.annotate))
        found.append(job("update critic", "critic", sizes.update, loss))
    return [*found, job("update policy", "policy", sizes.update, loss)]


def _shape_of(config: TrainConfig) -> str:
    """What shapes policy and critic."""
    ppo, reward = config.align.ppo, config.reward.path
    parts = (config.policy.model_dump_json(), config.critic.model_dump_json(), reward, ppo.streams)
    return f"{parts} {ppo.advantage} {ppo.kl_coefficient > 0} {len(config.costs)}"


def _local_scores(config: TrainConfig) -> dict[str, ScoreSource]:
    """Score models that are held here, not behind a URL."""
    return {k: v for k, v in score_sources(config).items() if v.path is not None}


def _score_shapes(config: TrainConfig) -> list[tuple[str, str]]:
    """What shapes each score model."""
    return [
        (Path(str(source.path), "config.json").read_text(encoding="utf-8"), source.dtype)
        for source in _local_scores(config).values()
    ]


def _layers(config: TrainConfig, model: str) -> int | None:
    """Layers of a model, where they are alike."""
    if model in (scores := _local_scores(config)):
        return depth(scores[model])
    trunk = config.critic.trunk
    if model == "policy" or trunk in ("policy", "shared"):
        return depth(config.policy)
    return depth(config.reward) if trunk == "reward" else depth(ModelSource(path=trunk))


def _module(shapes: Shapes, model: str) -> nn.Module:
    module = {"policy": shapes.policy, "critic": shapes.critic, **shapes.scores}[model]
    assert module is not None
    return module
