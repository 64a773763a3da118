"""Which activations are recomputed in the backward pass instead of being kept?

Those inside every layer of a transformer: a forward keeps only what enters each layer, and the
backward pass runs a layer's forward again (Chen et al. 2016, arXiv:1604.06174). Memory falls from
all activations to one layer's; a step takes about a third longer.

The switch of transformers works in train mode alone, where dropout is on, in some families (OPT,
Bloom) in the layer itself. Policies and critics stay in eval mode, so layers are wrapped here and
no mode is touched. Absent: offloading what is kept; checkpoints within a layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from constrained_rl.errors import InputError


class _Recomputed:
    """A layer's forward whose activations are recomputed; nothing changes where none are kept."""

    def __init__(self, layer: nn.Module) -> None:
        self._forward = layer.forward  # bound: a deep copy of the layer takes its own along

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (whatever a layer takes)
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        # Nothing is random in eval mode, so no random state needs restoring. Weights that ZeRO
        # gathers for the recomputation are other tensors than those of the forward.
        return checkpoint(
            self._forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            determinism_check="none",
            **kwargs,
        )


def recompute_activations(model: nn.Module) -> None:
    """Recompute every layer of a model in its backward pass; twice is as once.

    Raises:
        InputError: the model has no layers that transformers can recompute.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [x for x in model.modules() if isinstance(x, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(
            f"gradient_checkpointing is on, but {type(model).__name__} has no layers that can be "
            "recomputed; set gradient_checkpointing=false"
        )
    for layer in layers:
        if not isinstance(layer.forward, _Recomputed):
            layer.forward = _Recomputed(layer)
