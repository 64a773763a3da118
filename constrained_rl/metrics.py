"""What the loop reports of an iteration, and how long its phases took.

Metrics observe: nothing here is read by training. Absent: the losses, which learners report.
"""

from __future__ import annotations

import time

from torch import Tensor

from constrained_rl.constraints import Constraints, Signal
from constrained_rl.losses import explained_variance
from constrained_rl.protocols import Metrics
from constrained_rl.rollout import Episodes, Streams


def episode_metrics(episodes: Episodes, names: tuple[str, ...]) -> Metrics:
    """Return, cost and length of the episodes that finished; nothing when none did."""
    if len(episodes) == 0:
        return {"episodes": 0.0}
    cost = episodes.cost.double().mean(0).tolist()
    return {
        "episodes": float(len(episodes)),
        "return/mean": float(episodes.return_.double().mean()),
        **{f"cost/{name}": value for name, value in zip(names, cost, strict=True)},
        "episode/length": float(episodes.length.double().mean()),
    }


def constraint_metrics(signal: Signal | None, lam: Tensor, constraints: Constraints) -> Metrics:
    """The estimates, if an episode finished, their limits, and every λ."""
    names = [constraint.name for constraint in constraints.constraints]
    estimates = [] if signal is None else zip(names, signal.cost.tolist(), strict=True)
    return {
        **{f"estimate/{name}": cost for name, cost in estimates},
        **{f"limit/{c.name}": c.limit for c in constraints.constraints},
        **{f"lambda/{name}": float(x) for name, x in zip(names, lam, strict=True)},
    }


def stream_metrics(streams: Streams, names: tuple[str, ...]) -> Metrics:
    """Explained variance of each named critic and the KL to the reference per episode row."""
    metrics = {
        f"explained_variance/{name}": float(
            explained_variance(streams.value[..., s], streams.target[..., s], streams.mask)
        )
        for s, name in enumerate(names)
    }
    if streams.kl is not None:
        metrics["kl/reference"] = float(streams.kl.sum(1).mean())
    return metrics


class Clock:
    """Wall seconds between marks, as metrics `time/<mark>`."""

    def __init__(self) -> None:
        self.times: Metrics = {}
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        """Close the phase `name`."""
        now = time.perf_counter()
        self.times[f"time/{name}"] = now - self._last
        self._last = now
