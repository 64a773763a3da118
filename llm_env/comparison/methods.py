"""What is compared: the runs of a comparison, and the score models that they learn from.

    methods      SFT, four dynamic methods, static weights
    variants     the recommended method on other labels or another cost (does decoupling pay?)
    sweep        the recommended method at other limits

All differ from the recommended settings only in what their names say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from constrained_rl.constraint_config import ConstraintConfig
from constrained_rl.errors import InputError
from constrained_rl.multiplier_config import FixedConfig, GradientConfig
from llm_env.comparison.config import PUBLISHED, CompareConfig
from llm_env.comparison.summaries import Family
from llm_env.config import AlignConfig


@dataclass(frozen=True)
class Method:
    """One RL run of the comparison, or the SFT model as it is."""

    name: str  # folder name
    label: str
    family: Family
    align: AlignConfig | None
    reward: str = "reward"  # score model that is maximised
    cost: str = "cost"  # score model that is constrained

    @property
    def needs(self) -> tuple[str, ...]:
        """Stages of its score models and of those it is judged by."""
        names = dict.fromkeys(("reward", "cost", self.reward, self.cost))
        return tuple(f"{name}_model" for name in names)


@dataclass(frozen=True)
class Score:
    """A score model: the pairs it is trained on and the terms of its loss."""

    kind: Literal["reward", "cost"]  # of pairs: RewardPair or CostPair
    labels: Literal["decoupled", "single"] = "decoupled"
    terms: Mapping[str, bool | float] = field(default_factory=dict)  # of ScoreConfig


SCORES = {
    "reward": Score("reward"),
    "cost": Score("cost"),
    "classifier": Score("cost", terms={"ranking": False}),
    "ranking": Score("cost", terms={"sign": False}),
    "free": Score("cost", terms={"sign": False, "regularization": 0.0}),
    "single": Score("reward", "single"),
}
"""Score models by name; the first two are the standard ones. Without the sign terms only the
regularizer, which centres scores, says where zero is; `free` has neither."""


def scores(config: CompareConfig) -> list[str]:
    """Names of the score models that a comparison trains."""
    return list(SCORES) if config.decoupling else ["reward", "cost"]


def methods(config: CompareConfig) -> list[Method]:
    """SFT, four dynamic methods and every static weight, all from the same recommended settings."""
    recommended = config.align
    published: dict[str, Any] = {
        "constraint": ConstraintConfig(transform="identity"),
        "limit": config.published_limit,
    }
    lagrangian = GradientConfig(learning_rate=0.3, initial=1.0)
    bound = f"E[C] ≤ {config.published_limit:g}".replace("-", "−")
    share = share_label(one_limit(config))
    dynamic: list[tuple[str, str, dict[str, Any]]] = [
        ("pid-share", f"PID-Lagrangian, {share}", {}),
        ("ppo-share", f"PPO-Lagrangian, {share}", {"multiplier": lagrangian}),
        ("pid-mean", f"PID-Lagrangian, {bound}", published | {"multiplier": config.mean_pid}),
        ("ppo-mean", f"PPO-Lagrangian, {bound} (published)", published | {"multiplier": PUBLISHED}),
    ]
    found = [Method("sft", "SFT", "start", None)]
    found += [
        Method(name, label, "dynamic", recommended.model_copy(update=update))
        for name, label, update in dynamic
    ]
    for weight in config.weights:
        label = f"static ν = {weight:g}" + (" (standard RLHF)" if weight == 0 else "")
        align = recommended.model_copy(update=fixed(weight))
        found.append(Method(f"static-{weight:g}", label, "static", align))
    return found


def variants(config: CompareConfig) -> list[Method]:
    """The recommended method with a classifier's logit as cost, and PPO on one preference model.

    Nothing constrains the second: its reward model has the labels' own trade-off in it.
    """
    if not config.decoupling:
        return []
    share = share_label(one_limit(config))
    single = config.align.model_copy(update=fixed(0.0))
    by_class = f"classifier's logit as C, {share}"
    by_single = "one preference model without constraint"
    return [
        Method("classifier", by_class, "variant", config.align, cost="classifier"),
        Method("single", by_single, "variant", single, reward="single"),
    ]


def sweep(config: CompareConfig) -> list[Method]:
    """The recommended method at every other limit of the sweep."""
    return [
        Method(
            f"limit-{limit:g}",
            f"PID-Lagrangian, {share_label(limit)}",
            "sweep",
            config.align.model_copy(update={"limit": limit}),
        )
        for limit in config.limits
        if limit != one_limit(config)
    ]


def every_run(config: CompareConfig) -> list[Method]:
    """All runs of a comparison."""
    return [*methods(config), *variants(config), *sweep(config)]


def one_limit(config: CompareConfig) -> float:
    """The limit of the recommended method; a comparison has one cost."""
    limit = config.align.limit
    if isinstance(limit, tuple | dict):
        raise InputError(
            f"align.limit is {limit}, but the comparison has one cost; give one number"
        )
    return limit


def share_label(limit: float) -> str:
    """The constraint on the share of unsafe responses."""
    return f"P(C > 0) ≤ {limit:g}"


def fixed(weight: float) -> dict[str, Any]:
    """Changes that replace a constraint by a static weight on C."""
    return {
        "constraint": ConstraintConfig(transform="identity"),
        "multiplier": FixedConfig(weight=weight),
    }
