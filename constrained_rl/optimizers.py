"""Which torch optimizer drives λ? Found by name, and tried once before anything expensive starts.

Absent: optimizers of networks (learner.py), optimizers that need a closure or sparse gradients.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from constrained_rl.errors import InputError

OptimizerFactory = Callable[..., torch.optim.Optimizer]
"""Called as `factory(parameters, lr=learning_rate, **options)`, as every class of torch.optim."""


def make_optimizer(
    choice: str | OptimizerFactory,
    parameter: Tensor,  # [K] float64
    learning_rate: float,
    options: Mapping[str, object],
) -> tuple[torch.optim.Optimizer, frozenset[str]]:
    """An optimizer of `parameter`, and the names of the moments that it keeps.

    `choice` is a class of torch.optim by its name in any case, or a factory. `InputError` for an
    unknown name, options that are refused, and optimizers that cannot step on one dense gradient
    per update.
    """
    factory = find_optimizer(choice) if isinstance(choice, str) else choice
    name = getattr(factory, "__name__", repr(factory))
    _check_names(name, factory, options)
    moments = _try(name, factory, learning_rate, options)
    return factory([parameter], lr=learning_rate, **options), moments


def find_optimizer(name: str) -> OptimizerFactory:
    """The class of torch.optim with this name; `InputError` with the nearest names."""
    known: dict[str, OptimizerFactory] = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    del known["optimizer"]  # the abstract base
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5) or sorted(known)
        raise InputError(
            f"optimizer '{name}' is not in torch.optim {torch.__version__}; "
            f"did you mean {', '.join(near)}?"
        )
    return known[name.lower()]


def _check_names(name: str, factory: OptimizerFactory, options: Mapping[str, object]) -> None:
    """Refuse options that the optimizer does not have, or that are set elsewhere."""
    if "lr" in options:
        raise InputError("optimizer_options holds lr; set multiplier.learning_rate instead")
    if "maximize" in options:
        raise InputError(
            "optimizer_options holds maximize, which would turn ascent into descent; remove it"
        )
    parameters = inspect.signature(factory).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    known = sorted(set(parameters) - {"params", "lr", "maximize"})
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.5) or known
            raise InputError(
                f"optimizer {name} has no option '{option}'; did you mean {', '.join(near)}?"
            )


def _try(
    name: str, factory: OptimizerFactory, learning_rate: float, options: Mapping[str, object]
) -> frozenset[str]:
    """Take one step on a number of its own, so that whatever torch refuses shows here.

    Returns the names of what the optimizer remembers of it.
    """
    number = torch.ones(1, dtype=torch.float64)
    try:
        optimizer = factory([number], lr=learning_rate, **options)
    except Exception as error:
        found = f"optimizer_options {dict(options)}" if options else "the multiplier"
        raise InputError(f"optimizer {name} refuses {found}: {error}; choose another") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(
            f"optimizer {name} made a {type(optimizer).__name__}; return a torch.optim.Optimizer"
        )
    number.grad = torch.ones_like(number)
    try:
        optimizer.step()
    except Exception as error:
        raise InputError(
            f"optimizer {name} cannot drive λ, which has one dense gradient per update: {error}; "
            "choose another, e.g. sgd or adam"
        ) from error
    return frozenset(map(str, optimizer.state[number]))
