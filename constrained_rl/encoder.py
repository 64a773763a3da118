"""Observations as vectors for an MLP: flattened, one-hot or normalised by running statistics.

Statistics are frozen while an iteration collects and updates. Which spaces are taken is said in
`spaces`. Absent: image encoders, recurrence.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from constrained_rl.config import NetworkConfig
from constrained_rl.moments import merged
from constrained_rl.rollout import Rollout
from constrained_rl.spaces import require_observation_space


class RunningNorm(nn.Module):
    """Standardise by running mean and variance (Chan et al.'s parallel update), clipped to ±10.

    The arithmetic is float64, so that neither a column's offset nor its unit is lost; a column that
    has not varied yet gives 0. Before any rows, values pass unchanged.

    Args:
        size: columns.
        resolution: relative spacing of the numbers that come; a deviation below that of the numbers
            around the mean is their rounding, and counts as 0.
    """

    mean: Tensor
    var: Tensor
    count: Tensor
    epsilon: Tensor
    scale: Tensor

    def __init__(self, size: int, resolution: float = 0.0) -> None:
        super().__init__()
        self._resolution = resolution
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("var", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        # Added to the variance. Only policies saved with 1e-8 have one: they act as they did.
        self.register_buffer("epsilon", torch.zeros((), dtype=torch.float64))
        # 1 / std, computed once for the many forwards between two merges; 0 for constants
        self.register_buffer("scale", torch.ones(size, dtype=torch.float64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (x − mean) / std, clipped, in the dtype of `x`."""
        return ((x.double() - self.mean) * self.scale).clamp(-10, 10).to(x.dtype)

    def merge(self, x: Tensor) -> None:
        """Merge rows of `x` [M, size] into the statistics."""
        # From a point among the numbers, their offset costs no digits, and constants vary by 0.
        anchor = self.mean.clone() if self.count > 0 else x[0].double()
        mean, var = merged(self.mean - anchor, self.var, self.count, x.double() - anchor)
        self.mean.copy_(mean + anchor)
        rounding = (self._resolution * self.mean).square()
        self.var.copy_(torch.where(var > rounding, var, 0.0))
        self.count += len(x)
        self._rescale()

    def _rescale(self) -> None:
        variance = self.var + self.epsilon
        self.scale.copy_(torch.where(variance > 0, variance, math.inf).rsqrt())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:  # noqa: ANN401
        # Folders without an epsilon are of versions that added 1e-8.
        state_dict.setdefault(f"{prefix}epsilon", torch.tensor(1e-8, dtype=torch.float64))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._rescale()


class Encoder(nn.Module):
    """Observations of a Gymnasium space as normalised vectors [..., size]."""

    def __init__(self, space: gymnasium.Space[object], config: NetworkConfig) -> None:
        super().__init__()
        require_observation_space(space)
        # Categories are counted from `_first`; empty where observations are numbers already.
        self._categories, self._first = _categories(space)
        shape = space.shape or ()
        self._dims = len(shape)
        self.size = sum(self._categories) or int(np.prod(shape))
        self.norm: RunningNorm | None = None
        self.wide = False  # observations stay float64 until they are normalised
        # One-hot, binary and tabular observations are on one scale already.
        if config.normalize_observations and isinstance(space, spaces.Box):
            self.norm = RunningNorm(self.size, _resolution(space))
            self.wide = not np.can_cast(space.dtype, np.float32)  # which would round them

    def raw(self, obs: Tensor) -> Tensor:
        """Flatten a space's dimensions, one-hot its categories."""
        flat = obs.flatten(-self._dims) if self._dims else obs.unsqueeze(-1)
        if not self._categories:
            return flat
        parts = [
            F.one_hot(flat[..., i].long() - first, count)
            for i, (count, first) in enumerate(zip(self._categories, self._first, strict=True))
        ]
        return torch.cat(parts, dim=-1).to(obs.dtype)

    def forward(self, obs: Tensor) -> Tensor:
        """Vectors for the first layer, in the dtype of `obs`."""
        x = self.raw(obs)
        return x if self.norm is None else self.norm(x)

    def update_statistics(self, rollout: Rollout) -> None:
        """Merge the states in which decisions were taken."""
        if self.norm is not None and isinstance(rollout.obs, Tensor):
            decided = rollout.obs[:, : rollout.mask.shape[1]][rollout.mask]
            self.norm.merge(self.raw(decided))


def _categories(space: gymnasium.Space[object]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Number of categories and first category of each part of an observation."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),), (int(space.start),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(space.nvec.ravel().tolist()), tuple(space.start.ravel().tolist())
    return (), ()


def _resolution(space: spaces.Box) -> float:
    """Relative spacing of a box's numbers; whole numbers are exact."""
    kind = np.dtype(space.dtype)
    return float(np.finfo(kind.name).eps) if kind.kind == "f" else 0.0
