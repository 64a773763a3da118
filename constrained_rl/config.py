"""Typed configuration of a run on an environment. Frozen; unknown keys are refused.

The docstring under a field is its help text. Precedence: preset < file < command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from constrained_rl.advantages import AdvantageRule
from constrained_rl.constraint_config import ConstraintConfig
from constrained_rl.multiplier_config import MultiplierConfig, ScaleFreeConfig
from constrained_rl.sections import (
    Count,
    Device,
    Limit,
    NonNegative,
    Positive,
    Schedule,
    Section,
    Seed,
    Share,
)

LoggerName = Literal["csv", "tensorboard", "wandb", "trackio"]
_OF_CRITICS = (
    "value_clip",
    "normalize_values",
    "critic_warmup",
    "critic_learning_rate",
    "gae_lambda",
    "cost_gae_lambda",
)


class EnvConfig(Section):
    """The environment."""

    id: str = "constrained_rl/Detour-v0"
    """Gymnasium id; `crl envs` lists the built-in ones."""
    file: str | None = None
    """a finite CMDP (.npz, see `crl solve`) to play instead of an id; its limits are the default"""
    digest: str | None = None
    """SHA-256 of that file, written when a run begins; a file of another content is refused"""
    num_envs: Count = 16
    """sub-environments stepped together"""
    burn_in: Annotated[int, Field(ge=0)] = 0
    """vector steps played before the first window (not in total_steps), so that its episodes are as
    long as later ones: at first only short ones have ended"""
    vectorization: Literal["auto", "sync", "async"] = "auto"
    """one after another, each in a process of its own, or natively (else sync)"""
    kwargs: dict[str, object] = Field(default_factory=dict)
    """passed to the environment's constructor"""

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_file(cls, data: object) -> object:
        if not isinstance(data, dict) or not isinstance(data.get("file"), str):
            return data
        name = Path(data["file"]).name
        if data.get("id", name) != name:
            raise ValueError(
                f"found both file = {data['file']!r} and id = {data['id']!r}; give one of them"
            )
        return data | {"id": name}

    @model_validator(mode="after")
    def _plain_file(self) -> Self:
        if self.file is None and self.digest is not None:
            raise ValueError(f"digest is {self.digest!r}, but there is no file; leave it out")
        if self.file is not None and (self.kwargs or self.vectorization != "auto"):
            raise ValueError(
                f"file = {self.file!r} is played natively and has no constructor; leave out kwargs "
                "and vectorization"
            )
        return self


class NetworkConfig(Section):
    """MLP policies and critics."""

    hidden: tuple[Count, ...] = (64, 64)
    """width of each tanh layer"""
    normalize_observations: bool = True
    """standardise observations by running statistics, frozen during each update"""
    deviation: Literal["constant", "state"] = "constant"
    """of Gaussian policies: one for all states, or a second head of the network"""
    bounds: Literal["clip", "squash"] = "clip"
    """of Gaussian actions: clip the draw when it is executed, or squash it by tanh"""


class PPOConfig(Section):
    """PPO (Schulman et al. 2017) over advantages mixed by λ."""

    former_defaults: ClassVar[dict[str, float]] = {}
    """defaults of before: a config that a run wrote then holds them, and nobody asked for them"""

    horizon: Count = 128
    """decisions per row and iteration (environments; token rows are whole responses)"""
    epochs: Count = 10
    """passes over each rollout"""
    minibatches: Count = 8
    """optimizer steps per pass"""
    micro_batch: Count | None = None
    """rows per forward; splits minibatches to save memory and never changes a result"""
    flatten: bool = True
    """shuffle single decisions instead of rows where the rollout allows it"""
    clip: Positive = 0.2
    """ratio clip ε"""
    dual_clip: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """c > 1: bound the loss of a bad decision at ratio c, see `losses.clipped_surrogate`"""
    value_clip: Positive | None = None
    """clip of the critics' moves, in return units (with normalize_values too)"""
    normalize_values: bool = False
    """critics predict returns standardised by running statistics, see `value_norm.ValueNorm`"""
    critic_warmup: Annotated[int, Field(ge=0)] = 0
    """first iterations in which only the critics learn: the policy and λ hold"""
    advantage: AdvantageRule = "gae"
    """gae: by critics; without any, rows that share a prompt are compared: leave_one_out keeps λ a
    price, group standardises each stream in each group (then λ is none)"""
    gamma: Share = 0.99
    """discount of the reward stream"""
    cost_gamma: Share | None = None
    """discount of the cost streams; default: as gamma"""
    gae_lambda: Share = 0.95
    """λ of GAE, reward stream"""
    cost_gae_lambda: Share | None = None
    """λ of GAE, cost streams; default: as gae_lambda"""
    learning_rate: Positive = 3e-4
    """Adam step of the policy"""
    critic_learning_rate: Positive | None = None
    """Adam step of the critics; default: as learning_rate"""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Adam's moment decays"""
    schedule: Schedule = "linear"
    """learning rates over training: constant, linear to 0, cosine to 0"""
    warmup: Share = 0.0
    """share of training over which learning rates rise from 0"""
    entropy: NonNegative = 0.0
    """weight of the entropy bonus"""
    entropy_schedule: Schedule = "linear"
    """entropy weight over training"""
    target_kl: Positive | None = None
    """stop the policy's (not the critics') steps of an iteration beyond this KL, nats/decision"""
    max_grad_norm: Positive = 1.0
    """gradient clip of each module"""
    loss_mean: Literal["token", "sequence"] = "token"
    """every decision counts alike, or every row does"""
    divide: bool = True
    """divide the mixed advantage by 1 + Σλ"""
    normalize: Literal["mixed", "spreads", "streams", "none"] = "mixed"
    """after mixing, divide by the mixture's own deviation (whiten) or by σ_r + Σ λ_k σ_k of its
    streams; whiten each stream before it (then λ is no price); or not"""
    streams: Literal["separate", "single"] = "separate"
    """one stream per cost, or the published shaping baseline's single stream R − νC"""
    kl_coefficient: NonNegative = 0.0
    """β of the KL penalty to the reference policy (token generation)"""
    kl_streams: Literal["reward", "both", "paper"] = "reward"
    """which streams pay β·KL, see `advantages.charge_kl`"""
    score_clip: Positive | None = None
    """clamp every decision's reward and cost after KL (the reference implementation: 50)"""

    @model_validator(mode="after")
    def _without_critics(self) -> Self:
        if self.advantage == "gae":
            return self
        for name in _OF_CRITICS:
            value = getattr(self, name)
            usual = type(self).model_fields[name].default
            if value not in (None, usual, self.former_defaults.get(name)):
                raise ValueError(
                    f"advantage={self.advantage!r} has no critics, but {name} is {value}; "
                    "leave it out, or use ppo.advantage=gae"
                )
        discounts = {"gamma": self.gamma, "cost_gamma": self.cost_gamma}
        for name, value in discounts.items():
            if value not in (None, 1.0):
                raise ValueError(
                    f"advantage={self.advantage!r} compares undiscounted returns of whole rows, "
                    f"but {name} is {value}; set it to 1"
                )
        return self


