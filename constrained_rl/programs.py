"""The linear programs of finite constrained MDPs: what is a feasible occupancy, and the best one?

    max r·x   subject to   A x = b (flow),   C x ≤ d (costs),   x ≥ 0

and its dual, min b·v + d·λ subject to Aᵀv + Cᵀλ ≥ r and λ ≥ 0. Each criterion of `finite` has its
own flow. Sparse, solved by HiGHS through SciPy. Absent: policies, which `oracle` reads off x.

Letters: S states, A actions, K constraints, H decisions, X variables, E equations.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.optimize import linprog

from constrained_rl.errors import InputError
from constrained_rl.finite import (
    Average,
    Criterion,
    Discounted,
    FiniteCMDP,
    Floats,
    Horizon,
    reachable,
    require_ends,
)

_TOLERANCE = 1e-10
_HIGHS = {"primal_feasibility_tolerance": _TOLERANCE, "dual_feasibility_tolerance": _TOLERANCE}
_OPTIMAL, _INFEASIBLE, _UNBOUNDED, _UNCLEAR = 0, 2, 3, 4  # SciPy's names of HiGHS' answers


@dataclass(frozen=True, eq=False)
class Program:
    """A criterion's linear program, with the place of every variable in the occupancy."""

    flow: Any  # [E, X] sparse
    inflow: Floats  # [E]
    reward: Floats  # [X]
    cost: Floats  # [K, X]
    limit: Floats  # [K]
    place: NDArray[np.int64]  # [X] of each variable in the flat occupancy
    shape: tuple[int, ...]  # of the occupancy, [..., S, A]

    def occupancy(self, x: Floats) -> Floats:
        """The variables as an array of the occupancy's shape, 0 where there is none."""
        found = np.zeros(self.shape)
        found.ravel()[self.place] = np.clip(x, 0, None)
        return found


@dataclass(frozen=True, eq=False)
class Optimum:
    """An optimal vertex of a program and its prices."""

    x: Floats  # [X]
    value: float
    multipliers: Floats  # [K], ≥ 0


def program(cmdp: FiniteCMDP, criterion: Criterion) -> Program:
    """The linear program of a criterion.

    Raises:
        InputError: the discount is 1 and episodes never end.
    """
    match criterion:
        case Discounted():
            return _discounted(cmdp)
        case Average():
            return _average(cmdp)
        case Horizon(decisions):
            return _horizon(cmdp, decisions)


def _discounted(cmdp: FiniteCMDP) -> Program:
    """Σ_a μ(s',a) − γ Σ_{s,a} P(s'|s,a) μ(s,a) = ρ(s') (Altman 1999, ch. 3; for γ = 1 ch. 8).

    With γ = 1 only states that can be reached before an episode's end have a balance: what
    circulates elsewhere is no episode's visit.
    """
    require_ends(cmdp)
    states, actions, channels = cmdp.sizes
    live = np.ones(states, dtype=np.bool_)
    if cmdp.discount == 1:
        step = cmdp.transition.max(axis=1) > 0
        live = reachable(step, cmdp.initial > 0) & ~cmdp.absorbing
    pairs = np.repeat(live, actions)
    kept = np.flatnonzero(live)
    departures, arrivals = _flows(cmdp)
    return Program(
        flow=(departures - cmdp.discount * arrivals)[kept][:, np.flatnonzero(pairs)],
        inflow=cmdp.initial[live],
        reward=cmdp.reward.ravel()[pairs],
        cost=cmdp.cost.reshape(channels, states * actions)[:, pairs],
        limit=cmdp.limit,
        place=np.flatnonzero(pairs),
        shape=(states, actions),
    )


def _average(cmdp: FiniteCMDP) -> Program:
    """Σ_a x(s',a) − Σ P x = 0 and Σ_a x(s',a) + Σ_a y(s',a) − Σ P y = ρ(s').

    x are long-run frequencies, y visits on the way there. Right for chains of any structure
    (Hordijk and Kallenberg 1984, *Constrained undiscounted stochastic dynamic programming*;
    Puterman 1994, §9.3).
    """
    states, actions, channels = cmdp.sizes
    departures, arrivals = _flows(cmdp)
    balance = departures - arrivals
    nothing = np.zeros(states * actions)
    costs = cmdp.cost.reshape(channels, states * actions)
    return Program(
        flow=sparse.block_array([[balance, None], [departures, balance]], format="csr"),
        inflow=np.concatenate([np.zeros(states), cmdp.initial]),
        reward=np.concatenate([cmdp.reward.ravel(), nothing]),
        cost=np.concatenate([costs, np.zeros_like(costs)], axis=1),
        limit=cmdp.limit,
        place=np.arange(2 * states * actions),
        shape=(2, states, actions),
    )


