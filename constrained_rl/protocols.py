"""The contracts between the loop and everything it does not know.

Models: `forward` is the training quantity, so wrappers (DDP, DeepSpeed) hook only `__call__`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from constrained_rl.rollout import Observations, Rollout

Metrics = dict[str, float]


class Policy(Protocol):
    """A torch module that scores actions; how it acts is between it and its collector."""

    def __call__(self, obs: Observations | Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy [B, T] of `action` [B, T, …]; `obs` may hold T + 1 states."""

    def update_statistics(self, rollout: Rollout) -> None:
        """Merge a rollout's observations into the normaliser; called once, after the update."""


class Critic(Protocol):
    """A torch module that predicts the value of S streams."""

    def __call__(self, obs: Observations | Tensor) -> Tensor:
        """Values [B, states, S], states = T + 1; T where every row ends in a terminal state."""

    def update_statistics(self, rollout: Rollout) -> None:
        """As `Policy.update_statistics`."""


class Stateful(Protocol):
    """Something a checkpoint contains."""

    def state_dict(self) -> dict[str, object]:
        """State as nested dicts and lists of tensors, numbers and strings."""

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`."""


class Collector(Stateful, Protocol):
    """The only environment-specific line of the loop."""

    @property
    def cost_names(self) -> tuple[str, ...]:
        """Names of the K cost channels."""

    def collect(self) -> Rollout:
        """Act with the current policy for one iteration."""

    @property
    def time_limit(self) -> int | None:
        """Decisions after which an episode ends at the latest; None where none is known."""


class Logger(Protocol):
    """Observes a run; deleting it changes no parameter."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one iteration."""

    def close(self) -> None:
        """Flush."""


Reference = Callable[[Any, Tensor], Tensor]
"""Log-probabilities [B, T] under π_ref of (obs, action)."""
