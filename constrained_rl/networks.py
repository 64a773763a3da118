"""MLP policies and critics for vector environments.

How they read observations is in `encoder`, which spaces they take in `spaces`; the densities are in
`distributions`. Absent: recurrence.
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

from constrained_rl.config import NetworkConfig
from constrained_rl.distributions import (
    bounded_log_std,
    categorical_log_prob,
    gaussian_entropy,
    gaussian_log_prob,
    squashed_entropy,
    squashed_log_prob,
)
from constrained_rl.encoder import Encoder
from constrained_rl.errors import InputError
from constrained_rl.rollout import Rollout
from constrained_rl.spaces import require_action_space


class ActingPolicy(Protocol):
    """What the vector-environment collector needs of a policy."""

    def act(self, obs: Tensor, generator: torch.Generator | None, deterministic: bool) -> Tensor:
        """Draw actions [N, …] for observations [N, …], without gradients."""

    def executed(self, action: Tensor) -> NDArray[np.generic]:
        """Convert a drawn action to what the environment takes."""

    def encode(self, obs: NDArray[np.generic]) -> Tensor:
        """Convert the environment's observations [N, …] to this policy's input."""


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def _columns(
    layers: nn.Sequential,
    x: Tensor,  # [M, inputs]
) -> Tensor:  # [outputs, M]
    """Apply a stack of layers with features first, which is faster for their short outputs."""
    x = x.t()
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = torch.addmm(layer.bias.unsqueeze(1), layer.weight, x)
        else:
            x = layer(x)
    return x


class MLPPolicy(nn.Module):
    """Categorical policy for Discrete actions, Gaussian for Box actions.

    The one rule of Gaussian policies: an action is stored, and scored, as the number u drawn from
    N(μ(s), σ), in coordinates where the action box is [−1, 1]; only `executed` bounds it.

    - `network.bounds = "clip"` executes clip(u, ±1); log-probability and entropy are u's.
    - `network.bounds = "squash"` executes tanh(u); log-probability and entropy are those of tanh(u)
      (the entropy by quadrature, see `distributions`). The deterministic action is tanh(μ), the
      median.
    - `network.deviation = "constant"` learns one σ for all states, "state" a second head σ(s),
      ln σ bounded to `LOG_STD_RANGE`. Both start at ln σ = −0.5.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space[object],
        action_space: gymnasium.Space[object],
        config: NetworkConfig,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(observation_space, config)
        require_action_space(action_space)
        self._space = action_space
        self._squash = config.bounds == "squash"
        self.log_std: nn.Parameter | None = None
        if isinstance(action_space, spaces.Discrete):
            if self._squash or config.deviation == "state":
                raise InputError(
                    f"network.bounds is {config.bounds!r} and network.deviation "
                    f"{config.deviation!r}, but actions are {action_space}; both concern Box "
                    "actions: leave them out"
                )
            outputs = int(action_space.n)
        else:
            outputs = int(np.prod(action_space.shape or ()))
            if config.deviation == "constant":
                self.log_std = nn.Parameter(torch.full((outputs,), -0.5))
            else:
                outputs *= 2
        sizes = (self.encoder.size, *config.hidden)
        layers: list[nn.Module] = []
        for inputs, width in pairwise(sizes):
            layers += [_linear(inputs, width, math.sqrt(2)), nn.Tanh()]
        self.net = nn.Sequential(*layers, _linear(sizes[-1], outputs, 0.01))

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy [B, T] of `action`; `obs` holds T or T + 1 states."""
        out = self._outputs(obs[:, : action.shape[1]]).movedim(0, -1)
        if isinstance(self._space, spaces.Discrete):
            return categorical_log_prob(out, action)
        mean, log_std = self.gaussian(out)
        if self._squash:
            logp = squashed_log_prob(action, mean, log_std)
            return logp, squashed_entropy(mean, log_std)
        logp = gaussian_log_prob(action, mean, log_std)
        return logp, gaussian_entropy(log_std).expand_as(logp)

    def _outputs(self, obs: Tensor) -> Tensor:
        """Logits, or means and raw deviations: [outputs, …] for observations [..., …]."""
        x: Tensor = self.encoder(obs)
        if self.encoder.wide:
            x = x.to(self._weight().dtype)
        if x.ndim == 2:
            return _columns(self.net, x)
        return _columns(self.net, x.flatten(0, -2)).view(-1, *x.shape[:-1])

    def gaussian(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [..., A] and ln σ ([A], or [..., A] by state) from the network's output."""
        if self.log_std is not None:
            return out, self.log_std
        mean, raw = out.chunk(2, dim=-1)
        return mean, bounded_log_std(raw)

    @torch.no_grad()
    def act(self, obs: Tensor, generator: torch.Generator | None, deterministic: bool) -> Tensor:
        """Draw actions for `obs` [N, …], or take the mode (of a Gaussian, the mean)."""
        out = self._outputs(obs)
        if isinstance(self._space, spaces.Box):
            mean, log_std = self.gaussian(out.movedim(0, -1))
            if deterministic:
                return mean
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            return mean + log_std.exp() * noise
        if deterministic:
            return out.argmax(0)
        # Inverse CDF: one uniform per row and a comparison, several times faster than multinomial.
        uniform = torch.rand(out.shape[1:], generator=generator, device=out.device)
        below = out.softmax(0).cumsum(0) < uniform
        return below.sum(0).clamp_max(len(out) - 1)

    def executed(self, action: Tensor) -> NDArray[np.generic]:
        """Bound to [−1, 1] and rescale to the box; discrete actions count from `start`."""
        array: NDArray[np.generic] = action.cpu().numpy()
        if isinstance(self._space, spaces.Box):
            low, high = self._space.low, self._space.high
            drawn = array.reshape(-1, *self._space.shape)
            unit = np.tanh(drawn) if self._squash else np.clip(drawn, -1.0, 1.0)
            scaled = low + (unit + 1.0) * 0.5 * (high - low)
            boxed: NDArray[np.generic] = np.clip(scaled, low, high).astype(self._space.dtype)
            return boxed
        assert isinstance(self._space, spaces.Discrete)
        counted: NDArray[np.generic] = array + self._space.start
        return counted

    def encode(self, obs: NDArray[np.generic]) -> Tensor:
        """Observations as a tensor on this policy's device, always a copy.

        A vector environment may write its next observation into the same array.
        """
        weight = self._weight()
        dtype = torch.float64 if self.encoder.wide else weight.dtype
        return torch.tensor(np.asarray(obs), device=weight.device, dtype=dtype)

    def _weight(self) -> Tensor:
        """One of the weights; to search all modules takes as long as to copy an observation."""
        return next(self.net[-1].parameters())

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
        if self.encoder.wide:
            x = x.to(self.weights[0].dtype)
        lead = x.shape[:-1]
        # Features first, as `_columns`. The first layer's input is common to all streams: one
        # product of all its weights, [streams · width, inputs] × [inputs, M].
        x = x.flatten(0, -2).t()
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer == 0:
                streams, _, width = weight.shape
                x = torch.addmm(bias.view(-1, 1), weight.mT.flatten(0, 1), x)
                x = x.view(streams, width, -1)
            else:
                x = torch.baddbmm(bias.mT, weight.mT, x)
            if layer < last:
                x = x.tanh()
        return x.squeeze(1).t().view(*lead, -1)

    def update_statistics(self, rollout: Rollout) -> None:
        """Merge a rollout's observations into the normaliser."""
        self.encoder.update_statistics(rollout)
