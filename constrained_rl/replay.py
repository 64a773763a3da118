"""What rebuilds the episodes under way of environments that cannot save their state.

The seed of each sub-environment's last seeded reset, and all actions since. So that this does not
grow with a run, a sub-environment whose log is long begins its next episode from a new seed: at the
end of an episode, where nothing is lost. Environments that cannot be reset one by one begin anew
together, when each of them has ended the episode that was under way as the log became long; what
they finish in the meantime is not counted, since long episodes would be missing among it.

Letters: N sub-environments, T steps of the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from constrained_rl.returned import as_array

Array = NDArray[Any]
Bools = NDArray[np.bool_]
LONG = 5_000
"""steps after which a sub-environment's next episode begins from a new seed"""
LONG_TOGETHER = 10_000
"""the same of environments that can only begin anew together"""
LONGEST = 100_000
"""steps after which an episode under way is given up: it could not be kept in checkpoints"""


class ActionLog:
    """Seeds, and the actions since: what leads to the episodes under way."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        # A vector wrapper may remember something of its sub-environments, which is then its own.
        self.separate = isinstance(envs, SyncVectorEnv | AsyncVectorEnv)
        self._num_envs = envs.num_envs
        self.begin(0)

    def begin(self, seed: int | list[int]) -> None:
        """A reset of all: from one seed each, or from one for them together."""
        seeds = [seed + i for i in range(self._num_envs)] if isinstance(seed, int) else seed
        self.origin = np.array(seeds, dtype=np.int64)  # [N]
        self.since = np.zeros(self._num_envs, dtype=np.int64)  # [N] steps since the seeded reset
        self.settled = np.zeros(self._num_envs, dtype=np.bool_)  # [N] waits for the others
        self.actions: list[Array] = []  # T of [N, …]
        self.ended: list[Bools] = []  # T of [N]

    @property
    def seed(self) -> int | list[int]:
        """What to reset all with."""
        return self.origin.tolist() if self.separate else int(self.origin[0])

    @property
    def starts(self) -> NDArray[np.int64]:  # [N]
        """At which step of the log each sub-environment was reset."""
        return len(self.actions) - self.since

    def add(self, actions: Array, ended: Bools) -> None:
        """A step was made: actions [N, …], and whether it ended an episode [N]."""
        self.actions.append(np.array(actions))
        self.ended.append(ended)
        self.since += 1
        if not self.separate and self.since[0] > LONG_TOGETHER:
            self.settled |= ended

    def to_renew(self, begun: Bools) -> Bools:  # [N]
        """Which of the sub-environments that have just begun an episode get a new seed for it."""
        return begun & (self.since >= LONG) if self.separate else np.zeros_like(begun)

    def renew(self, rows: Bools, seeds: list[int]) -> None:
        """Sub-environments were reset from new seeds."""
        self.origin[rows], self.since[rows] = seeds, 0

    def trim(self) -> None:
        """Forget what was played before the earliest of the seeded resets."""
        past = len(self.actions) - int(self.since.max())
        del self.actions[:past], self.ended[:past]

    def state(self) -> dict[str, object]:
        """Arrays as tensors; actions and ends are there if a step was made."""
        self.trim()
        state: dict[str, object] = {
            "origin": torch.from_numpy(self.origin),
            "since": torch.from_numpy(self.since),
            "settled": torch.from_numpy(self.settled),
        }
        if self.actions:
            state["actions"] = torch.from_numpy(np.stack(self.actions))
            state["ended"] = torch.from_numpy(np.stack(self.ended))
        return state

    def restore(self, state: Mapping[str, object]) -> None:
        """Restore `state()`."""
        arrays = {name: _array(value) for name, value in state.items()}
        self.origin, self.since = arrays["origin"], arrays["since"]
        self.settled = arrays["settled"]
        self.actions, self.ended = list(arrays.get("actions", ())), list(arrays.get("ended", ()))


def as_rows(obs: Any) -> Array:  # noqa: ANN401  [N, features]
    """A batch of observations of any space, side by side, to be compared."""
    if isinstance(obs, Mapping | tuple):
        parts = obs.values() if isinstance(obs, Mapping) else obs
        return np.concatenate([as_rows(part) for part in parts], axis=1)
    array = as_array(obs)
    return array.reshape(len(array), -1)


def differing(one: tuple[Array, ...], other: tuple[Array, ...]) -> Bools:  # [N]
    """Rows [N, …] that are not the same in all of two lists of arrays."""
    wrong = np.zeros(len(one[0]), dtype=np.bool_)
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape:
            return np.ones_like(wrong)
        wrong |= (a != b).reshape(len(a), -1).any(axis=1)
    return wrong


def _array(value: object) -> Array:
    assert isinstance(value, Tensor)
    return value.numpy().copy()
