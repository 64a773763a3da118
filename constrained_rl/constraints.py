"""Constraints E[transform(cost)] ≤ limit: what is measured, and what the policy is charged.

The cost is the raw undiscounted sum of a finished episode. A transform changes what is bounded, in
the estimate *and* in the cost stream that the policy learns from. Formulas: `transforms`;
estimates: `estimators`. Absent: chance constraints on single steps, one limit per named group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from constrained_rl.errors import InputError, require_finite
from constrained_rl.estimators import Estimator, Tail, Tracking
from constrained_rl.feasibility import CANCELLED, ROUNDING
from constrained_rl.rollout import Episodes, Rollout, Streams
from constrained_rl.transforms import (
    Per,
    TransformKind,
    group_excess,
    group_payment,
    transform_cost,
)

ENDS = 0.1
"""gain of the average of how many episodes end in a window; they come in bursts, since episodes
that began together end together"""


@dataclass(frozen=True)
class Constraint:
    """E[transform(cost[channel])] ≤ limit, the limit in the transformed cost's units."""

    name: str
    limit: float
    channel: int = 0
    transform: TransformKind = "identity"
    threshold: float = 0.0  # c of probability, indicator and excess, or of the groups' means
    alpha: float = 0.9  # of cvar
    per: Per = "all"  # "group": E_g[(mean over g of transform(cost) − threshold)⁺] ≤ limit

    def __post_init__(self) -> None:
        """Refuse a limit that is not a number, or that nothing can keep."""
        if not math.isfinite(self.limit):
            raise InputError(
                f"limit of constraint '{self.name}' is {self.limit}; give a finite number"
            )
        signed = self.transform in ("identity", "cvar") and self.per == "all"
        if self.limit < 0 and not signed:
            raise InputError(
                f"limit of constraint '{self.name}' is {self.limit:g}, but {self.quantity} is "
                "never negative; give a limit of 0 or more, or use "
                "constraint.transform=identity"
            )

    @property
    def quantity(self) -> str:
        """What is bounded, as a formula."""
        c = f"{self.threshold:g}".replace("-", "−")
        minus = "" if self.threshold == 0 else f" − {c}" if self.threshold > 0 else f" + {c[1:]}"
        if self.per == "group":
            mean = {"probability": "mean σ(C)", "indicator": "share of C > 0"}
            return f"E[({mean.get(self.transform, 'mean C')}{minus})⁺ per prompt]"
        match self.transform:
            case "identity":
                return "E[C]"
            case "probability":
                return f"E[σ(C{minus})]"
            case "indicator":
                return f"P(C > {c})"
            case "excess":
                return f"E[(C{minus})⁺]"
            case "cvar":
                return f"CVaR {self.alpha:g} of C"

    def value(
        self,
        cost: Tensor,  # [E] raw
        t: float | None = None,
        group: Tensor | None = None,  # [E]
    ) -> Tensor:  # [E], or [G] per group
        """What the estimate averages, one number per episode or per group.

        Episodes of which no groups are known (evaluations answer every prompt once) count as
        groups of one: their excess is an upper bound of the groups'.
        """
        if self.per == "all":
            return transform_cost(cost, self.transform, self.threshold, self.alpha, t)
        if group is None:
            group = torch.arange(len(cost), device=cost.device)
        return group_excess(transform_cost(cost, self.transform), group, self.threshold)

    def payment(
        self,
        cost: Tensor,  # [E] raw
        t: float | None = None,
        group: Tensor | None = None,  # [E]
    ) -> Tensor:  # [E]
        """What each episode pays at its last decision."""
        if self.per == "all":
            return transform_cost(cost, self.transform, self.threshold, self.alpha, t)
        assert group is not None
        return group_payment(transform_cost(cost, self.transform), group, self.threshold)


@dataclass(frozen=True)
class Signal:
    """What a multiplier may look at, one entry per constraint (float64)."""

    cost: Tensor  # [K] estimates of E[transform(cost)]
    limit: Tensor  # [K]
    cost_spread: Tensor  # [K] standard deviation of transformed costs over episodes or groups
    cost_scale: Tensor  # [K] standard deviation of each cost's advantages, before mixing
    reward_scale: float  # the same of the reward's advantages
    length: float  # mean decisions of an episode
    pace: float = 1.0  # factor of the policy's learning rate in this iteration's schedule

    @property
    def violation(self) -> Tensor:
        """Return J_C − limit, [K]; positive means violated, 0 met as far as rounding can tell."""
        excess = self.cost - self.limit
        rounding = ROUNDING * self.limit.abs()
        if len(self.cost_scale) == len(self.cost):  # a single shaped stream has no costs' scales
            rounding = rounding + CANCELLED * self.cost_scale
        return torch.where(excess.abs() <= rounding, 0.0, excess)


