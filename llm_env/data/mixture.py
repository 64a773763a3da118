"""Several data sets as one: one after another, or interleaved in given proportions.

The interleaving solves the chairman assignment problem (Tijdeman 1980): among n sources with shares
w_i, after any number t of rows source i has given c_i of them, |c_i − w_i t| ≤ 1 − 1/(2n − 2). So
every stretch has the proportions, not only the whole. A pass is over when every row of every
source came at least once; what is over-weighted comes again from its beginning.
Absent: proportions that change in time.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import TypeVar

from constrained_rl.errors import InputError
from llm_env.data.lazy import LazySequence

T = TypeVar("T")
MOST = 100
"""times that a source may be repeated in one pass before the weights are taken for a mistake"""


class Mixture(LazySequence[T]):
    """Rows of several sequences; 5 bytes of memory per row where they are interleaved."""

    def __init__(
        self, parts: Sequence[Sequence[T]], weights: Sequence[float] | None = None
    ) -> None:
        """Args: `weights` — share of each part, normalised here; None: one after another."""
        self._parts = parts
        if weights is None:
            self._owner = array("H")
            for i, part in enumerate(parts):
                self._owner.extend(array("H", [i]) * len(part))
        else:
            self._owner = interleave([len(part) for part in parts], weights)
        self._ordinal = array("I", bytes(4 * len(self._owner)))
        self.counts = [0] * len(parts)
        """rows of each part in one pass"""
        for place, owner in enumerate(self._owner):
            self._ordinal[place] = self.counts[owner]
            self.counts[owner] += 1

    def __len__(self) -> int:
        """Rows of one pass."""
        return len(self._owner)

    def at(self, place: int) -> T:
        """The row of this place of a pass."""
        part = self._parts[self._owner[place]]
        return part[self._ordinal[place] % len(part)]


def interleave(sizes: Sequence[int], weights: Sequence[float]) -> array[int]:
    """Owner of each row of one pass.

    >>> list(interleave([2, 1], [2.0, 1.0]))
    [0, 1, 0]

    Raises:
        InputError: a weight is so large that its source would be repeated more than 100 times.
    """
    shares = [weight / sum(weights) for weight in weights]
    if len(shares) == 1:
        return array("H", bytes(2 * sizes[0]))
    # 1e-9: a share of 1/3 must not make one more row of 3 · (1/3)
    length = max(math.ceil(n / share - 1e-9) for n, share in zip(sizes, shares, strict=True))
    for n, share in zip(sizes, shares, strict=True):
        if share * length > MOST * n + 1:
            raise InputError(
                f"weights {list(weights)} for sources of {list(sizes)} rows repeat {n} rows "
                f"{share * length / n:.0f} times in one pass; weights are shares of the mixture, "
                "give the small source less or leave all weights out"
            )
    slack = 1 / (2 * len(shares) - 2)
    counts, owners = [0] * len(shares), array("H", bytes(2 * length))
    for t in range(1, length + 1):
        # among the sources that may come, the one whose turn ends first
        ready = [
            ((count + 1 - slack) / share, i)
            for i, (share, count) in enumerate(zip(shares, counts, strict=True))
            if share * t - count >= slack - 1e-9
        ]
        owner = min(ready)[1]
        owners[t - 1] = owner
        counts[owner] += 1
    return owners
