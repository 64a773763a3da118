"""How far is a schedule at a given share of training? Factors of learning rates and weights."""

from __future__ import annotations

import math

from constrained_rl.sections import Schedule


def schedule_factor(schedule: Schedule, progress: float, warmup: float = 0.0) -> float:
    """Factor in [0, 1] at `progress` ∈ [0, 1): linear warm-up, then the schedule."""
    if progress < warmup:
        return progress / warmup
    rest = (progress - warmup) / (1 - warmup) if warmup < 1 else 1.0
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - rest
        case "quadratic":
            return (1.0 - rest) ** 2
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * rest))
