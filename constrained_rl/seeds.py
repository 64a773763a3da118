"""The seeds that a run's environments are given: one place, so that no two uses share episodes.

Training begins with the run's seed. Episodes that later begin from a seed of their own draw it from
a `SeedSequence` of the run, past everything that was given before. Evaluations begin with
`evaluation_seed`; a certificate may begin with any seed that is none of these. A reset with one
number seeds sub-environment i with number + i, so a seed stands for a range. Absent: the random
numbers of actions and minibatches, which are torch's.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        self._given = [(run_seed, num_envs)]

    def draw(self, size: int = 1) -> int:
        """A seed below 2³¹, which every simulator takes; no seed of its range was given before."""
        run_seed, _ = self._given[0]
        for number in count(len(self._given)):
            sequence = np.random.SeedSequence(run_seed, spawn_key=(number,))
            seed = int(sequence.generate_state(1)[0] >> 1)
            if self.given_to(seed, size) is None:
                self._given.append((seed, size))
                break
        return seed

    def given_to(self, seed: int, size: int) -> str | None:
        """What the first of the seeds [seed, seed + size) that was given is of, None if none was.

        With the numbers of that use.
        """
        for use, first, number in self._uses():
            if seed < first + number and first < seed + size:
                last = first + number - 1
                return f"{use} ({f'seeds {first} … {last}' if number > 1 else f'seed {first}'})"
        return None

    def free(self, size: int) -> int:
        """A seed to recommend: the first from `CERTIFICATE_SEED` on that was not given."""
        return next(s for s in count(CERTIFICATE_SEED, size) if self.given_to(s, size) is None)

    def _uses(self) -> Iterator[tuple[str, int, int]]:
        run_seed, num_envs = self._given[0]
        yield "the evaluations that choose best/", evaluation_seed(run_seed), num_envs
        for first, number in self._given:
            yield "training", first, number

    def state(self) -> Tensor:  # int64 [ranges, 2]
        """What training was given so far."""
        return torch.tensor(self._given, dtype=torch.int64)

    def restore(self, state: Tensor) -> None:
        """Take note of `state()`."""
        self._given = [(first, number) for first, number in state.tolist()]

    def note_restarts(self, last: int) -> None:
        """Take note of the restarts of a run made before seeds were drawn here.

        At checkpoints it restarted from 1 000 003 · its seed + iteration, the last time from
        `last`.
        """
        run_seed, num_envs = self._given[0]
        first = run_seed * EVALUATION_SEED + 1
        if last >= first:
            self._given.append((first, last + num_envs - first))
