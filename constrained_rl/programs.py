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
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

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
_FACE = 1e-9  # of the optimum: how far from it a dual point is still called optimal
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
    mass: float  # about Σ x, from which HiGHS' absolute tolerances are measured
    place: NDArray[np.int64]  # of the first variables in the flat occupancy; the others have none
    shape: tuple[int, ...]  # of the occupancy, [S, A] or [H, S, A]

    def occupancy(self, x: Floats) -> Floats:
        """The variables as an array of the occupancy's shape, 0 where there is none."""
        found = np.zeros(self.shape)
        found.ravel()[self.place] = np.clip(x[: len(self.place)], 0, None)
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
        mass=1 / (1 - cmdp.discount) if cmdp.discount < 1 else 1.0,
        place=np.flatnonzero(pairs),
        shape=(states, actions),
    )


def _average(cmdp: FiniteCMDP) -> Program:
    """Σ_a x(s',a) − Σ P x = 0 with Σ x = 1, or with Σ_a x(s',a) + Σ_a y(s',a) − Σ P y = ρ(s').

    x are long-run frequencies, y visits on the way there, without which the program would enter
    parts of the problem that cannot be reached together. Right for chains of any structure (Hordijk
    and Kallenberg 1984, *Constrained undiscounted stochastic dynamic programming*; Puterman 1994,
    §9.3). Where every state that can be reached leads to every other, any split is possible, and
    the first form, without y, is solved more accurately.
    """
    states, actions, channels = cmdp.sizes
    step = cmdp.transition.max(axis=1) > 0
    live = reachable(step, cmdp.initial > 0)
    parts, _ = connected_components(csr_array(step[np.ix_(live, live)]), connection="strong")
    pairs, kept = np.flatnonzero(np.repeat(live, actions)), np.flatnonzero(live)
    departures, arrivals = (matrix[kept][:, pairs] for matrix in _flows(cmdp))
    balance = (departures - arrivals)[:-1]  # the last equation follows from the others
    more = 0 if parts == 1 else len(pairs)  # number of y
    if parts == 1:
        flow = sparse.vstack([balance, np.ones((1, len(pairs)))], format="csr")
        arrived = np.ones(1)
    else:
        flow = sparse.block_array(
            [[balance, None], [departures, departures - arrivals]], format="csr"
        )
        arrived = cmdp.initial[live]
    costs = cmdp.cost.reshape(channels, states * actions)[:, pairs]
    return Program(
        flow=flow,
        inflow=np.concatenate([np.zeros(len(kept) - 1), arrived]),
        reward=np.concatenate([cmdp.reward.ravel()[pairs], np.zeros(more)]),
        cost=np.concatenate([costs, np.zeros((channels, more))], axis=1),
        limit=cmdp.limit,
        mass=1.0,
        place=pairs,
        shape=(states, actions),
    )


def passage(
    cmdp: FiniteCMDP,
    share: Floats,  # [S] long-run share of each state
) -> Floats:  # [S, A]
    """Shortest visits y that bring the first states to where they stay, by Σ y at its least.

    Σ_a y(s',a) − Σ P y = ρ(s') − share(s').
    """
    states, actions, _ = cmdp.sizes
    live = reachable(cmdp.transition.max(axis=1) > 0, cmdp.initial > 0)
    pairs, kept = np.flatnonzero(np.repeat(live, actions)), np.flatnonzero(live)
    departures, arrivals = (matrix[kept][:, pairs] for matrix in _flows(cmdp))
    result = linprog(
        c=np.ones(len(pairs)),
        A_eq=(departures - arrivals)[:-1],
        b_eq=(cmdp.initial - share / share.sum())[live][:-1],
        method="highs",
    )
    if result.status != _OPTIMAL:
        raise RuntimeError(f"HiGHS found no way to the long run: {result.message}")
    visits = np.zeros(states * actions)
    visits[pairs] = np.clip(result.x, 0, None)
    return visits.reshape(states, actions)


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
        mass=1.0,
        place=np.arange(decisions * states * actions),
        shape=(decisions, states, actions),
    )


def _flows(cmdp: FiniteCMDP) -> tuple[Any, Any]:  # [S, S·A] each, sparse
    """Departures Σ_a x(s',a) and arrivals Σ_{s,a} P(s'|s,a) x(s,a), as matrices on x."""
    states, actions, _ = cmdp.sizes
    arrivals = csr_array(cmdp.transition.reshape(states * actions, states).T)
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
    unit, units = _unit(objective), np.array([_unit(row) for row in costs])
    with np.errstate(over="ignore"):
        bounds = limits / units / task.mass
    if not np.isfinite(bounds).all():
        raise InputError(
            f"a limit of {limits[~np.isfinite(bounds)][0]:g} against costs of at most "
            f"{units[~np.isfinite(bounds)][0]:g} is beyond float64; take other units of the costs"
        )
    rules = {
        "A_eq": task.flow,
        "b_eq": task.inflow / task.mass,
        "A_ub": costs / units[:, None],
        "b_ub": bounds,
    }
    result = _run({"c": -objective / unit, **rules})
    if result.status == _INFEASIBLE:
        return None
    if result.status == _UNBOUNDED:
        raise InputError(_endless_gain(task, objective, costs))
    prices = np.clip(-result.ineqlin.marginals * unit / units, 0, None) + 0.0  # no −0.0
    x = result.x * task.mass
    return Optimum(x, float(objective @ x) + 0.0, prices)


def _unit(row: Floats) -> float:
    """Its largest entry: HiGHS' tolerances are absolute, so it gets numbers of about 1."""
    return float(np.abs(row).max(initial=0.0)) or 1.0


def _run(task: dict[str, Any]) -> Any:  # noqa: ANN401  SciPy's OptimizeResult has no types
    """HiGHS' answer: optimal, infeasible or unbounded."""
    result = linprog(**task, method="highs", options=_HIGHS)
    if result.status == _UNCLEAR:  # presolve may stop at "infeasible or unbounded"
        result = linprog(**task, method="highs", options={**_HIGHS, "presolve": False})
    if result.status not in (_OPTIMAL, _INFEASIBLE, _UNBOUNDED):
        raise InputError(
            f"the linear program cannot be solved to {_TOLERANCE:g} (HiGHS: {result.message}); its "
            "numbers are too far apart: take a discount further from 1, or other units of costs, "
            "limits and rewards"
        )
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
    unit, units = _unit(task.reward), np.array([_unit(row) for row in task.cost])
    # v in units of reward, λ of reward per cost, b and d of the mass
    dual = sparse.hstack([task.flow.T, csr_array((task.cost / units[:, None]).T)])
    level = np.concatenate([task.inflow, task.limit / units]) / task.mass
    best = optimum.value / unit / task.mass
    rules = {
        "A_ub": sparse.vstack([-dual, level[None]], format="csr"),
        "b_ub": np.append(-task.reward / unit, best + _FACE * max(1.0, abs(best))),
        "bounds": [(None, None)] * equations + [(0, None)] * channels,
    }
    ends = np.empty((2, channels))
    for k in range(channels):
        for row, sign in enumerate((1.0, -1.0)):
            aim = np.zeros(equations + channels)
            aim[equations + k] = sign
            found = _run({"c": aim, **rules})
            ends[row, k] = sign * found.fun if found.status == _OPTIMAL else sign * -np.inf
    ends *= unit / units
    return np.clip(ends[0], 0, None) + 0.0, ends[1]
