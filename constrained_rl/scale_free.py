"""The default controller: how is λ found when neither reward's nor cost's units are known?

Absent: the published rules, see `multipliers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from constrained_rl.constraints import Signal
from constrained_rl.multipliers import one_each


class ScaleFree:
    """PI control in units of the problem, so that nothing depends on scales of reward or cost.

    σ_R, σ_k ← .9 σ + .1 (deviation of the raw advantage streams);  ρ_k = σ_R / σ_k
    S_k, L ← .98 S_k + .02 (deviation of the episode cost), the same of its length
    D_k = min(max(|d_k|, S_k), ½ σ_k L)
    x_k = clip((J_k − d_k) / D_k, −1, 1)
    I_k ← clip(I_k + K_i f max(1, I_k) clip(5 x_k, −3, 1), 0, maximum)
    λ_k = ρ_k max(0, I_k + K_p max(1, I_k) x_k)

    On the support of an optimal policy A_R = Σ λ*_k A_k, so λ*/ρ is of order 1 whatever the units.
    λ integrates the violation and the policy integrates λ: the proportional term damps that loop,
    and f, the factor of the policy's learning rate, keeps the damping the same as the policy slows
    down. max(1, I) lets both terms reach a price that is far too high. ½ σ_k L is half a deviation
    of advantage in every step: it knows nothing of a constant that every step pays, which |d_k|
    and S_k do. Averages start at their first observation. The study: docs/multipliers.md.

    Args:
        count: number of multipliers, K.
        kp: proportional gain.
        ki: integral gain per update.
        initial: λ₀ in true units, one for all constraints or one each.
        maximum: upper bound of the integral, in units of ρ.
    """

    def __init__(
        self,
        count: int,
        kp: float = 3.0,
        ki: float = 0.1,
        initial: float | Sequence[float] = 0.0,
        maximum: float = 50.0,
    ) -> None:
        self._gains, self._maximum = (kp, ki), maximum
        self.lam = one_each(initial, count, "initial")
        self._integral: Tensor | None = None  # I, known at the first signal
        self._averages: dict[str, Tensor] = {}

    def update(self, signal: Signal | None) -> Tensor:
        """One control step."""
        if signal is None:
            return self.lam.clone()
        reward = self._average("reward", torch.full_like(signal.cost_scale, signal.reward_scale))
        cost = self._average("cost", signal.cost_scale)
        vary = (reward > 0) & (cost > 0)  # else nothing can be compared
        ratio = torch.where(vary, reward / cost, torch.ones_like(cost))
        x = self._violation(signal, cost)
        (kp, ki), integral = self._gains, self._integral
        if integral is None:
            integral = self.lam / ratio
        rise = ki * signal.pace * (5 * x).clamp(-3, 1)
        integral = (integral + integral.clamp(min=1) * rise).clamp(0, self._maximum)
        self._integral = integral
        self.lam = ratio * (integral + kp * integral.clamp(min=1) * x).clamp(min=0)
        return self.lam.clone()

    def _violation(self, signal: Signal, cost_scale: Tensor) -> Tensor:
        """Violation x [K] in [−1, 1]."""
        length = self._average("length", torch.full_like(cost_scale, signal.length), 0.98)
        unit = signal.limit.abs().maximum(self._average("spread", signal.cost_spread, 0.98))
        unit = unit.minimum(0.5 * cost_scale * length)
        # A cost that never varies has no unit of its own.
        unit = torch.where(unit > 0, unit, torch.ones_like(unit))
        return (signal.violation / unit).clamp(-1, 1)

    def _average(self, name: str, value: Tensor, decay: float = 0.9) -> Tensor:
        old = self._averages.get(name, value)
        self._averages[name] = decay * old + (1 - decay) * value
        return self._averages[name]

    def state_dict(self) -> dict[str, object]:
        """All running quantities."""
        return {"lam": self.lam, "integral": self._integral, "averages": dict(self._averages)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`."""
        lam, integral, averages = state["lam"], state["integral"], state["averages"]
        assert isinstance(lam, Tensor)
        assert integral is None or isinstance(integral, Tensor)
        assert isinstance(averages, Mapping)
        self.lam = lam.clone()
        self._integral = None if integral is None else integral.clone()
        self._averages = {name: value.clone() for name, value in averages.items()}
