"""How far is a trained policy from the best possible one? Exactly, on a finite CMDP: no sampling.

The policy is read off the network at every state, evaluated by a linear solve, and held against the
linear program's optimum (`oracle`) in the units of `feasibility.regret` and `feasibility.violation`:

>>> yardstick = Yardstick.of(cmdp)                   # doctest: +SKIP
>>> yardstick.measure(tabular_policy(agent)).regret  # doctest: +SKIP

Absent: environments that are no finite CMDP; for these there is `Agent.evaluate`.

Letters: S states, A actions, K constraints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from constrained_rl.agent import Agent
from constrained_rl.envs.native import NativeVectorEnv
from constrained_rl.envs.tabular import Tabular
from constrained_rl.errors import InputError
from constrained_rl.feasibility import regret, violation
from constrained_rl.oracle import FiniteCMDP, Solution, evaluate_policy, solve

Floats = NDArray[np.float64]

_STEP = 1e-4  # of |limit|: how far a limit moves to see the price on either side of it
_ALIKE = 1e-3  # relative difference of two prices up to which they count as one
_NO_SPAN = 1e-9  # relative difference of two values up to which they count as one


@dataclass(frozen=True, eq=False)
class Exact:
    """One policy, evaluated exactly."""

    value: float  # J_R
    cost: Floats  # [K] J_C
    violation: float  # max_k (J_Ck − limit_k)⁺ / |limit_k|
    regret: float | None  # None: infeasible, or the uniform policy is worth as much as the optimum


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What policies of one CMDP are measured against."""

    cmdp: FiniteCMDP
    solution: Solution
    uniform: float  # J_R of the uniform policy: regret 1 is its distance from the optimum
    prices: tuple[Floats, Floats] | None  # [K] each, see `price_range`; None if infeasible

    @classmethod
    def of(cls, cmdp: FiniteCMDP) -> Self:
        """Solve the problem and its neighbours, some milliseconds for hundreds of states."""
        solution = solve(cmdp)
        states, actions, _ = cmdp.sizes
        uniform, _ = evaluate_policy(cmdp, np.full((states, actions), 1 / actions))
        return cls(cmdp, solution, uniform, price_range(cmdp) if solution.feasible else None)

    @property
    def unique_price(self) -> bool:
        """Whether there is one λ* only, so that a learned λ can be held against it."""
        if self.prices is None:
            return False
        low, high = self.prices
        return bool(np.all(high - low <= _ALIKE * max(1e-12, float(np.abs(high).max(initial=0)))))

    def measure(self, policy: Floats) -> Exact:  # policy [S, A]
        """Evaluate a stationary policy."""
        value, cost = evaluate_policy(self.cmdp, policy)
        return self.judge(value, cost)

    def judge(self, value: float, cost: Floats) -> Exact:  # cost [K]
        """Regret and violation of a policy whose value and costs are known."""
        best, limit = self.solution, self.cmdp.limit
        distance = None
        if best.feasible and abs(best.value - self.uniform) > _NO_SPAN * max(1, abs(best.value)):
            distance = regret(value, cost, limit, best.value, best.multipliers, self.uniform)
        return Exact(value, cost, violation(cost, limit) if len(limit) else 0.0, distance)


def tabular_policy(agent: Agent) -> Floats:  # [S, A]
    """Action probabilities π(a|s) of an agent in every state of its CMDP.

    Raises:
        InputError: the agent's environment is not a finite CMDP of this library.
    """
    envs = agent.envs
    if not isinstance(envs, NativeVectorEnv) or not isinstance(envs.dynamics, Tabular):
        raise InputError(
            f"the agent plays {agent.config.env.id}, which is no finite CMDP, so its policy has no "
            "table; use a tabular environment (crl envs) or env.file, or Agent.evaluate"
        )
    states, actions, _ = envs.dynamics.cmdp.sizes
    obs = agent.policy.encode(envs.dynamics.observe(np.arange(states))).unsqueeze(1)  # [S, 1, …]
    with torch.no_grad():
        logp = [agent.policy(obs, torch.full((states, 1), a))[0][:, 0] for a in range(actions)]
    # Softmax of log-probabilities in float64: float32 rounding must not break Σ_a π(a|s) = 1.
    probability: Floats = torch.stack(logp, -1).double().softmax(-1).cpu().numpy()
    return probability


def average_policy(cmdp: FiniteCMDP, policies: Sequence[Floats]) -> Floats:  # [S, A]
    """The stationary policy whose occupancy is the mean of the policies' occupancies.

    π̄(a|s) = Σ_i x_i(s) π_i(a|s) / Σ_i x_i(s),   x_i = (I − γ P_πᵢᵀ)⁻¹ ρ

    J_R and J_C are linear in the occupancy (Altman 1999, ch. 3), so those of π̄ are the means of
    the policies'. Where λ and the policy circle the optimum, the average converges although no
    iterate does. Averaging the probabilities themselves has no such property.
    """
    if not policies:
        raise InputError("there is no policy to average; give at least one [S, A]")
    states, _, _ = cmdp.sizes
    mass = np.zeros_like(cmdp.reward)
    for policy in policies:
        evaluate_policy(cmdp, policy)  # refuses what is no policy of this problem
        # x = (I − γ P_πᵀ)⁻¹ ρ
        chain = np.einsum("sa,sat->st", policy, cmdp.transition)
        visits = np.linalg.solve(np.eye(states) - cmdp.discount * chain.T, cmdp.initial)
        mass += np.clip(visits, 0, None)[:, None] * policy
    total = mass.sum(axis=1, keepdims=True)
    unseen = np.mean(np.asarray(policies), axis=0)  # where no policy goes, any row will do
    averaged: Floats = np.where(total > 0, mass / np.where(total > 0, total, 1), unseen)
    return averaged


def price_range(cmdp: FiniteCMDP) -> tuple[Floats, Floats]:  # [K], [K]
    """Least and largest λ*_k of a feasible problem, equal where the price is unique.

    The optimal value V(limit) is concave, and λ* are its supergradients: with ε = 10⁻⁴ |limit_k|
    (V(d + ε e_k) − V(d)) / ε ≤ λ*_k ≤ (V(d) − V(d − ε e_k)) / ε; the right-hand side is ∞ where
    less than d_k cannot be reached.
    """
    best = solve(cmdp).value
    low, high = np.zeros_like(cmdp.limit), np.full_like(cmdp.limit, np.inf)
    for k, limit in enumerate(cmdp.limit):
        step = np.zeros_like(cmdp.limit)
        step[k] = _STEP * (abs(limit) or 1.0)
        low[k] = max(0.0, (solve(replace(cmdp, limit=cmdp.limit + step)).value - best) / step[k])
        tighter = solve(replace(cmdp, limit=cmdp.limit - step))
        if tighter.feasible:
            high[k] = max(low[k], (best - tighter.value) / step[k])
    return low, high
