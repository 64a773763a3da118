"""The seeds that a run's environments are given: one place, so that no two uses share episodes.

Training begins with the run's seed. Episodes that later begin from a seed of their own draw it from
a `SeedSequence` of the run, past everything that was given before. Evaluations begin with
`evaluation_seed`; a certificate may begin with any seed that is none of these. A reset with one
number seeds sub-environment i with number + i, so a seed stands for a range. Absent: the random
numbers of actions and minibatches, which are torch's.
"""

from __future__ import annotations

from itertools import count

import numpy as np
import torch
from torch import Tensor

EVALUATION_SEED = 1_000_003
CERTIFICATE_SEED = 271_828


def evaluation_seed(seed: int) -> int:
    """What a run's evaluations start from; its training starts from `seed`."""
    return (seed + 1) * EVALUATION_SEED % 2**31


class Seeds:
    """Draws seeds for a run's training, and knows every seed that its environments were given."""

    def __init__(self, run_seed: int, num_envs: int) -> None:
        # First seed of a range and how many it has; the first range is the run's own.
        self._ranges = [(run_seed, num_envs)]
        self._single: set[int] = set()  # drawn for one sub-environment; there may be many

    def draw(self, size: int = 1) -> int:
        """A seed below 2³¹, which every simulator takes; no seed of its range was given before."""
        run_seed, _ = self._ranges[0]
        for number in count(len(self._ranges) + len(self._single)):
            sequence = np.random.SeedSequence(run_seed, spawn_key=(number,))
            seed = int(sequence.generate_state(1)[0] >> 1)
            if self.given_to(seed, size) is None:
                self._note(seed, size)
                break
        return seed

    def _note(self, first: int, size: int) -> None:
        if size == 1:
            self._single.add(first)
        else:
            self._ranges.append((first, size))

    def given_to(self, seed: int, size: int) -> str | None:
        """What a seed of [seed, seed + size) was given to, with all of that use; None if none was.

        The run's own seeds are training's.
        """
        run_seed, num_envs = self._ranges[0]
        evaluated = evaluation_seed(run_seed)
        if overlap(seed, size, evaluated, num_envs):
            return f"the evaluations that choose best/ ({_shown(evaluated, num_envs)})"
        for one in range(seed, seed + size):
            if one in self._single:
                return f"training ({_shown(one, 1)})"
        for first, number in self._ranges:
            if overlap(seed, size, first, number):
                return f"training ({_shown(first, number)})"
        return None

    def free(self, size: int) -> int:
        """A seed to recommend: the first from `CERTIFICATE_SEED` on that was not given."""
        return next(s for s in count(CERTIFICATE_SEED, size) if self.given_to(s, size) is None)

    def state(self) -> Tensor:  # int64 [ranges, 2]
        """What training was given so far."""
        single = ((seed, 1) for seed in sorted(self._single))
        return torch.tensor([*self._ranges, *single], dtype=torch.int64)

    def restore(self, state: Tensor) -> None:
        """Take note of `state()`."""
        own, *later = state.tolist()
        self._ranges, self._single = [(own[0], own[1])], set()
        for first, size in later:
            self._note(first, size)

    def note_restarts(self, last: int) -> None:
        """Take note of the restarts of a run made before seeds were drawn here.

        At checkpoints it restarted from 1 000 003 · its seed + iteration, the last time from
        `last`.
        """
        run_seed, num_envs = self._ranges[0]
        first = run_seed * EVALUATION_SEED + 1
        if last >= first:
            self._note(first, last + num_envs - first)


def overlap(seed: int, size: int, other: int, number: int) -> bool:
    """Whether [seed, seed + size) and [other, other + number) have a seed in common."""
    return seed < other + number and other < seed + size


def _shown(first: int, number: int) -> str:
    return f"seeds {first} … {first + number - 1}" if number > 1 else f"seed {first}"
