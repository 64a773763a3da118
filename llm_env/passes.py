"""Indices of data in shuffled passes: every item once before any comes twice.

Absent: sampling with replacement, weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class ShuffledPasses:
    """Draws from `count` items; its state is a random state and what is left of this pass."""

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.zeros(0, dtype=torch.long)

    def draw(self, size: int) -> Tensor:
        """Return the next `size` indices [size]; a pass may end and begin within them."""
        while len(self._order) < size:
            fresh = torch.randperm(self._count, generator=self._generator)
            self._order = torch.cat([self._order, fresh])
        index, self._order = self._order[:size], self._order[size:]
        return index

    def state_dict(self) -> dict[str, object]:
        """Random state and the indices still to come in this pass."""
        return {"shuffler": self._generator.get_state(), "order": self._order}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`."""
        shuffler, order = state["shuffler"], state["order"]
        assert isinstance(shuffler, Tensor)
        assert isinstance(order, Tensor)
        self._generator.set_state(shuffler)
        self._order = order.clone()
