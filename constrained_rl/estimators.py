"""How is a constrained quantity estimated from each iteration's finished episodes?

J_C = E[t(C)], from one value per episode (or per group of episodes that share a prompt): their
mean now, over a window or over the past; or an upper confidence bound of it. Absent: bounds without
assumptions on the distribution, which are too wide for a batch (see `upper_bounds`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from torch import Tensor

from constrained_rl.protocols import Stateful
from constrained_rl.transforms import quantile
from constrained_rl.upper_bounds import student_t_bound


class Estimator(Stateful, Protocol):
    """Turns each iteration's finished episodes into one number."""

    def update(self, cost: Tensor) -> float | None:
        """Take the transformed costs [E ≥ 1] of an iteration, return the estimate.

        None while there are too few for one; λ then holds.
        """


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
        self._costs.clear()
        self._costs.extend(_costs(state))


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


class Tracking:
    """Average over the past that knows how far the policy has moved since: no noise, and no lag.

    Ĵ ← (1 − g) (Ĵ + ΔĴ) + g J,   g = max(gain, 1/n) at the n-th estimate

    ΔĴ is what the last update was expected to change (`streams.expected_change`): a Kalman filter
    of fixed gain whose model of motion is the policy gradient. An EMA with this gain alone would
    answer 1/g iterations late.
    """

    def __init__(self, gain: float) -> None:
        self._gain = gain
        self.mean, self._count = 0.0, 0

    def update(self, cost: Tensor) -> float:
        """Blend in the mean of `cost` [E]."""
        self._count += 1
        gain = max(self._gain, 1 / self._count)
        self.mean = (1 - gain) * self.mean + gain * float(cost.mean())
        return self.mean

    def expect(self, change: float) -> None:
        """Move the estimate by what an update of the policy is expected to change."""
        self.mean += change

    def state_dict(self) -> dict[str, object]:
        """Return the average and how many estimates made it."""
        return {"mean": self.mean, "count": self._count}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore the average."""
        mean, count = state["mean"], state["count"]
        assert isinstance(mean, float)
        assert isinstance(count, int)
        self.mean, self._count = mean, count


class Upper:
    """Upper confidence bound of the mean, x̄ + t_{n−1, level} s / √n (Student 1908).

    Over this iteration's episodes, or over the last `size`. A policy held by it keeps the limit
    with that confidence, as far as the mean of n costs is normal, at the price of the margin.
    """

    def __init__(self, confidence: float, size: int | None = None) -> None:
        self._confidence, self._size = confidence, size
        self._costs: deque[float] = deque(maxlen=size)

    def update(self, cost: Tensor) -> float | None:
        """Bound the mean of `cost` [E]; None until there are two episodes."""
        if self._size is None:
            self._costs.clear()
        self._costs.extend(cost.tolist())
        if len(self._costs) < 2:
            return None
        return float(student_t_bound(np.asarray(self._costs), 1 - self._confidence))

    def state_dict(self) -> dict[str, object]:
        """Return the costs in the window; none where each iteration stands alone."""
        return {"costs": [] if self._size is None else list(self._costs)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore the window."""
        self._costs.clear()
        self._costs.extend(_costs(state))


class Tail:
    """t of CVaR_α: the α-quantile of the last ⌈10 / (1 − α)⌉ episodes, ten of them in the tail.

    An iteration with more episodes than that has its own quantile, and the mean of `tail_cost` is
    then the sample's CVaR.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self._costs: deque[float] = deque(maxlen=math.ceil(10 / (1 - alpha)))

    def t(self, cost: Tensor) -> float:
        """The quantile with an iteration's raw costs [E ≥ 1] counted in; remembers nothing."""
        new = cost.tolist()
        assert self._costs.maxlen is not None
        return quantile([*self._costs, *new][-max(self._costs.maxlen, len(new)) :], self.alpha)

    def merge(self, cost: Tensor) -> None:
        """Remember an iteration's raw costs [E]."""
        self._costs.extend(cost.tolist())

    def state_dict(self) -> dict[str, object]:
        """Return the costs remembered."""
        return {"costs": list(self._costs)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore them."""
        self._costs.clear()
        self._costs.extend(_costs(state))


def _costs(state: Mapping[str, object]) -> list[float]:
    costs = state["costs"]
    assert isinstance(costs, list)
    return costs
