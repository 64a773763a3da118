"""The exact optimum of a finite constrained MDP, by linear programming over occupancy measures.

    max_μ Σ μ(s,a) r(s,a)   subject to   Σ μ(s,a) c_k(s,a) ≤ d_k,   μ ≥ 0   and, for every s',
    Σ_a μ(s',a) − γ Σ_{s,a} P(s'|s,a) μ(s,a) = ρ(s')

Altman 1999, *Constrained Markov Decision Processes*, ch. 3. μ is the discounted visit count, so
values are E Σ_t γ^t r_t, not normalised by 1 − γ. Absent: average-reward and transient problems.

Letters: S states, A actions, K constraints.
"""

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.optimize import linprog

from constrained_rl.errors import InputError

Floats = NDArray[np.float64]

_PROBABILITY_TOLERANCE = 1e-8  # how far a row of probabilities may be from summing to 1
_UNVISITED = 1e-12  # a state with less occupancy than this is off the optimal policy's path
_HIGHS = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


@dataclass(frozen=True, eq=False)
class FiniteCMDP:
    """A finite constrained MDP: maximise E Σ γ^t r subject to E Σ γ^t c_k ≤ limit_k."""

    transition: Floats  # [S, A, S] probability of the next state
    reward: Floats  # [S, A]
    cost: Floats  # [K, S, A]
    initial: Floats  # [S] probability of the first state
    discount: float  # γ in [0, 1)
    limit: Floats  # [K], any sign

    def __post_init__(self) -> None:
        """Bring every array to float64 and check it once; the rest of the library trusts it."""
        for field in fields(self):
            value = _finite(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, float(value) if value.ndim == 0 else value)
        _check_shapes(self)
        _check_probabilities("transition", self.transition)
        _check_probabilities("initial", self.initial)
        if not 0 <= self.discount < 1:
            raise InputError(
                f"CMDP discount is {self.discount}, expected 0 ≤ discount < 1: with 1 the sums do "
                "not converge; use a discount such as 0.99"
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of states S, actions A and constraints K."""
        return len(self.initial), self.reward.shape[-1], len(self.limit)


@dataclass(frozen=True, eq=False)
class Solution:
    """What `solve` found. Of an infeasible problem all numbers but `least_cost` are NaN."""

    feasible: bool
    value: float  # E Σ γ^t r under `policy`
    cost: Floats  # [K] E Σ γ^t c_k under `policy`
    multipliers: Floats  # [K], ≥ 0: reward bought by one more unit of limit
    policy: Floats  # [S, A]; uniform where the optimum never goes
    least_cost: Floats | None = None  # [K] each constraint minimised alone, if infeasible


def load_cmdp(path: str | Path) -> FiniteCMDP:
    """Read a CMDP from an `.npz` file with the arrays of `FiniteCMDP`."""
    names = [field.name for field in fields(FiniteCMDP)]
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive]
            if missing:
                raise InputError(
                    f"{path}: no array {', '.join(missing)}; found {', '.join(archive) or 'none'}. "
                    f"Save all of {', '.join(names)} with np.savez"
                )
            arrays = {name: archive[name] for name in names}
    except InputError:
        raise
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: not a readable .npz archive of plain arrays ({error}); write it with "
            f"np.savez(path, {', '.join(f'{name}=…' for name in names)})"
        ) from error
    return FiniteCMDP(**arrays)


def solve(cmdp: FiniteCMDP) -> Solution:
    """Solve the occupancy-measure linear program.

    The multipliers are the program's duals. At a degenerate optimum they are not unique: any
    one of them is returned, and all give the same Lagrangian bound.
    """
    states, actions, channels = cmdp.sizes
    costs = cmdp.cost.reshape(channels, -1)
    result = _linear_program(cmdp, -cmdp.reward.ravel(), costs)
    if result is None:
        least = [_linear_program(cmdp, row, None) for row in costs]
        return Solution(
            feasible=False,
            value=float("nan"),
            cost=np.full(channels, np.nan),
            multipliers=np.full(channels, np.nan),
            policy=np.full((states, actions), np.nan),
            least_cost=np.array([alone.fun for alone in least]),
        )
    occupancy = np.clip(result.x, 0, None)
    return Solution(
        feasible=True,
        value=-float(result.fun),
        cost=costs @ occupancy,
        multipliers=np.clip(-result.ineqlin.marginals, 0, None) + 0.0,  # + 0.0: no −0.0
        policy=_policy_of(occupancy.reshape(states, actions)),
    )


def evaluate_policy(
    cmdp: FiniteCMDP,
    policy: Floats,  # [S, A]
) -> tuple[float, Floats]:
    """Value and costs [K] of a stationary policy, exact up to one linear solve.

    The state occupancy is x = (I − γ P_πᵀ)⁻¹ ρ; then J_r = Σ_s x(s) Σ_a π(a|s) r(s,a).
    """
    states, actions, _ = cmdp.sizes
    policy = _finite("policy", policy)
    if policy.shape != (states, actions):
        raise InputError(f"policy has shape {policy.shape}, expected [S, A] = {(states, actions)}")
    _check_probabilities("policy", policy)
    # P_π(s'|s) = Σ_a π(a|s) P(s'|s,a)
    chain = np.einsum("sa,sat->st", policy, cmdp.transition)
    visits = np.linalg.solve(np.eye(states) - cmdp.discount * chain.T, cmdp.initial)
    occupancy = visits[:, None] * policy  # [S, A]
    value = float((occupancy * cmdp.reward).sum())
    return value, (cmdp.cost * occupancy).sum(axis=(1, 2))


def _linear_program(
    cmdp: FiniteCMDP,
    objective: Floats,  # [S·A], minimised
    costs: Floats | None,  # [K, S·A], bounded by the limits; None = no constraint
) -> Any:  # noqa: ANN401  SciPy's OptimizeResult has no types
    """Minimise over the occupancy measures; None if no measure respects the limits."""
    states, actions, _ = cmdp.sizes
    # flow(s') = Σ_a μ(s',a) − γ Σ_{s,a} P(s'|s,a) μ(s,a)
    arrivals = sparse.csr_array(cmdp.transition.reshape(states * actions, states).T)
    departures = sparse.kron(sparse.eye_array(states), np.ones((1, actions)), format="csr")
    problem = {
        "c": objective,
        "A_eq": departures - cmdp.discount * arrivals,
        "b_eq": cmdp.initial,
        "A_ub": costs,
        "b_ub": None if costs is None else cmdp.limit,
        "method": "highs",
    }
    result = linprog(**problem, options=_HIGHS)
    if result.status == 4:  # presolve may stop at "infeasible or unbounded"
        result = linprog(**problem, options={**_HIGHS, "presolve": False})
    if result.status == 2:
        return None
    if result.status != 0:
        raise RuntimeError(f"HiGHS stopped with status {result.status}: {result.message}")
    return result


def _policy_of(occupancy: Floats) -> Floats:
    """π(a|s) = μ(s,a) / Σ_a μ(s,a); uniform where the state is never visited."""
    visits = occupancy.sum(axis=1, keepdims=True)
    visited = visits > _UNVISITED
    return np.where(visited, occupancy / np.where(visited, visits, 1), 1 / occupancy.shape[1])


def _finite(name: str, value: object) -> Floats:
    """Return `value` as a fresh float64 array, or raise if it holds anything but numbers."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"CMDP {name} is not an array of numbers: {error}") from error
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise InputError(
            f"CMDP {name}: {bad} of {array.size} values are NaN or infinite, expected finite "
            "numbers; to drop a constraint remove its channel from cost and limit"
        )
    return array


def _check_shapes(cmdp: FiniteCMDP) -> None:
    """Require the shapes written beside the fields, with S and A taken from `reward`."""
    if np.ndim(cmdp.reward) != 2 or 0 in np.shape(cmdp.reward):
        raise InputError(f"CMDP reward has shape {np.shape(cmdp.reward)}, expected [S, A]")
    states, actions = cmdp.reward.shape
    channels = np.size(cmdp.limit)
    expected = {
        "transition": (states, actions, states),
        "cost": (channels, states, actions),
        "initial": (states,),
        "discount": (),
        "limit": (channels,),
    }
    for name, shape in expected.items():
        found = np.shape(getattr(cmdp, name))
        if found != shape:
            raise InputError(
                f"CMDP {name} has shape {found}, expected {shape} (S = {states} states and "
                f"A = {actions} actions from reward [S, A], K = {channels} from limit [K])"
            )


def _check_probabilities(name: str, rows: Floats) -> None:
    """Require non-negative rows whose last axis sums to 1."""
    if (rows < 0).any():
        raise InputError(f"CMDP {name} holds a negative probability, {rows.min()}")
    sums = np.atleast_1d(rows.sum(axis=-1))
    worst = np.unravel_index(np.abs(sums - 1).argmax(), sums.shape)
    if abs(sums[worst] - 1) > _PROBABILITY_TOLERANCE:
        raise InputError(
            f"CMDP {name}: row {tuple(map(int, worst))} sums to {sums[worst]}, expected 1; divide "
            "each row by its sum"
        )
