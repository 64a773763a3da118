"""How good is a policy? Finished episodes on environments of its own, with intervals.

Every sub-environment plays the same number of episodes: the first n to finish would be the short
ones. Evaluation has its own environments and random numbers, so it changes nothing in training.
The same seed starts every evaluation of a run: checkpoints are compared on the same draws, and the
return of the best is an optimistic number; `crl evaluate` measures it afresh.

Letters: E episodes, K cost channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from constrained_rl.cmdp import read_cost, require_finite_observations, reset_envs, step_envs
from constrained_rl.config import Selection
from constrained_rl.constraints import Constraint
from constrained_rl.errors import InputError, require_finite
from constrained_rl.feasibility import CANCELLED, kept
from constrained_rl.networks import ActingPolicy
from constrained_rl.statistics import Interval, mean_interval

Floats = NDArray[np.float64]
MODES = {"sampled": False, "deterministic": True}
LONGEST = 1_000_000
"""decisions after which an evaluation says that an episode does not end"""


@dataclass(frozen=True)
class Evaluation:
    """Finished episodes of one policy; sums are raw and undiscounted."""

    return_: Floats  # [E]
    cost: Floats  # [E, K]
    length: Floats  # [E] decisions
    constraints: tuple[Constraint, ...]
    cost_names: tuple[str, ...]  # [K]

    def __len__(self) -> int:
        """Number of episodes E."""
        return len(self.return_)

    def intervals(self, level: float = 0.95) -> dict[str, Interval]:
        """Means with Student's t intervals: `return`, `length`, `cost/…`, `estimate/…`.

        An `estimate` is the mean of the transformed cost, which the constraint bounds.
        """
        values = {"return": self.return_, "length": self.length}
        values |= {f"cost/{name}": self.cost[:, k] for k, name in enumerate(self.cost_names)}
        values |= {f"estimate/{c.name}": self._transformed(c) for c in self.constraints}
        return {name: mean_interval(value, level) for name, value in values.items()}

    @property
    def feasible(self) -> bool:
        """Whether every estimate keeps its limit."""
        return all(kept(self._transformed(c).mean(), c.limit) for c in self.constraints)

    def _transformed(self, constraint: Constraint) -> Floats:  # [E]
        raw = torch.from_numpy(self.cost[:, constraint.channel])
        return constraint.value(raw).numpy()


def evaluate(
    policy: ActingPolicy,
    envs: VectorEnv[Any, Any, Any],
    episodes: int,
    seed: int,
    constraints: Sequence[Constraint] = (),
    cost_names: tuple[str, ...] = (),
    deterministic: bool = False,
) -> Evaluation:
    """Play at least `episodes` episodes, ⌈episodes / N⌉ in each of the N sub-environments."""
    count = envs.num_envs
    quota = math.ceil(episodes / count)
    obs = reset_envs(envs, seed)
    generator = torch.Generator(policy.encode(obs).device).manual_seed(seed)
    total, cost = np.zeros(count), np.zeros((count, len(cost_names)))
    size = np.zeros_like(cost)  # Σ |c|, which tells what rounding can have left of a sum of 0
    length, played = np.zeros(count), np.zeros(count, dtype=np.int64)
    ended = np.zeros(count, dtype=bool)
    finished: list[tuple[Floats, Floats, Floats]] = []
    while (played < quota).any():
        require_finite_observations(obs)
        action = policy.act(policy.encode(obs), generator, deterministic)
        mask = ~ended
        obs, reward, terminated, truncated, info = step_envs(envs, policy.executed(action))
        total += np.where(mask, reward, 0.0)
        if cost_names:
            paid = read_cost(info, mask, len(cost_names))
            cost, size = cost + paid, size + np.abs(paid)
        length += mask
        ended = (terminated | truncated) & mask
        counted = np.flatnonzero(ended & (played < quota))
        sums = np.where(np.abs(cost) <= CANCELLED * size, 0.0, cost)[counted]
        finished.append((total[counted], sums, length[counted]))
        played += ended
        total[ended], cost[ended], size[ended], length[ended] = 0.0, 0.0, 0.0, 0.0
        _require_an_end(length)
    returns, costs, lengths = (np.concatenate(part) for part in zip(*finished, strict=True))
    require_finite("evaluation return", torch.from_numpy(returns))
    return Evaluation(returns, costs, lengths, tuple(constraints), cost_names)


def _require_an_end(length: Floats) -> None:
    if length.max() >= LONGEST:
        raise InputError(
            f"the episode of sub-environment {int(length.argmax())} has not ended after "
            f"{LONGEST} decisions; give the environment a time limit (max_episode_steps where it "
            "is registered, or env.kwargs.max_episode_steps=…)"
        )


class Evaluator:
    """Evaluates a run every n iterations, keeps the best feasible policy, and knows when to stop.

    `best` is the highest mean return among evaluations whose estimates keep their limits, in the
    mode that `config.select` names. What it knows is its `state`, which checkpoints hold.
    """

    def __init__(
        self,
        config: Selection,
        play: Callable[[bool], Evaluation],
        save_best: Callable[[Mapping[str, float]], None],
    ) -> None:
        """Prepare.

        Args:
            config: when, and which mode decides.
            play: evaluates the present policy, deterministically or not.
            save_best: keeps the present policy; gets the evaluation's metrics.
        """
        self._config, self._play, self._save_best = config, play, save_best
        self.best = -math.inf
        self._stale = 0

    @property
    def state(self) -> dict[str, float]:
        """The best return, and the evaluations since then."""
        return {"best": self.best, "stale": self._stale}

    def remember(self, state: Mapping[str, float], rows: Iterable[Mapping[str, float]]) -> None:
        """Take note of a resumed run's past: its `state`, or where that is empty its metrics."""
        if state:
            self.best, self._stale = float(state["best"]), int(state["stale"])
            return
        for row in rows:
            if "evaluation/feasible" in row:
                self._judge(row)

    @property
    def exhausted(self) -> bool:
        """Whether `patience` evaluations since the best feasible one were no better."""
        patience = self._config.patience
        return patience is not None and self.best > -math.inf and self._stale >= patience

    def __call__(self, iteration: int, last: bool) -> dict[str, float]:
        """Metrics of this iteration's evaluation; none when it is not due."""
        every = self._config.every
        if every == 0 or (iteration % every and not last):
            return {}
        metrics: dict[str, float] = {}
        for mode, deterministic in MODES.items():
            found = self._play(deterministic)
            for name, interval in found.intervals().items():
                metrics[f"evaluation/{mode}/{name}"] = interval.value
                metrics[f"evaluation/{mode}/{name}/low"] = interval.low
                metrics[f"evaluation/{mode}/{name}/high"] = interval.high
            if mode == self._config.select:
                metrics["evaluation/feasible"] = float(found.feasible)
        if self._judge(metrics):
            self._save_best(metrics)
        return metrics

    def _judge(self, metrics: Mapping[str, float]) -> bool:
        """Take note of an evaluation; True if it is the best so far."""
        found = metrics[f"evaluation/{self._config.select}/return"]
        better = bool(metrics["evaluation/feasible"]) and found > self.best
        self.best = found if better else self.best
        self._stale = 0 if better else self._stale + 1
        return better
