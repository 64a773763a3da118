"""How does λ move? The `multiplier` section of a configuration, one model for each controller."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from constrained_rl.multipliers import Gradient
from constrained_rl.sections import Count, NonNegative, Positive, Section, Share


class FixedConfig(Section):
    """Static reward shaping."""

    kind: Literal["fixed"] = "fixed"
    """controller"""
    weight: NonNegative | tuple[NonNegative, ...] = 1.0
    """ν, one for all costs or one each"""


class GradientConfig(Section):
    """Dual gradient ascent."""

    kind: Literal["gradient"] = "gradient"
    """controller"""
    learning_rate: Positive = 0.05
    """η, per unit of violation"""
    initial: NonNegative | tuple[NonNegative, ...] = 0.0
    """λ at the start, one for all costs or one each"""
    parameterization: Literal["linear", "log", "softplus"] = "linear"
    """projected ascent on λ, Safe RLHF's published rule on ln λ, or λ = softplus(ξ)"""
    optimizer: str = "sgd"
    """a class of torch.optim by its name in any case: sgd, adam, RMSprop, …"""
    optimizer_options: dict[str, object] = Field(default_factory=dict)
    """further arguments of the optimizer, e.g. {betas = [0.5, 0.9]}"""
    delay: Annotated[int, Field(ge=0)] = 0
    """updates before λ may move, counted after ppo.critic_warmup"""
    maximum: Positive | None = None
    """upper bound of λ"""

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        count = len(self.initial) if isinstance(self.initial, tuple) else 1
        Gradient(count, **self.model_dump(exclude={"kind"}))
        return self


class PIDConfig(Section):
    """PID control (Stooke et al. 2020)."""

    kind: Literal["pid"] = "pid"
    """controller"""
    kp: NonNegative = 0.5
    """proportional gain"""
    ki: NonNegative = 0.05
    """integral gain per update"""
    kd: NonNegative = 0.0
    """derivative gain, on rising cost only"""
    initial: NonNegative | tuple[NonNegative, ...] = 0.0
    """λ and integral at the start, one for all costs or one each"""
    proportional_ema: Share = 0.0
    """weight of the past in the proportional term"""
    derivative_ema: Share = 0.0
    """weight of the past in the derivative's cost"""
    derivative_delay: Count = 1
    """updates between the two costs of the derivative"""
    maximum: Positive | None = None
    """upper bound of λ and of the integral"""
    relative: bool = False
    """measure the violation in units of |limit|"""


class ScaleFreeConfig(Section):
    """PI control in units of the problem: needs no tuning per problem."""

    kind: Literal["scale_free"] = "scale_free"
    """controller"""
    kp: NonNegative = 3.0
    """proportional gain"""
    ki: NonNegative = 0.1
    """integral gain per update, times the factor of the learning rate's schedule"""
    initial: NonNegative | tuple[NonNegative, ...] = 0.0
    """λ at the start, in true units, one for all costs or one each"""
    maximum: Positive = 50.0
    """upper bound of the integral, in units of the ratio of the advantages' scales"""


MultiplierConfig = Annotated[
    FixedConfig | GradientConfig | PIDConfig | ScaleFreeConfig, Field(discriminator="kind")
]