class CheckpointConfig(Section):
    """Checkpoints fall on fixed iterations, never on wall time."""

    every: Count = 20
    """iterations between checkpoints"""
    keep: Count = 2
    """checkpoints kept on disk"""


class Selection(Section):
    """When a run is evaluated, and which policy is kept as its best."""

    every: Annotated[int, Field(ge=0)] = 20
    """iterations between evaluations, and once at the end; 0: never"""
    select: Literal["sampled", "deterministic"] = "sampled"
    """whose return and costs decide which policy is best; constrained optima are often random"""
    patience: Count | None = None
    """stop after this many evaluations without a better feasible policy"""


class EvaluationConfig(Selection):
    """Evaluation on separate environments while training; it changes nothing in training."""

    episodes: Annotated[int, Field(ge=2)] = 32
    """episodes of each evaluation, sampled and deterministic each"""
    num_envs: Count = 32
    """sub-environments that play them, at most env.num_envs"""


class RunConfig(Section):
    """One training run on an environment."""

    preset: Literal["ppo", "static_shaping", "ppo_lagrangian", "pid_lagrangian", "scale_free"] = (
        "scale_free"
    )
    """where the defaults came from"""
    seed: Seed = 0
    """of networks, actions, minibatches and environments"""
    device: Device = "auto"
    """where networks live; auto takes a GPU when there is one"""
    threads: Count = 1
    """torch threads; small networks are fastest with one"""
    total_steps: Count = 200_000
    """decisions, rounded up to whole iterations of env.num_envs × ppo.horizon"""
    average: Share = 0.0
    """last share of training whose policies' weights are averaged into the final one; 0: the last
    policy as it is"""
    limit: Limit | None = None
    """upper bound on each expected episode cost, one for all, one each, or one each by name
    (limit.NAME=…); default: the built-in environment's"""
    constrained: bool = True
    """False ignores costs when learning (plain PPO); they are still reported"""
    env: EnvConfig = EnvConfig()
    """the environment"""
    network: NetworkConfig = NetworkConfig()
    """policies and critics"""
    ppo: PPOConfig = PPOConfig()
    """the update"""
    constraint: ConstraintConfig = ConstraintConfig()
    """what is bounded"""
    multiplier: MultiplierConfig = ScaleFreeConfig()
    """what moves λ"""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """what is kept"""
    loggers: tuple[LoggerName, ...] = ()
    """written beside metrics.jsonl: csv, tensorboard, wandb, trackio"""
    evaluation: EvaluationConfig = EvaluationConfig()
    """what is measured while training"""

    @model_validator(mode="after")
    def _has_no_groups(self) -> Self:
        if self.constraint.per == "group":
            raise ValueError(
                "constraint.per = 'group' is about responses that share a prompt; environments "
                "need constraint.per='all' (constraint.transform='excess' bounds single episodes)"
            )
        return self

    @model_validator(mode="after")
    def _has_critics(self) -> Self:
        if self.ppo.advantage != "gae":
            raise ValueError(
                f"ppo.advantage is {self.ppo.advantage!r}, which compares episodes that start "
                "alike (responses to one prompt); environments need ppo.advantage='gae'"
            )
        return self
