"""How far is a trained policy from the best possible one? Exactly, on a finite CMDP: no sampling.

The policy is read off the network in every state, evaluated by a linear solve, and held against the
linear program's optimum (`oracle`), in the units of `feasibility`:

>>> yardstick = Yardstick.of(cmdp)                   # doctest: +SKIP
>>> yardstick.measure(tabular_policy(agent)).regret  # doctest: +SKIP

Absent: environments that are no finite CMDP; for these there is `Agent.evaluate`.

Letters: S states, A actions, K constraints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from constrained_rl.agent import Agent
from constrained_rl.envs.native import NativeVectorEnv
from constrained_rl.envs.tabular import Tabular
from constrained_rl.errors import InputError
from constrained_rl.feasibility import regret, violation
from constrained_rl.finite import FiniteCMDP
from constrained_rl.occupancy import evaluate_policy, occupancy, policy_of, uniform_policy
from constrained_rl.oracle import Solution, multiplier_ranges, solve

Floats = NDArray[np.float64]

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
    unique_price: bool  # whether there is one λ* only, so that a learned λ can be held against it

    @classmethod
    def of(cls, cmdp: FiniteCMDP) -> Self:
        """Solve the problem: some milliseconds for hundreds of states."""
        solution = solve(cmdp)
        uniform, _ = evaluate_policy(cmdp, uniform_policy(cmdp))
        unique = solution.feasible and bool(multiplier_ranges(cmdp).unique.all())
        return cls(cmdp, solution, uniform, unique)

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
        logp = [
            agent.policy(obs, torch.full((states, 1), a, device=obs.device))[0][:, 0]
            for a in range(actions)
        ]
    # Softmax of log-probabilities in float64: float32 rounding must not break Σ_a π(a|s) = 1.
    probability: Floats = torch.stack(logp, -1).double().softmax(-1).cpu().numpy()
    return probability


def average_policy(cmdp: FiniteCMDP, policies: Sequence[Floats]) -> Floats:  # [S, A]
    """The stationary policy whose occupancy is the mean of the policies' occupancies.

    π̄(a|s) = Σ_i μ_i(s,a) / Σ_i Σ_a μ_i(s,a)

    J_R and J_C are linear in the occupancy μ (Altman 1999, ch. 3), so those of π̄ are the means of
    the policies'. Where λ and the policy circle the optimum, the average converges although no
    iterate does. Averaging the probabilities themselves has no such property.
    """
    if not policies:
        raise InputError("there is no policy to average; give at least one [S, A]")
    return policy_of(np.mean([occupancy(cmdp, policy) for policy in policies], axis=0))
