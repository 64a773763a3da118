"""Lagrange-multiplier controllers: λ ≥ 0 from a sequence of constraint signals.

One update per policy update. λ is kept in float64, one entry per constraint. `None` as signal (no
episode finished) leaves everything as it is. Absent: neural multipliers, λ per state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from constrained_rl.constraints import Signal
from constrained_rl.errors import InputError
from constrained_rl.protocols import Stateful


class Multiplier(Stateful, Protocol):
    """A controller of K multipliers."""

    def update(self, signal: Signal | None) -> Tensor:
        """Take one signal, return the new λ [K] ≥ 0."""


def _vector(values: Tensor | list[float] | float, count: int) -> Tensor:
    value = torch.as_tensor(values, dtype=torch.float64)
    return value.expand(count).clone()


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
    """Dual gradient ascent on λ.

    linear, sgd:   λ ← [λ + η (J_C − d)]₊                                    projected ascent
    linear, adam:  the same step through Adam's moments (OmniSafe, SafePO)
    log:           ln λ ← ln λ + η λ (J_C − d)           as published: Safe RLHF eq. 31 (λ₀ > 0)

    `delay` leaves λ at its initial value for the first updates; `maximum` bounds it from above.
    """

    def __init__(
        self,
        count: int,
        learning_rate: float,
        initial: float = 0.0,
        parameterization: Literal["linear", "log"] = "linear",
        optimizer: Literal["sgd", "adam"] = "sgd",
        delay: int = 0,
        maximum: float | None = None,
    ) -> None:
        if parameterization == "log" and initial <= 0:
            raise InputError(
                f"the log-space multiplier starts at {initial}, where ln λ cannot move; "
                "give initial > 0 (Safe RLHF uses 1)"
            )
        self._log = parameterization == "log"
        self._delay, self._maximum, self._updates = delay, maximum, 0
        start = _vector(initial, count)
        self._parameter = start.log() if self._log else start
        self._optimizer = (
            torch.optim.Adam([self._parameter], lr=learning_rate)
            if optimizer == "adam"
            else torch.optim.SGD([self._parameter], lr=learning_rate)
        )

    @property
    def lam(self) -> Tensor:
        """Current λ [K]."""
        return self._parameter.exp() if self._log else self._parameter.clone()

    def update(self, signal: Signal | None) -> Tensor:
        """One ascent step on λ · (J_C − d)."""
        if signal is None:
            return self.lam
        self._updates += 1
        if self._updates > self._delay:
            # ∂/∂(ln λ) of λ (J_C − d) is λ (J_C − d): the published rule has λ in its step.
            ascent = signal.violation * (self.lam if self._log else 1.0)
            self._parameter.grad = -ascent
            self._optimizer.step()
            self._project()
        return self.lam

    def _project(self) -> None:
        if self._log:
            if self._maximum is not None:
                self._parameter.clamp_(max=float(torch.tensor(self._maximum).double().log()))
        else:
            self._parameter.clamp_(min=0.0, max=self._maximum)

    def state_dict(self) -> dict[str, object]:
        """Parameter, optimizer moments and count of updates."""
        return {
            "parameter": self._parameter,
            "optimizer": self._optimizer.state_dict(),
            "updates": self._updates,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`."""
        parameter, optimizer, updates = state["parameter"], state["optimizer"], state["updates"]
        assert isinstance(parameter, Tensor)
        assert isinstance(optimizer, dict)
        assert isinstance(updates, int)
        self._parameter.copy_(parameter)
        self._optimizer.load_state_dict(optimizer)
        self._updates = updates


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
        initial: float = 0.0,
        proportional_ema: float = 0.0,
        derivative_ema: float = 0.0,
        derivative_delay: int = 1,
        maximum: float | None = None,
        relative: bool = False,
    ) -> None:
        self._gains = (kp, ki, kd)
        self._averages = (proportional_ema, derivative_ema)
        self._maximum, self._relative = maximum, relative
        self._integral = _vector(initial, count)
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

    def _scale(self, signal: Signal) -> Tensor:
        if not self._relative:
            return torch.ones_like(signal.limit)
        if bool((signal.limit == 0).any()):
            raise InputError(
                "multiplier.relative divides the violation by |limit|, and a limit is 0; "
                "set multiplier.relative=false or choose another limit"
            )
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