class Constraints:
    """K constraints with one estimator each."""

    def __init__(
        self,
        constraints: Sequence[Constraint],
        estimators: Sequence[Estimator],
        corrected: bool = False,
    ) -> None:
        self.constraints = tuple(constraints)
        self.estimators = tuple(estimators)
        self.corrected = corrected  # by the critics' values, see `streams.corrected_costs`
        self._ends = Tracking(ENDS)
        self._tails = {k: Tail(c.alpha) for k, c in enumerate(constraints) if c.transform == "cvar"}

    def __len__(self) -> int:
        """Number of constraints K."""
        return len(self.constraints)

    def check_channels(self, channels: int) -> None:
        """Raise unless every constraint names a cost channel that exists."""
        for constraint in self.constraints:
            if constraint.channel >= channels:
                raise InputError(
                    f"constraint '{constraint.name}' is on cost channel {constraint.channel}, but "
                    f"the environment reports {channels} cost(s); give one limit per cost"
                )

    def signal(self, episodes: Episodes, streams: Streams, pace: float = 1.0) -> Signal | None:
        """Update the estimates; `None` when no episode finished, and then λ holds.

        `None` also while an estimator has too few episodes for a number.
        """
        self._ends.update(torch.tensor([len(episodes)], dtype=torch.float64))
        if len(episodes) == 0 or (self.corrected and streams.corrected is None):
            return None
        group = None if streams.group is None else streams.group[episodes.row]
        costs = [
            c.value(episodes.cost[:, c.channel], self._t(k, episodes), group)
            for k, c in enumerate(self.constraints)
        ]
        for k, tail in self._tails.items():
            tail.merge(episodes.cost[:, self.constraints[k].channel])
        spread = [float(cost.double().std(correction=0)) for cost in costs]
        if self.corrected and streams.corrected is not None:
            known = streams.corrected.to(episodes.cost)
            costs = [cost - cost.mean() + known[k] for k, cost in enumerate(costs)]
        found = [e.update(cost) for e, cost in zip(self.estimators, costs, strict=True)]
        estimates = [estimate for estimate in found if estimate is not None]
        if len(estimates) < len(found):
            return None
        cost = torch.tensor(estimates, dtype=torch.float64)
        scale = streams.advantage[streams.mask].double().std(0, correction=0).cpu()
        return Signal(
            cost=require_finite("episode cost estimate", cost),
            limit=torch.tensor([c.limit for c in self.constraints], dtype=torch.float64),
            cost_spread=torch.tensor(spread, dtype=torch.float64),
            cost_scale=scale[1:],
            reward_scale=float(scale[0]),
            length=float(streams.mask.sum()) / len(episodes),
            pace=pace,
        )

    @property
    def ends(self) -> float:
        """Episodes that end in a window, on average."""
        return self._ends.mean

    @property
    def tracking(self) -> bool:
        """Whether an estimate wants to know what an update of the policy changes."""
        return any(isinstance(estimator, Tracking) for estimator in self.estimators)

    def expect(self, change: Tensor) -> None:
        """Tell the estimates what the update just made is expected to change, [K]."""
        for estimator, moved in zip(self.estimators, change.tolist(), strict=True):
            if isinstance(estimator, Tracking):
                estimator.expect(moved)

    def streams(self, rollout: Rollout) -> Tensor:
        """Cost streams [B, T, K]: step costs, or the transformed episode cost at its last decision.

        With a transform, the cost of a decision depends on the episode so far: unless the whole
        cost falls on the last decision (as in token generation), the observation must show it.
        """
        rows, decisions = rollout.reward.shape
        stream = rollout.reward.new_zeros(rows, decisions, len(self))
        episodes = rollout.episodes
        group = self._groups(rollout)
        for k, constraint in enumerate(self.constraints):
            if constraint.transform == "identity" and constraint.per == "all":
                stream[..., k] = rollout.cost[..., constraint.channel]
            elif len(episodes) > 0:
                cost = episodes.cost[:, constraint.channel]
                paid = constraint.payment(cost, self._t(k, episodes), group)
                stream[episodes.row, episodes.end, k] = paid.to(stream)
        return stream

    def _t(self, k: int, episodes: Episodes) -> float | None:
        """Threshold of the tail of constraint k, for this iteration's estimate and stream alike."""
        tail = self._tails.get(k)
        return None if tail is None else tail.t(episodes.cost[:, self.constraints[k].channel])

    def _groups(self, rollout: Rollout) -> Tensor | None:  # [E]
        """The group of each episode, where a constraint is per group."""
        names = [c.name for c in self.constraints if c.per == "group"]
        if not names:
            return None
        if rollout.group is None:
            raise InputError(
                f"constraint '{names[0]}' is per group, but the collector names no group of rows "
                "that share a prompt (Rollout.group); use constraint.per=all, or "
                "constraint.transform=excess"
            )
        group = rollout.group[rollout.episodes.row]
        _, members = torch.unique(group, return_counts=True)
        if bool((members < 2).any()):
            raise InputError(
                f"constraint '{names[0]}' is per group, but {int((members < 2).sum())} of "
                f"{len(members)} groups have a single member; generate at least 2 responses per "
                "prompt (align.responses_per_prompt), or use constraint.transform=excess, which is "
                "the constraint on groups of one"
            )
        return group

    def state_dict(self) -> dict[str, object]:
        """State of all estimators, and of the tails."""
        return {
            "estimators": [e.state_dict() for e in self.estimators],
            "tails": {str(k): tail.state_dict() for k, tail in self._tails.items()},
            "ends": self._ends.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`."""
        saved, tails, ends = state["estimators"], state["tails"], state["ends"]
        assert isinstance(saved, list)
        assert isinstance(ends, Mapping)
        self._ends.load_state_dict(ends)
        assert isinstance(tails, Mapping)
        for estimator, entry in zip(self.estimators, saved, strict=True):
            estimator.load_state_dict(entry)
        for k, tail in self._tails.items():
            tail.load_state_dict(tails[str(k)])
