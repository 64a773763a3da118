"""MLP policies and critics for vector environments, with frozen-during-update normalisation.

Gaussian policies: a state-independent deviation; the Gaussian lives in coordinates where the
action box is [−1, 1], is *not* squashed, and is clipped to the box only when executed, so
log-probabilities are those of the unclipped draw. Absent: image encoders, recurrence.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Protocol

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from constrained_rl.config import NetworkConfig
from constrained_rl.errors import InputError
from constrained_rl.rollout import Rollout


class ActingPolicy(Protocol):
    """What the vector-environment collector needs of a policy."""

    def act(self, obs: Tensor, generator: torch.Generator | None, deterministic: bool) -> Tensor:
        """Draw actions [N, …] for observations [N, …], without gradients."""

    def executed(self, action: Tensor) -> NDArray[np.generic]:
        """Convert a drawn action to what the environment takes."""

    def encode(self, obs: NDArray[np.generic]) -> Tensor:
        """Convert the environment's observations [N, …] to this policy's input."""


class RunningNorm(nn.Module):
    """Standardise by running mean and variance (Chan et al.'s parallel update), clipped to ±10."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("var", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Return (x − mean) / std, clipped."""
        scale = (self.var + 1e-8).rsqrt()
        return ((x - self.mean.to(x)) * scale.to(x)).clamp(-10, 10)

    def merge(self, x: Tensor) -> None:
        """Merge rows of `x` [M, size] into the statistics."""
        x = x.double()
        count = float(len(x))
        total = self.count + count
        mean, var = x.mean(0), x.var(0, correction=0)
        shift = mean - self.mean
        second = self.var * self.count + var * count + shift.square() * self.count * count / total
        self.mean += shift * count / total
        self.var.copy_(second / total)
        self.count.copy_(total)


class Encoder(nn.Module):
    """Observations of a Gymnasium space as normalised vectors [..., size]."""

    def __init__(self, space: gymnasium.Space[object], config: NetworkConfig) -> None:
        super().__init__()
        self.categories, self._first = 0, 0
        if isinstance(space, spaces.Box):
            self.size, self._dims = int(np.prod(space.shape)), len(space.shape)
        elif isinstance(space, spaces.Discrete):
            self.size, self._dims, self.categories = int(space.n), 0, int(space.n)
            self._first = int(space.start)
        else:
            raise InputError(
                f"observations are {space}; Box and Discrete are supported, so flatten them, e.g. "
                "with gymnasium.wrappers.FlattenObservation"
            )
        # One-hot and tabular observations are on one scale already.
        self.norm = (
            RunningNorm(self.size)
            if config.normalize_observations and not self.categories
            else None
        )

    def raw(self, obs: Tensor) -> Tensor:
        """Flatten a space's dimensions, or one-hot a category."""
        if self.categories:
            return F.one_hot(obs.long() - self._first, self.categories).to(obs.dtype)
        return obs.flatten(-self._dims) if self._dims else obs.unsqueeze(-1)

    def forward(self, obs: Tensor) -> Tensor:
        """Vectors for the first layer."""
        x = self.raw(obs)
        return x if self.norm is None else self.norm(x)

    def update_statistics(self, rollout: Rollout) -> None:
        """Merge the states in which decisions were taken."""
        if self.norm is not None and isinstance(rollout.obs, Tensor):
            decided = rollout.obs[:, : rollout.mask.shape[1]][rollout.mask]
            self.norm.merge(self.raw(decided))


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class MLPPolicy(nn.Module):
    """Categorical policy for Discrete actions, Gaussian for Box actions."""

    def __init__(
        self,
        observation_space: gymnasium.Space[object],
        action_space: gymnasium.Space[object],
        config: NetworkConfig,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(observation_space, config)
        self._space = action_space
        sizes = (self.encoder.size, *config.hidden)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [_linear(inputs, outputs, math.sqrt(2)), nn.Tanh()]
        if isinstance(action_space, spaces.Discrete):
            outputs = int(action_space.n)
            self.log_std = None
        elif isinstance(action_space, spaces.Box):
            if not action_space.is_bounded():
                raise InputError(f"the action box {action_space} is unbounded; give finite bounds")
            outputs = int(np.prod(action_space.shape))
            self.log_std = nn.Parameter(torch.full((outputs,), -0.5))
        else:
            raise InputError(f"actions are {action_space}; Discrete and Box are supported")
        self.net = nn.Sequential(*layers, _linear(sizes[-1], outputs, 0.01))

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy [B, T] of `action`; `obs` holds T or T + 1 states."""
        out = self.net(self.encoder(obs[:, : action.shape[1]]))
        if self.log_std is None:
            logits = out.log_softmax(-1)
            logp = logits.gather(-1, action.unsqueeze(-1)).squeeze(-1)
            return logp, -(logits.exp() * logits).sum(-1)
        # ln N(a; μ, σ) = −½ ((a − μ)/σ)² − ln σ − ½ ln 2π;  H = Σ ln σ + ½ (1 + ln 2π)
        z = (action - out) * (-self.log_std).exp()
        half_log = 0.5 * math.log(2 * math.pi)
        logp = (-0.5 * z.square() - self.log_std - half_log).sum(-1)
        entropy = (self.log_std + half_log + 0.5).sum()
        return logp, entropy.expand_as(logp)

    @torch.no_grad()
    def act(self, obs: Tensor, generator: torch.Generator | None, deterministic: bool) -> Tensor:
        """Draw (or take the mode of) actions for `obs` [N, …]."""
        out: Tensor = self.net(self.encoder(obs))
        if self.log_std is not None:
            if deterministic:
                return out
            noise = torch.randn(out.shape, generator=generator, device=out.device)
            return out + self.log_std.exp() * noise
        if deterministic:
            return out.argmax(-1)
        # Inverse CDF: one uniform per row and a comparison, several times faster than multinomial.
        uniform = torch.rand((*out.shape[:-1], 1), generator=generator, device=out.device)
        below = out.softmax(-1).cumsum(-1) < uniform
        return below.sum(-1).clamp_max(out.shape[-1] - 1)

    def executed(self, action: Tensor) -> NDArray[np.generic]:
        """Clip to the box and rescale to its bounds; discrete actions count from `start`."""
        array: NDArray[np.generic] = action.cpu().numpy()
        if isinstance(self._space, spaces.Box):
            low, high = self._space.low, self._space.high
            unit = np.clip(array.reshape(-1, *self._space.shape), -1.0, 1.0)
            scaled = low + (unit + 1.0) * 0.5 * (high - low)
            boxed: NDArray[np.generic] = np.clip(scaled, low, high).astype(self._space.dtype)
            return boxed
        assert isinstance(self._space, spaces.Discrete)
        counted: NDArray[np.generic] = array + self._space.start
        return counted

    def encode(self, obs: NDArray[np.generic]) -> Tensor:
        """Observations as a tensor of this policy's dtype and device, always a copy.

        A vector environment may write its next observation into the same array.
        """
        parameter = next(self.parameters())
        return torch.tensor(np.asarray(obs), device=parameter.device, dtype=parameter.dtype)

    def update_statistics(self, rollout: Rollout) -> None:
        """Merge a rollout's observations into the normaliser."""
        self.encoder.update_statistics(rollout)


class StackedCritic(nn.Module):
    """One separate MLP per stream, computed together: one batched product per layer."""

    def __init__(
        self, observation_space: gymnasium.Space[object], streams: int, config: NetworkConfig
    ) -> None:
        super().__init__()
        self.encoder = Encoder(observation_space, config)
        sizes = (self.encoder.size, *config.hidden, 1)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for inputs, outputs in pairwise(sizes):
            weight = torch.empty(streams, inputs, outputs)
            for stream in weight:
                nn.init.orthogonal_(stream, math.sqrt(2) if outputs > 1 else 1.0)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(streams, 1, outputs)))

    def forward(self, obs: Tensor) -> Tensor:
        """Values [B, states, S] of every state in `obs` [B, states, …]."""
        x: Tensor = self.encoder(obs)
        lead = x.shape[:-1]
        streams = len(self.weights[0])
        x = x.reshape(1, -1, x.shape[-1]).expand(streams, -1, -1)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if layer < last:
                x = x.tanh()
        return x.squeeze(-1).movedim(0, -1).reshape(*lead, streams)

    def update_statistics(self, rollout: Rollout) -> None:
        """Merge a rollout's observations into the normaliser."""
        self.encoder.update_statistics(rollout)
