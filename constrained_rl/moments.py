"""Running mean and variance of the columns of a stream of rows.

Absent: exponential forgetting; every row ever merged counts alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def merged(mean: Tensor, var: Tensor, count: Tensor | int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [S] after merging rows `x` [M ≥ 1, S] (Chan et al. 1979).

    δ = x̄ − μ,  N = n + m:   μ ← μ + δ m/N,   σ² ← (n σ² + m s² + δ² n m/N) / N
    """
    new = len(x)
    total = count + new
    shift = x.mean(0) - mean
    second = var * count + x.var(0, correction=0) * new + shift.square() * count * new / total
    return mean + shift * new / total, second / total


class Moments:
    """Mean and variance of everything merged so far; 0 and 1 before that. float64 on the CPU.

    Args:
        size: columns, S.
    """

    def __init__(self, size: int) -> None:
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.var = torch.ones(size, dtype=torch.float64)
        self.count = 0

    def merge(self, x: Tensor) -> None:
        """Merge rows `x` [M, S]; none change nothing."""
        if len(x) == 0:
            return
        x = x.detach().double().cpu()
        self.mean, self.var = merged(self.mean, self.var, self.count, x)
        self.count += len(x)

    def state_dict(self) -> dict[str, object]:
        """Mean, variance and number of rows."""
        return {"mean": self.mean, "var": self.var, "count": self.count}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`."""
        mean, var, count = state["mean"], state["var"], state["count"]
        assert isinstance(mean, Tensor)
        assert isinstance(var, Tensor)
        assert isinstance(count, int)
        self.mean, self.var, self.count = mean.clone(), var.clone(), count
