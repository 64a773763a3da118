"""What is bounded: functions of finished episodes' costs, alone or as groups that share a prompt.

    identity       E[C]
    probability    E[σ(C − c)]                    C a logit of "unsafe"
    indicator      P(C > c)
    excess         E[(C − c)⁺]                    nothing below c pays for what is above
    cvar           E[C | the worst 1 − α]         Rockafellar & Uryasev 2000, theorem 1
    per group      E_g[(mean over g of t(C) − c)⁺]

c is the threshold. Pure functions; what an iteration makes of them is in `constraints`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from constrained_rl.feasibility import ROUNDING

TransformKind = Literal["identity", "probability", "indicator", "excess", "cvar"]
Per = Literal["all", "group"]


def transform_cost(
    cost: Tensor,  # [E]
    kind: TransformKind,
    threshold: float = 0.0,
    alpha: float = 0.9,
    t: float | None = None,
) -> Tensor:  # [E]
    """Transform each episode's cost; the mean is what is bounded.

    Args:
        cost: of finished episodes.
        kind: which function.
        threshold: c of probability, indicator and excess.
        alpha: of cvar.
        t: of cvar, see `tail_cost`; default: the sample's own quantile.
    """
    match kind:
        case "identity":
            return cost
        case "probability":
            return torch.sigmoid(cost - threshold)
        case "indicator":
            return (_above(cost, threshold) > 0).to(cost.dtype)
        case "excess":
            return _above(cost, threshold)
        case "cvar":
            return tail_cost(cost, quantile(cost.tolist(), alpha) if t is None else t, alpha)


def tail_cost(cost: Tensor, t: float, alpha: float) -> Tensor:  # [E]
    """T + (C − t)⁺ / (1 − α): its mean is least at the α-quantile t, and there it is CVaR_α.

    Rockafellar & Uryasev 2000, eq. 4. Any other t makes the mean too high, never too low.

    >>> tail_cost(torch.tensor([0.0, 4.0]), 1.0, 0.5).tolist()
    [1.0, 7.0]
    """
    return t + (cost - t).relu() / (1 - alpha)


def quantile(costs: list[float], alpha: float) -> float:
    """Smallest cost that a share of at least α of `costs` [n ≥ 1] does not exceed.

    >>> quantile([3.0, 1.0, 2.0, 4.0], 0.75)
    3.0
    """
    return sorted(costs)[max(math.ceil(alpha * len(costs)), 1) - 1]


def group_excess(
    value: Tensor,  # [E]
    group: Tensor,  # [E]
    threshold: float,
) -> Tensor:  # [G]
    """Excess of each group's mean, (m_g − c)⁺: a group below c pays for no other.

    With n members its expectation is above (E[t | prompt] − c)⁺, by Jensen's inequality: by
    s / √(2πn) at the threshold, less away from it. With one member it is the excess of t itself.

    >>> group_excess(torch.tensor([-3.0, -1.0, 2.0, 4.0]), torch.tensor([0, 0, 1, 1]), 0.0).tolist()
    [0.0, 3.0]
    """
    total, size, _ = _sums(value, group)
    return _above(total / size, threshold)


def group_payment(
    value: Tensor,  # [E]
    group: Tensor,  # [E]
    threshold: float,
) -> Tensor:  # [E]
    """What each member of a group pays, so that the policy gradient is that of the mean excess.

    w_i = n (m − c)⁺ − (n − 1) (m_{−i} − c)⁺,   m_{−i} the mean of the others

    ∇E[(m − c)⁺] = E[(m − c)⁺ Σ_i ∇ln π(y_i)] = E[(1/n) Σ_i w_i ∇ln π(y_i)], because the second
    term does not depend on y_i and so adds nothing in expectation. w_i is t_i − c where the group
    is above c with and without it, 0 where it is below, and (t − c)⁺ for a group of one.

    >>> group_payment(torch.tensor([1.0, 5.0, -4.0, 1.0]), torch.tensor([0, 0, 1, 1]), 0.0).tolist()
    [1.0, 5.0, -1.0, 0.0]
    """
    total, size, index = _sums(value, group)
    n, mean = size[index], (total / size)[index]
    others = (n * mean - value) / (n - 1).clamp(min=1)
    return n * (mean - threshold).relu() - (n - 1) * (others - threshold).relu()


def _above(value: Tensor, threshold: float) -> Tensor:
    """(x − c)⁺, 0 where x meets c as far as its rounded sum can tell."""
    excess = (value - threshold).relu()
    return torch.where(excess <= ROUNDING * abs(threshold), 0.0, excess)


def _sums(value: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum [G] and size [G] of each group, and each member's place among the groups [E]."""
    _, index, size = torch.unique(group, return_inverse=True, return_counts=True)
    total = value.new_zeros(len(size)).index_add(0, index, value)
    return total, size.to(value), index
