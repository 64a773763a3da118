"""Low-rank adapters: several models on one set of frozen weights.

    h = W x + (α / r) · B A x          W frozen, A [r, in] random, B [out, r] = 0 at the start

(Hu et al. 2022, eq. 3.) `with_lora` gives a model of its own whose frozen weights are the very
tensors of the model it was made from: so a policy, its KL reference (the bare model) and a critic
on the same trunk hold one copy of the weights, each its own adapter, and nothing is ever switched.
Only adapters and heads are trained and need to be in a checkpoint. Absent: quantised weights,
adapters of embeddings.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from constrained_rl.errors import InputError
from llm_env.models import LoRAConfig
from llm_env.policy import response_logp

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel

    from constrained_rl.protocols import Reference
    from llm_env.tokens import TokenRows

Model = TypeVar("Model", bound="PreTrainedModel")

ADAPTER = "default"


def with_lora(model: Model, config: LoRAConfig, generator: torch.Generator) -> Model:
    """A model that shares the weights of `model`, which are frozen, and adds an adapter of its own.

    It computes exactly what `model` computes until its adapter is trained. The adapter is float32
    whatever the weights are.

    Args:
        model: a causal LM, or the trunk of one (`model.base_model`).
        config: rank, scale and layers of the adapter.
        generator: of the initial A: uniform within ± 1/√in.

    Raises:
        InputError: peft is missing, or no layer has the names that `config.targets` gives.
    """
    model.requires_grad_(False)
    twin = sharing_copy(model)
    _inject(twin, config)
    device = generator.device
    for layer in lora_layers(twin):
        first, second = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        fresh = torch.rand(first.shape, generator=generator, device=device)
        first.data = ((2 * fresh - 1) / math.sqrt(first.shape[1])).to(first.device)
        second.data = torch.zeros_like(second, dtype=torch.float32)
    return twin


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """The model computes what it computed before it had an adapter.

    Forward and backward belong on the same side of this context.
    """
    layers = list(lora_layers(model))
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def reference_of(model: PreTrainedModel) -> Reference:
    """Log-probabilities under π_ref of a policy with an adapter: its own, the adapter off.

    The same numbers as from the model that `with_lora` was given, on sharded weights too.
    """

    @torch.no_grad()
    def logp(rows: TokenRows, action: Tensor) -> Tensor:
        with without_adapter(model):
            return response_logp(model, rows)

    return logp


@torch.no_grad()
def merge_for_export(model: Model) -> Model:
    """A model without adapters, of weights W + (α / r) · B A; `model` keeps its own.

    The sum is taken in float32 and rounded once to the precision of W. Layers without an adapter
    are shared with `model`.
    """
    merged = sharing_copy(model)
    for module in list(merged.modules()):
        for child_name, child in list(module.named_children()):
            if _is_lora(child):
                base = child.get_base_layer()
                delta = child.get_delta_weight(ADAPTER)
                base.weight = nn.Parameter(
                    (base.weight.float() + delta.float()).to(base.weight.dtype)
                )
                setattr(module, child_name, base)
    del merged.peft_config
    return merged


def sharing_copy(model: Model) -> Model:
    """A copy of the modules that holds the very parameters and buffers of `model`."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def lora_layers(model: nn.Module) -> Iterator[LoraLayer]:
    """The layers that have an adapter."""
    return (module for module in model.modules() if _is_lora(module))


def require_peft() -> None:
    """Raise an installation hint unless peft is there."""
    if find_spec("peft") is None:
        raise InputError(
            "lora needs the package peft, which is not installed; install it with: "
            'pip install "constrained-rl[llm,lora]", or leave lora out of the config'
        )


def _is_lora(module: nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


def _inject(model: PreTrainedModel, config: LoRAConfig) -> None:
    """Put an adapter beside every targeted layer of the model, in place."""
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=targets,
        lora_dropout=0.0,  # dropout would make acting and learning differ
        init_lora_weights=False,  # `with_lora` does
    )
    layers = _matrices(model)
    try:
        # new layers draw initial weights from the global generator, which is not ours to move
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            # it recognises GPT-2's transposed layers; of tied ones it is said below
            warnings.filterwarnings("ignore", message="fan_in_fan_out|.*tie_word_embeddings")
            inject_adapter_in_model(settings, model, ADAPTER)
    except ValueError as error:
        raise InputError(
            f"lora.targets is {config.targets!r}, which fits no layer of {type(model).__name__}; "
            f"give 'all-linear' or names among {', '.join(layers)}"
        ) from error
    embedding = model.get_input_embeddings().weight
    if any(layer.get_base_layer().weight is embedding for layer in lora_layers(model)):
        raise InputError(
            f"lora.targets is {config.targets!r} and names a layer whose weights are the input "
            "embedding's, so that the merged model could not be saved; leave it out"
        )


def _matrices(model: nn.Module) -> list[str]:
    """Names of the layers that may get an adapter."""
    from transformers.pytorch_utils import Conv1D

    linear = (nn.Linear, Conv1D)
    return sorted({n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, linear)})
