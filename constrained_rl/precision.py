"""How are weights in bfloat16 trained? An optimizer works on float32 copies of them.

In bfloat16, with its 8 bits of fraction, a step of 1e-3 of a weight's size would be rounded away,
and so would the sum of small gradients of many micro-batches. Weights in float32 are their own
copies. Absent: float16, whose small gradients become 0 unless the loss is scaled.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from constrained_rl.errors import InputError


class FullPrecision:
    """The trainable weights of a module in float32, and the module kept in step with them."""

    def __init__(self, module: nn.Module) -> None:
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise InputError("no weight of the model requires a gradient; nothing would be trained")
        half = next((name for name, p in named if p.dtype == torch.float16), None)
        if half is not None:
            raise InputError(
                f"weights that are trained are float16 ({half}), whose small gradients become 0; "
                "load the model with dtype = 'bfloat16' or 'float32'"
            )
        self._names = [name for name, _ in named]
        self.trained = [p for _, p in named]
        """the module's own"""
        self.weights = [
            p if torch.finfo(p.dtype).bits >= 32 else nn.Parameter(p.detach().float())
            for p in self.trained
        ]
        """what the optimizer moves"""

    @property
    def reduced(self) -> bool:
        """Whether any weight has a copy."""
        return any(p is not copy for p, copy in zip(self.trained, self.weights, strict=True))

    def add_gradients(self) -> None:
        """Add the gradients of one backward to those of the copies."""
        for parameter, copy in zip(self.trained, self.weights, strict=True):
            if copy is not parameter and parameter.grad is not None:
                fresh = parameter.grad.float()
                copy.grad = fresh if copy.grad is None else copy.grad + fresh
                parameter.grad = None

    @torch.no_grad()
    def round(self) -> None:
        """Set the module's weights to the copies."""
        for parameter, copy in zip(self.trained, self.weights, strict=True):
            if copy is not parameter:
                parameter.copy_(copy)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights by name, in float32; frozen ones are where they were loaded from."""
        return {n: w.detach() for n, w in zip(self._names, self.weights, strict=True)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict`, in the module too."""
        for name, weight in zip(self._names, self.weights, strict=True):
            weight.copy_(state[name])
        self.round()
