"""The published Lagrange-multiplier controllers: λ ≥ 0 from a sequence of constraint signals.

One update per policy update. λ is kept in float64, one entry per constraint. `None` as signal (no
episode finished) leaves everything as it is. The default controller is in `scale_free`. Absent:
neural multipliers, λ per state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, cast

import torch
from torch import Tensor

from constrained_rl.constraints import Signal
from constrained_rl.errors import InputError
from constrained_rl.optimizers import OptimizerFactory, make_optimizer
from constrained_rl.protocols import Stateful

Parameterization = Literal["linear", "log", "softplus"]
"""What an optimizer moves: λ, ln λ or ξ with λ = softplus(ξ)."""


class Multiplier(Stateful, Protocol):
    """A controller of K multipliers."""

    def update(self, signal: Signal | None) -> Tensor:
        """Take one signal, return the new λ [K] ≥ 0."""


def one_each(values: float | Sequence[float], count: int, name: str) -> Tensor:
    """One number for all K constraints, or one each, as [K]; `InputError` for another length."""
    value = torch.as_tensor(values, dtype=torch.float64)
    if value.ndim and len(value) != count:
        raise InputError(
            f"multiplier.{name} has {len(value)} entries for {count} constraint(s); "
            "give one number, or one per constraint"
        )
    return value.expand(count).clone()


def parameter_of(lam: Tensor, kind: Parameterization) -> Tensor:
    """What the optimizer moves to hold λ: λ, ln λ, or softplus⁻¹(λ) = λ + ln(1 − e^−λ)."""
    match kind:
        case "linear":
            return lam
        case "log":
            return lam.log()
        case "softplus":
            return lam + (-torch.expm1(-lam)).log()


def multiplier_of(parameter: Tensor, kind: Parameterization) -> Tensor:
    """λ of what the optimizer moves, as a new tensor; the inverse of `parameter_of`."""
    match kind:
        case "linear":
            return parameter.clone()
        case "log":
            return parameter.exp()
        case "softplus":
            return torch.logaddexp(parameter, torch.zeros_like(parameter))


class Fixed:
    """Static reward shaping: λ = ν for ever, whatever the costs do."""

    def __init__(self, weight: list[float]) -> None:
        if any(not 0 <= w < float("inf") for w in weight):
            raise InputError(f"static weights are {weight}; give finite weights ≥ 0")
        self.lam = torch.tensor(weight, dtype=torch.float64)

    def update(self, signal: Signal | None) -> Tensor:
        """Return ν."""
        return self.lam.clone()

    def state_dict(self) -> dict[str, object]:
        """Nothing changes, so nothing is stored."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Nothing to restore."""