def _horizon(cmdp: FiniteCMDP, decisions: int) -> Program:
    """Σ_a x_0(s,a) = ρ(s) and Σ_a x_{t+1}(s',a) = Σ_{s,a} P(s'|s,a) x_t(s,a)."""
    states, actions, channels = cmdp.sizes
    departures, arrivals = _flows(cmdp)
    now = sparse.eye_array(decisions)
    before = sparse.eye_array(decisions, k=-1)
    costs = cmdp.cost.reshape(channels, states * actions)
    return Program(
        flow=sparse.kron(now, departures, format="csr") - sparse.kron(before, arrivals),
        inflow=np.concatenate([cmdp.initial, np.zeros((decisions - 1) * states)]),
        reward=np.tile(cmdp.reward.ravel(), decisions),
        cost=np.tile(costs, (1, decisions)),
        limit=cmdp.limit,
        place=np.arange(decisions * states * actions),
        shape=(decisions, states, actions),
    )


def _flows(cmdp: FiniteCMDP) -> tuple[Any, Any]:  # [S, S·A] each, sparse
    """Departures Σ_a x(s',a) and arrivals Σ_{s,a} P(s'|s,a) x(s,a), as matrices on x."""
    states, actions, _ = cmdp.sizes
    arrivals = sparse.csr_array(cmdp.transition.reshape(states * actions, states).T)
    departures = sparse.kron(sparse.eye_array(states), np.ones((1, actions)), format="csr")
    return departures, arrivals


def maximize(
    task: Program,
    objective: Floats,  # [X]
    costs: Floats,  # [K', X]
    limits: Floats,  # [K']
) -> Optimum | None:
    """The best occupancy that keeps the limits; None if there is none.

    Raises:
        InputError: the objective has no upper bound; the message names the loop that pays.
    """
    rules = {"A_eq": task.flow, "b_eq": task.inflow, "A_ub": costs, "b_ub": limits}
    result = _run({"c": -objective, **rules})
    if result.status == _INFEASIBLE:
        return None
    if result.status == _UNBOUNDED:
        raise InputError(_endless_gain(task, objective, costs))
    prices = np.clip(-result.ineqlin.marginals, 0, None) + 0.0  # no −0.0
    return Optimum(result.x, 0.0 - float(result.fun), prices)


def _run(task: dict[str, Any]) -> Any:  # noqa: ANN401  SciPy's OptimizeResult has no types
    """HiGHS' answer: optimal, infeasible or unbounded."""
    result = linprog(**task, method="highs", options=_HIGHS)
    if result.status == _UNCLEAR:  # presolve may stop at "infeasible or unbounded"
        result = linprog(**task, method="highs", options={**_HIGHS, "presolve": False})
    if result.status not in (_OPTIMAL, _INFEASIBLE, _UNBOUNDED):
        raise RuntimeError(f"HiGHS stopped with status {result.status}: {result.message}")
    return result


def _endless_gain(task: Program, objective: Floats, costs: Floats) -> str:
    """What to say of an unbounded program: where an episode can go round and gain for ever.

    Of all directions x ≥ 0 that keep the flow and the costs, scaled to Σ x = 1, the best.
    """
    flow = sparse.vstack([task.flow, np.ones((1, len(objective)))], format="csr")
    right = np.zeros(flow.shape[0])
    right[-1] = 1
    rules = {"A_eq": flow, "b_eq": right, "A_ub": costs, "b_ub": np.zeros(len(costs))}
    ray = _run({"c": -objective, **rules})
    assert ray.status == _OPTIMAL, "an unbounded program has a direction that gains"
    pairs = np.argwhere(task.occupancy(ray.x) > 1e-9).tolist()
    named = ", ".join(f"state {pair[-2]} action {pair[-1]}" for pair in pairs[:4])
    return (
        f"the problem is unbounded: discount is 1, and going round {named} gains "
        f"{-ray.fun:.6g} per decision for ever, within every limit; end the loop, charge for it, "
        "or use a discount below 1"
    )


def price_range(task: Program, optimum: Optimum) -> tuple[Floats, Floats]:  # [K] each
    """Least and greatest value of each multiplier among all optimal ones.

    The optimal face of the dual, {(v, λ): Aᵀv + Cᵀλ ≥ r, λ ≥ 0, b·v + d·λ ≤ J*}, is searched in
    both directions of every λ_k. A multiplier without upper bound (no occupancy is strictly below
    that limit) is ∞.
    """
    equations, channels = task.flow.shape[0], len(task.limit)
    dual = sparse.hstack([task.flow.T, sparse.csr_array(task.cost.T)])
    level = np.concatenate([task.inflow, task.limit])
    slack = 1e-9 * max(1.0, abs(optimum.value))
    task_rules = {
        "A_ub": sparse.vstack([-dual, level[None]], format="csr"),
        "b_ub": np.append(-task.reward, optimum.value + slack),
        "bounds": [(None, None)] * equations + [(0, None)] * channels,
    }
    ends = np.empty((2, channels))
    for k in range(channels):
        for row, sign in enumerate((1.0, -1.0)):
            aim = np.zeros(equations + channels)
            aim[equations + k] = sign
            found = _run({"c": aim, **task_rules})
            ends[row, k] = sign * found.fun if found.status == _OPTIMAL else sign * -np.inf
    return np.clip(ends[0], 0, None) + 0.0, ends[1]
