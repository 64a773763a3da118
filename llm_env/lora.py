"""Low-rank adapters: several models on one set of frozen weights.

    h = W x + (α / r) · B A x          W frozen, A [r, in] random, B [out, r] = 0 at the start

(Hu et al. 2022, eq. 3.) `with_lora` gives a model of its own whose frozen weights are the very
tensors of the model it was made from: so a policy, its KL reference (the bare model) and a critic
on the same trunk hold one copy of the weights, each its own adapter, and nothing is ever switched.
Only adapters and heads are trained and need to be in a checkpoint. Absent: quantised weights,
adapters of embeddings, of routers and of experts that are one tensor.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from constrained_rl.errors import InputError
from llm_env.models import LoRAConfig, ModelSource, outline
from llm_env.policy import response_logp
from llm_env.reached import freeze_unreached

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel

    from constrained_rl.protocols import Reference
    from llm_env.tokens import TokenRows

Model = TypeVar("Model", bound="PreTrainedModel")

ADAPTER = "default"
ALL = "all-linear"
"""every linear layer but the output layer"""


def with_lora(model: Model, config: LoRAConfig, generator: torch.Generator) -> Model:
    """A model that shares the weights of `model`, which are frozen, and adds an adapter of its own.

    It computes exactly what `model` computes until its adapter is trained. The adapter is float32
    whatever the weights are.

    Args:
        model: a causal LM, or the trunk of one (`model.base_model`).
        config: rank, scale and layers of the adapter.
        generator: of the initial A: uniform within ± 1/√in.

    Raises:
        InputError: peft is missing, or no linear layer has a name that `config.targets` gives.
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
    freeze_unreached(twin)
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


def targeted(model: PreTrainedModel, config: LoRAConfig) -> list[str]:
    """Full names of the layers that get an adapter; the model may be an outline without weights.

    Raises:
        InputError: a name of `config.targets` fits no linear layer, or one whose weights are the
            input embedding's.
    """
    layers = _linear_layers(model)
    if isinstance(config.targets, str) and config.targets.lower() == ALL:
        output = model.get_output_embeddings()
        names = [name for name, layer in layers.items() if layer is not output]
        if not names:
            raise InputError(f"{type(model).__name__} has no linear layers; leave lora out")
        return names
    found = {target: _fitting(target, layers) for target in _each(config.targets)}
    lost = [target for target, names in found.items() if not names]
    if lost:
        known = sorted({name.split(".")[-1] for name in layers})
        raise InputError(
            f"lora.targets is {config.targets!r}, but {', '.join(map(repr, lost))} fits no linear "
            f"layer of {type(model).__name__}; give {ALL!r} or names among {', '.join(known)}"
            f"{_of_experts(model)}"
        )
    embedding = model.get_input_embeddings().weight
    chosen = {name for names in found.values() for name in names}
    if any(layers[name].weight is embedding for name in chosen):
        raise InputError(
            f"lora.targets is {config.targets!r} and names a layer whose weights are the input "
            "embedding's, so that the merged model could not be saved; leave it out"
        )
    return [name for name in layers if name in chosen]


def check_lora(
    source: ModelSource,
    config: LoRAConfig | None,
    part: Callable[[PreTrainedModel], PreTrainedModel] = lambda model: model,
) -> None:
    """`InputError` where a model, or its part, cannot have adapters; before weights are read."""
    if config is not None:
        require_peft()
        targeted(part(outline(source)), config)


def _each(targets: str | tuple[str, ...]) -> tuple[str, ...]:
    return (targets,) if isinstance(targets, str) else targets


def _fitting(target: str, layers: Mapping[str, nn.Module]) -> list[str]:
    """Layers whose last name, or last names with dots, these are; or a regular expression fits."""
    named = [name for name in layers if name == target or name.endswith(f".{target}")]
    try:
        return named or [name for name in layers if re.fullmatch(target, name)]
    except re.error:
        return []


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers that may get an adapter: y = W x, and nothing else.

    A router that is a linear layer by its class, and chooses experts (PhiMoE, Llama 4), is none.
    """
    from transformers.pytorch_utils import Conv1D

    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, Conv1D) or (isinstance(layer, nn.Linear) and _maps(layer))
    }


def _maps(layer: nn.Linear) -> bool:
    """Whether a linear layer gives what its class promises: one tensor of so many numbers."""
    if type(layer).forward is nn.Linear.forward:
        return True
    try:
        with torch.no_grad():
            found: object = layer(layer.weight.new_zeros(1, layer.in_features))
    except (RuntimeError, TypeError, ValueError):  # it asks for more than x
        return False
    return isinstance(found, Tensor) and found.shape == (1, layer.out_features)


def _of_experts(model: nn.Module) -> str:
    """What to know where the experts of a layer are one tensor, as in transformers 5."""
    kinds = sorted(
        {type(m).__name__ for m in model.modules() if type(m).__name__.endswith("Experts")}
    )
    if not kinds:
        return ""
    return f" (experts are one tensor in {', '.join(kinds)}, which gets no adapter)"


def _inject(model: PreTrainedModel, config: LoRAConfig) -> None:
    """Put an adapter beside every targeted layer of the model, in place."""
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    # Around the model, so that peft does not see which family it is: it would take names such as
    # gate_proj for those of fused experts, which are no linear layers.
    around = nn.ModuleDict({"model": model})
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=[f"model.{name}" for name in targeted(model, config)],
        lora_dropout=0.0,  # dropout would make acting and learning differ
        init_lora_weights=False,  # `with_lora` does
    )
    # new layers draw initial weights from the global generator, which is not ours to move
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # it recognises GPT-2's transposed layers
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        inject_adapter_in_model(settings, around, ADAPTER)
