"""How many bytes of tensors are alive, and how many were at most?

A dispatch mode sees every tensor that is made, real or fake, and is told when its storage goes.
With fake tensors (shapes and types, no memory) a step of a model of any size is counted on any
machine, by the very code that training runs. Absent: what kernels use inside themselves, the
allocator's rounding and fragments, and the CUDA context.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that are made while it is active, and their peaks.

    A peak is kept for every segment of the work, which `begin` names.

    Args:
        vocabulary: width of tensors to be counted apart, as logits; None: count none.
    """

    def __init__(self, vocabulary: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._vocabulary = vocabulary
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.live = self._logits = 0
        self._segment = ""
        self.peaks: dict[str, tuple[int, int]] = {"": (0, 0)}
        """by segment: most bytes alive, and of them what tensors as wide as the vocabulary hold"""

    @property
    def peak(self) -> int:
        """Most bytes alive since `forget_peaks`."""
        return max(most for most, _ in self.peaks.values())

    def begin(self, segment: str) -> None:
        """What follows belongs to a segment, new or seen before."""
        self._segment = segment
        self._note_peak()

    def forget_peaks(self) -> None:
        """Count peaks from what is alive now."""
        self.peaks = {self._segment: (self.live, self._logits)}

    def _note_peak(self) -> None:
        if self.live > self.peaks.get(self._segment, (-1, 0))[0]:
            self.peaks[self._segment] = (self.live, self._logits)

    def ignore(self, module: nn.Module) -> None:
        """Leave a module's parameters, buffers and present gradients out of the count."""
        tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
        tensors += [p.grad for p in module.parameters() if p.grad is not None]
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._seen[id(storage)] = weakref.ref(storage, partial(self._forget, id(storage), 0, 0))

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever the operator returns)
        """Run the operator and enter the storages of what it returns."""
        result = func(*args, **(kwargs or {}))
        self._enter(x for x in tree_leaves(result) if isinstance(x, Tensor))
        return result

    def _enter(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = id(storage)
            if key in self._seen:
                continue
            size = storage.nbytes()
            logits = size if tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary else 0
            self.live += size
            self._logits += logits
            self._seen[key] = weakref.ref(storage, partial(self._forget, key, size, logits))
        self._note_peak()

    def _forget(self, key: int, size: int, logits: int, _: object) -> None:
        self._seen.pop(key, None)
        self.live -= size
        self._logits -= logits
