"""How does a module take an optimizer step, on one process or on many?

An engine owns a module's optimizer and whatever its ranks do to add up gradients. `forward` is the
module as training calls it (wrappers hook only `__call__`); acting uses the bare module.
State is exchanged in one form, full tensors under the module's own names, so that what one engine
saved another loads, on any number of ranks. Absent here: sharding (llm_env/deepspeed_engine.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from constrained_rl.distributed import World
from constrained_rl.errors import InputError, require_finite
from constrained_rl.precision import FullPrecision
from constrained_rl.protocols import Stateful

LossShare = tuple[Tensor, dict[str, Tensor]]
"""A micro-batch's share of the minibatch loss, and metrics that add up over micro-batches."""
EPSILON = 1e-5
"""Adam's"""


@dataclass(frozen=True)
class Optimization:
    """Adam, and the bound on the norm of its gradient."""

    learning_rate: float
    betas: tuple[float, float]
    max_grad_norm: float


class Engine(Stateful, Protocol):
    """Trains one module. Every rank makes the same calls in the same order."""

    forward: Callable[..., Any]
    """the module as objectives call it"""
    world: World

    def accumulate(self, share: Callable[[], LossShare], last: bool) -> dict[str, Tensor]:
        """Run `share`'s forward and its backward; return its metrics.

        Gradients add up over calls and, once the `last` one before a step is done, over ranks.
        """

    def step(self) -> None:
        """Clip, update and forget the gradients, which then take no memory while others work.

        `NonFiniteError` on all ranks if the gradient is no number.
        """

    def scale_learning_rate(self, factor: float) -> None:
        """Set the learning rate to `factor` times its initial value."""

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Trainable parameters by name, whole, one after another; a replica is fed from it."""

    def state_dict(self) -> dict[str, object]:
        """What training changes, as full tensors; complete on rank 0, empty elsewhere.

        "module": trainable parameters and buffers by name; "optimizer": Adam's moments and step
        by place among the trainable parameters; "master": float32 copies of reduced-precision
        parameters. Frozen parameters are left out: they are where they were loaded from.
        """


class TorchEngine:
    """Plain torch: each rank holds everything, and DDP adds up gradients where there are several.

    Adam works on float32 copies of weights in bfloat16 (precision.py). float16 is refused: it would
    need its loss scaled, as distributed.engine='deepspeed' does.
    """

    def __init__(
        self, module: nn.Module, optimization: Optimization, world: World | None = None
    ) -> None:
        self.world = world or World()
        self._module, self._optimization = module, optimization
        self._several = None if self.world.size == 1 else _averaging(module)
        self.forward: Callable[..., Any] = self._several or module
        self._precise = FullPrecision(module)
        self.optimizer = adam(self._precise.weights, optimization)
        for parameter in self._precise.trained:
            parameter.grad = None  # what an earlier training left

    def accumulate(self, share: Callable[[], LossShare], last: bool) -> dict[str, Tensor]:
        """As `Engine.accumulate`; only the last backward talks to the other ranks."""
        with nullcontext() if self._several is None or last else self._several.no_sync():
            loss, metrics = share()
            # DDP averages over ranks, and shares of a loss have to be added
            loss = loss if self.world.size == 1 else loss * self.world.size
            loss.backward()  # type: ignore[no-untyped-call]
        return metrics

    def step(self) -> None:
        """As `Engine.step`; a gradient that is no number moves no weight."""
        self._precise.add_gradients()
        self._clip()
        self.optimizer.step()
        for weight in self._precise.weights:
            weight.grad = None
        self._precise.round()

    def _clip(self) -> None:
        """Bound the norm of all gradients together; most are within it and are left alone."""
        weights, bound = self._precise.weights, self._optimization.max_grad_norm
        norm = nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        if float(require_finite("gradient norm", norm)) > bound:
            nn.utils.clip_grads_with_norm_(weights, bound, norm)

    def scale_learning_rate(self, factor: float) -> None:
        """As `Engine.scale_learning_rate`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._optimization.learning_rate * factor

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """As `Engine.full_parameters`."""
        return trainable(self._module)

    def state_dict(self) -> dict[str, object]:
        """As `Engine.state_dict`."""
        if not self.world.first:
            return {}
        state: dict[str, object] = {
            "module": {n: value.detach() for n, value in saved_tensors(self._module).items()},
            "optimizer": {"state": self.optimizer.state_dict()["state"]},
        }
        if self._precise.reduced:
            state["master"] = dict(enumerate(w.detach() for w in self._precise.weights))
        return state

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`; `InputError` where names or shapes differ."""
        load_tensors(self._module, state)
        moments = optimizer_state(state, self._precise.trained)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        masters = master_copies(state)
        with torch.no_grad():
            pairs = zip(self._precise.trained, self._precise.weights, strict=True)
            for index, (parameter, weight) in enumerate(pairs):
                weight.copy_(masters.get(index, parameter))
        self._precise.round()


def adam(parameters: list[nn.Parameter], optimization: Optimization) -> torch.optim.Adam:
    """Adam as every engine runs it."""
    return torch.optim.Adam(
        parameters,
        lr=optimization.learning_rate,
        betas=optimization.betas,
        eps=EPSILON,
        fused=True,
    )


def _averaging(module: nn.Module) -> DistributedDataParallel:
    """DDP; it averages gradients, and leaves buffers alone, which no forward changes."""
    with warnings.catch_warnings():
        # torch 2.13 renames this argument; the new name does not exist in 2.8
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(module, broadcast_buffers=False)


@dataclass(frozen=True)
class Engines:
    """Which engine trains modules, and on which ranks."""

    world: World = field(default_factory=World)
    make: Callable[[nn.Module, Optimization, World], Engine] = TorchEngine
    sharded: bool = False
    """weights are spread over ranks between forwards, so that acting needs a replica"""


def trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Trainable parameters by name; one that two modules share comes once."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def saved_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and buffers: what a checkpoint needs of a module."""
    return {
        name: value
        for name, value in module.state_dict(keep_vars=True).items()
        if not isinstance(value, nn.Parameter) or value.requires_grad
    }


def load_tensors(module: nn.Module, state: Mapping[str, object]) -> None:
    """Put a state's trainable parameters and buffers into a module.

    Frozen ones may be missing, and what a module itself supplies for folders of older versions.
    """
    tensors = module_tensors(state)
    expected = {name: value.shape for name, value in saved_tensors(module).items()}
    check_names({name: shape for name, shape in expected.items() if name in tensors}, tensors)
    missing = module.load_state_dict(tensors, strict=False).missing_keys
    check_names({name: expected[name] for name in missing if name in expected}, tensors)


def module_tensors(state: Mapping[str, object]) -> dict[str, Tensor]:
    """The "module" part of an engine's state."""
    tensors = state["module"]
    assert isinstance(tensors, Mapping)
    return dict(tensors)


def check_names(expected: Mapping[str, torch.Size], found: Mapping[str, Tensor]) -> None:
    """Raise `InputError` unless every expected tensor is there, in its shape."""
    missing = [name for name in expected if name not in found]
    misshapen = [
        f"{name} {tuple(found[name].shape)} for {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    if missing or misshapen:
        what = "; ".join(
            f"{label}: {', '.join(names[:3])}{' …' * (len(names) > 3)}"
            for label, names in (("missing", missing), ("of another shape", misshapen))
            if names
        )
        raise InputError(
            f"the checkpoint holds another model than the settings describe ({what}); restore the "
            "settings it was made with (model, adapters, value heads), or start a new run"
        )


def optimizer_state(
    state: Mapping[str, object], parameters: list[nn.Parameter]
) -> dict[int, dict[str, Tensor]]:
    """Adam's state by place among the trainable parameters; checked against their number."""
    optimizer = state["optimizer"]
    assert isinstance(optimizer, Mapping)
    moments: dict[int, dict[str, Tensor]] = optimizer["state"]
    if moments and max(moments) >= len(parameters):
        raise InputError(
            f"the checkpoint's optimizer has {max(moments) + 1} parameters, the model trains "
            f"{len(parameters)}; restore the settings it was made with, or start a new run"
        )
    return dict(moments)


def master_copies(state: Mapping[str, object]) -> dict[int, Tensor]:
    """Float32 copies of reduced-precision parameters; none in a float32 run's state."""
    masters = state.get("master", {})
    assert isinstance(masters, Mapping)
    return dict(masters)


@torch.no_grad()
def feed(replica: nn.Module, engine: Engine) -> None:
    """Copy an engine's trainable parameters into a replica of its module."""
    for name, value in engine.full_parameters():
        replica.get_parameter(name).copy_(value)