class Gradient:
    """Dual gradient ascent on λ · (J_C − d).

    linear:    λ ← [λ + η (J_C − d)]₊                            projected ascent
    log:       ln λ ← ln λ + η λ (J_C − d)        as published: Safe RLHF eq. 31 (λ₀ > 0)
    softplus:  λ = ln(1 + e^ξ),  ξ ← ξ + η σ(ξ) (J_C − d)       (λ₀ > 0; Ray et al. 2019's code)

    The equations are those of plain "sgd"; any other optimizer takes the same gradient through its
    own moments ("adam" with linear λ: OmniSafe, SafePO). `delay` leaves λ at its initial value for
    the first updates; `maximum` bounds it from above.

    Args:
        count: number of multipliers, K.
        learning_rate: η, per unit of violation for "sgd".
        initial: λ₀, one for all constraints or one each.
        parameterization: what the optimizer moves: λ, ln λ or ξ.
        optimizer: a class of torch.optim by its name in any case, or a factory called as
            `optimizer(parameters, lr=learning_rate, **optimizer_options)`.
        delay: updates before λ may move.
        maximum: upper bound of λ.
        optimizer_options: further arguments of the optimizer.
    """

    def __init__(
        self,
        count: int,
        learning_rate: float,
        initial: float | Sequence[float] = 0.0,
        parameterization: Parameterization = "linear",
        optimizer: str | OptimizerFactory = "sgd",
        delay: int = 0,
        maximum: float | None = None,
        optimizer_options: Mapping[str, object] | None = None,
    ) -> None:
        self._kind = parameterization
        self._delay, self._updates = delay, 0
        self._parameter = self._start(one_each(initial, count, "initial"))
        self._maximum = None
        if maximum is not None:
            self._maximum = float(
                parameter_of(torch.tensor(maximum, dtype=torch.float64), self._kind)
            )
        self._optimizer, self._moments = make_optimizer(
            optimizer, self._parameter, learning_rate, optimizer_options or {}
        )

    def _start(self, lam: Tensor) -> Tensor:
        """The parameter of a λ that it can move away from."""
        if self._kind != "linear" and not (lam > 0).all():
            raise InputError(
                f"the {self._kind} multiplier starts at {float(lam.min()):g}, where its parameter "
                "is −∞ and cannot move; give multiplier.initial > 0 (Safe RLHF uses 1), or "
                "multiplier.parameterization=linear"
            )
        return parameter_of(lam, self._kind)

    @property
    def lam(self) -> Tensor:
        """Current λ [K]."""
        return multiplier_of(self._parameter, self._kind)

    def update(self, signal: Signal | None) -> Tensor:
        """One ascent step on λ · (J_C − d)."""
        if signal is None:
            return self.lam
        self._updates += 1
        if self._updates > self._delay and len(self._parameter) > 0:
            self._parameter.grad = -signal.violation * self._slope()
            self._optimizer.step()
            self._project()
        return self.lam

    def _slope(self) -> Tensor | float:
        """∂λ / ∂parameter: 1, ∂e^x/∂x = λ, or ∂ln(1 + e^ξ)/∂ξ = σ(ξ)."""
        match self._kind:
            case "linear":
                return 1.0
            case "log":
                return self.lam
            case "softplus":
                return self._parameter.sigmoid()

    def _project(self) -> None:
        """Keep λ in [0, maximum]; what is not linear is positive by itself."""
        least = 0.0 if self._kind == "linear" else None
        if least is not None or self._maximum is not None:
            self._parameter.clamp_(min=least, max=self._maximum)

    def state_dict(self) -> dict[str, object]:
        """Parameter and what it is, optimizer moments and count of updates."""
        return {
            "parameter": self._parameter,
            "parameterization": self._kind,
            "optimizer": self._optimizer.state_dict(),
            "updates": self._updates,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore λ, its optimizer's moments and the count of updates; settings stay the config's.

        Moments are those of one optimizer and one parameterization: others begin anew.
        """
        parameter, optimizer, updates = state["parameter"], state["optimizer"], state["updates"]
        kind = cast("Parameterization", state.get("parameterization", self._kind))  # older: its own
        assert isinstance(parameter, Tensor)
        assert isinstance(optimizer, dict)
        assert isinstance(updates, int)
        self._updates = updates
        if kind == self._kind:
            self._parameter.copy_(parameter)
            self._load_moments(optimizer["state"].get(0, {}), optimizer["param_groups"][0])
            return
        self._parameter.copy_(self._start(multiplier_of(parameter, kind)))

    def _load_moments(self, saved: Mapping[str, object], options: Mapping[str, object]) -> None:
        """Take over moments where they are what this optimizer keeps.

        They keep their own types: NAdam and ASGD count in float32, and cast to the parameter's
        float64, as torch would, they round differently from the run that was saved.
        """
        if set(options) != set(self._optimizer.param_groups[0]) or not self._moments <= set(saved):
            return
        self._optimizer.state[self._parameter] = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in saved.items()
        }


class PID:
    """PID control of λ (Stooke et al. 2020, Alg. 2).

    Δ = J_C − d                                  (divided by |d| when `relative`)
    I ← clip(I + K_i Δ, 0, maximum)              integral, clipped: anti-windup
    P ← a_p P + (1 − a_p) Δ                      EMA; a_p = 0 is the paper's proportional term
    C ← a_d C + (1 − a_d) J_C,  D = max(0, C − C[−delay])       derivative on rising cost only
    λ = clip(K_p P + I + K_d D, 0, maximum)

    The paper's algorithm has no averages and delay 1; its released code and the peers use
    a_p = a_d = .95 and delay 10. As there, the delay line starts with a single 0.
    """

    def __init__(
        self,
        count: int,
        kp: float,
        ki: float,
        kd: float,
        initial: float | Sequence[float] = 0.0,
        proportional_ema: float = 0.0,
        derivative_ema: float = 0.0,
        derivative_delay: int = 1,
        maximum: float | None = None,
        relative: bool = False,
    ) -> None:
        self._gains = (kp, ki, kd)
        self._averages = (proportional_ema, derivative_ema)
        self._maximum, self._relative = maximum, relative
        self._integral = one_each(initial, count, "initial")
        self._proportional = torch.zeros(count, dtype=torch.float64)
        self._cost = torch.zeros(count, dtype=torch.float64)
        self._delayed: deque[Tensor] = deque([self._cost.clone()], maxlen=derivative_delay)
        self.lam = self._integral.clone()

    def update(self, signal: Signal | None) -> Tensor:
        """One control step."""
        if signal is None:
            return self.lam.clone()
        (kp, ki, kd), (a_p, a_d) = self._gains, self._averages
        scale = self._scale(signal)
        delta = signal.violation / scale
        self._integral = (self._integral + ki * delta).clamp(min=0.0, max=self._maximum)
        self._proportional = a_p * self._proportional + (1 - a_p) * delta
        self._cost = a_d * self._cost + (1 - a_d) * signal.cost / scale
        derivative = (self._cost - self._delayed[0]).clamp(min=0.0)
        self._delayed.append(self._cost)
        lam = kp * self._proportional + self._integral + kd * derivative
        self.lam = lam.clamp(min=0.0, max=self._maximum)
        return self.lam.clone()

    def check_limits(self, limits: Sequence[float]) -> None:
        """Raise `InputError` if the violation is measured in units of a limit that is 0."""
        if self._relative and 0 in limits:
            raise InputError(
                "multiplier.relative divides the violation by |limit|, and a limit is 0; "
                "set multiplier.relative=false or choose another limit"
            )

    def _scale(self, signal: Signal) -> Tensor:
        if not self._relative:
            return torch.ones_like(signal.limit)
        self.check_limits(signal.limit.tolist())
        return signal.limit.abs()

    def state_dict(self) -> dict[str, object]:
        """All running quantities."""
        return {
            "integral": self._integral,
            "proportional": self._proportional,
            "cost": self._cost,
            "delayed": list(self._delayed),
            "lam": self.lam,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`."""

        def tensor(name: str) -> Tensor:
            value = state[name]
            assert isinstance(value, Tensor)
            return value.clone()

        self._integral, self._proportional = tensor("integral"), tensor("proportional")
        self._cost, self.lam = tensor("cost"), tensor("lam")
        delayed = state["delayed"]
        assert isinstance(delayed, list)
        self._delayed.clear()
        self._delayed.extend(delayed)
