"""Constraints E[transform(cost)] ≤ limit: what is measured, and how it is estimated.

The cost is the raw undiscounted sum of a finished episode. A transform changes what is bounded, in
the estimate *and* in the cost stream that the policy learns from. Absent: CVaR, confidence bounds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from constrained_rl.errors import InputError, require_finite
from constrained_rl.protocols import Stateful
from constrained_rl.rollout import Episodes, Rollout, Streams

TransformKind = Literal["identity", "probability", "indicator"]


def transform_cost(cost: Tensor, kind: TransformKind) -> Tensor:
    """Transform finished episodes' costs: C, σ(C) (C is a logit of "unsafe"), or 1[C > 0]."""
    match kind:
        case "identity":
            return cost
        case "probability":
            return torch.sigmoid(cost)
        case "indicator":
            return (cost > 0).to(cost.dtype)


class Estimator(Stateful, Protocol):
    """Turns each iteration's finished episodes into one number."""

    def update(self, cost: Tensor) -> float:
        """Take the transformed costs [E ≥ 1] of an iteration, return the estimate."""


class Mean:
    """Mean over the episodes that finished in this iteration."""

    def update(self, cost: Tensor) -> float:
        """Return the mean of `cost` [E]."""
        return float(cost.mean())

    def state_dict(self) -> dict[str, object]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Nothing to restore."""


class Window:
    """Mean over the last `size` finished episodes (Safe RLHF: 128).

    A window longer than the policy's response time makes λ oscillate: keep it near one iteration.
    """

    def __init__(self, size: int) -> None:
        self._costs: deque[float] = deque(maxlen=size)

    def update(self, cost: Tensor) -> float:
        """Append `cost` [E], return the window's mean."""
        self._costs.extend(cost.tolist())
        return sum(self._costs) / len(self._costs)

    def state_dict(self) -> dict[str, object]:
        """Return the costs in the window."""
        return {"costs": list(self._costs)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore the window."""
        costs = state["costs"]
        assert isinstance(costs, list)
        self._costs.clear()
        self._costs.extend(costs)


class EMA:
    """Exponential average of the iterations' means: Ĵ ← d Ĵ + (1 − d) J, starting at the first."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._mean: float | None = None

    def update(self, cost: Tensor) -> float:
        """Blend in the mean of `cost` [E]."""
        mean = float(cost.mean())
        old = mean if self._mean is None else self._mean
        self._mean = self._decay * old + (1 - self._decay) * mean
        return self._mean

    def state_dict(self) -> dict[str, object]:
        """Return the average."""
        return {"mean": self._mean}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore the average."""
        mean = state["mean"]
        assert mean is None or isinstance(mean, float)
        self._mean = mean


@dataclass(frozen=True)
class Constraint:
    """E[transform(cost[channel])] ≤ limit, the limit in the transformed cost's units."""

    name: str
    limit: float
    channel: int = 0
    transform: TransformKind = "identity"

    def __post_init__(self) -> None:
        """Refuse a limit that is not a number."""
        if self.limit != self.limit or abs(self.limit) == float("inf"):
            raise InputError(
                f"limit of constraint '{self.name}' is {self.limit}; give a finite number"
            )


@dataclass(frozen=True)
class Signal:
    """What a multiplier may look at, one entry per constraint (float64)."""

    cost: Tensor  # [K] estimates of E[transform(cost)]
    limit: Tensor  # [K]
    cost_spread: Tensor  # [K] standard deviation of transformed costs over the episodes
    cost_scale: Tensor  # [K] standard deviation of each cost's advantages, before mixing
    reward_scale: float  # the same of the reward's advantages

    @property
    def violation(self) -> Tensor:
        """Return J_C − limit, [K]; positive means violated."""
        return self.cost - self.limit


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

    def signal(self, episodes: Episodes, streams: Streams) -> Signal | None:
        """Update the estimates; `None` when no episode finished, and then λ holds."""
        if len(episodes) == 0 or (self.corrected and streams.corrected is None):
            return None
        costs = [transform_cost(episodes.cost[:, c.channel], c.transform) for c in self.constraints]
        spread = [float(cost.double().std(correction=0)) for cost in costs]
        if self.corrected and streams.corrected is not None:
            known = streams.corrected.to(episodes.cost)
            costs = [cost - cost.mean() + known[k] for k, cost in enumerate(costs)]
        estimates = [e.update(cost) for e, cost in zip(self.estimators, costs, strict=True)]
        cost = torch.tensor(estimates, dtype=torch.float64)
        scale = streams.advantage[streams.mask].double().std(0, correction=0).cpu()
        return Signal(
            cost=require_finite("episode cost estimate", cost),
            limit=torch.tensor([c.limit for c in self.constraints], dtype=torch.float64),
            cost_spread=torch.tensor(spread, dtype=torch.float64),
            cost_scale=scale[1:],
            reward_scale=float(scale[0]),
        )

    def streams(self, rollout: Rollout) -> Tensor:
        """Cost streams [B, T, K]: step costs, or the transformed episode cost at its last decision.

        With a transform, the cost of a decision depends on the episode so far: unless the whole
        cost falls on the last decision (as in token generation), the observation must show it.
        """
        rows, decisions = rollout.reward.shape
        stream = rollout.reward.new_zeros(rows, decisions, len(self))
        episodes = rollout.episodes
        for k, constraint in enumerate(self.constraints):
            if constraint.transform == "identity":
                stream[..., k] = rollout.cost[..., constraint.channel]
            else:
                paid = transform_cost(episodes.cost[:, constraint.channel], constraint.transform)
                stream[episodes.row, episodes.end, k] = paid.to(stream)
        return stream

    def state_dict(self) -> dict[str, object]:
        """State of all estimators."""
        return {"estimators": [e.state_dict() for e in self.estimators]}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore all estimators."""
        saved = state["estimators"]
        assert isinstance(saved, list)
        for estimator, entry in zip(self.estimators, saved, strict=True):
            estimator.load_state_dict(entry)
