"""What is the best that any policy can do on a finite constrained MDP? Exactly.

    max_μ Σ μ(s,a) r(s,a)   subject to   Σ μ(s,a) c_k(s,a) ≤ d_k   and μ an occupancy

Altman 1999, *Constrained Markov Decision Processes*, ch. 3. The multipliers λ* are the program's
duals: the reward that one more unit of limit buys. Criteria, data and evaluation of given policies
are in `finite` and `occupancy` and can be imported from here; the front over all limits is in
`front`. Absent: approximate methods for problems too large for a linear program.

Letters: S states, A actions, K constraints, H decisions.
"""

from dataclasses import dataclass, replace

import numpy as np

from constrained_rl.errors import InputError
from constrained_rl.finite import (
    DISCOUNTED,
    Average,
    Bools,
    Criterion,
    Discounted,
    FiniteCMDP,
    Floats,
    Horizon,
    load_cmdp,
    save_cmdp,
)
from constrained_rl.occupancy import (
    Settling,
    evaluate_policy,
    occupancy,
    policy_of,
    price,
    uniform_policy,
)
from constrained_rl.programs import Optimum, Program, maximize, passage, price_range, program

__all__ = [
    "DISCOUNTED",
    "Average",
    "Criterion",
    "Discounted",
    "FiniteCMDP",
    "Horizon",
    "MultiplierRanges",
    "Settling",
    "Solution",
    "evaluate_policy",
    "load_cmdp",
    "multiplier_ranges",
    "occupancy",
    "policy_of",
    "save_cmdp",
    "solve",
    "uniform_policy",
]

_ATTAINED = 1e-6  # how closely the policy must reach the program's optimum
_STAYS = 1e-9  # a state with less of the long run than this is only passed
_SAME = 1e-3  # a multiplier whose range is narrower than this share of it is one number
_NOTHING = 1e-6  # … or narrower than this share of max |r| / max |c_k|, the natural unit


@dataclass(frozen=True, eq=False)
class Solution:
    """What `solve` found. Of an infeasible problem all numbers but `least_cost` are NaN."""

    feasible: bool
    value: float  # the criterion's reward under `policy`; discounted: E Σ γ^t r, unnormalised
    cost: Floats  # [K] the same of the costs
    multipliers: Floats  # [K], ≥ 0: reward bought by one more unit of limit
    policy: Floats  # [S, A], over a horizon [H, S, A]; uniform where the optimum never goes
    least_cost: Floats | None = None  # [K] each constraint minimised alone, if infeasible
    settling: Settling | None = None  # attains an average that no stationary policy attains


@dataclass(frozen=True, eq=False)
class MultiplierRanges:
    """All optimal multipliers, one by one: the price of a limit is somewhere between two ends."""

    least: Floats  # [K]
    greatest: Floats  # [K]; ∞ where nothing is strictly below that limit
    unique: Bools  # [K] whether the ends are one number


def solve(cmdp: FiniteCMDP, criterion: Criterion = DISCOUNTED) -> Solution:
    """Solve the occupancy-measure linear program of a criterion.

    The multipliers are the program's duals. At a degenerate optimum they are not unique: any one of
    them is returned, all give the same Lagrangian bound, and `multiplier_ranges` tells their range.

    Raises:
        InputError: the problem is unbounded, or no policy ends undiscounted episodes.
    """
    task = program(cmdp, criterion)
    best = maximize(task, task.reward, task.cost, task.limit)
    if best is None:
        return _infeasible(task)
    visits = task.occupancy(best.x)
    if isinstance(criterion, Average):
        return _of_average(cmdp, best, visits)
    cost = price(cmdp, visits)
    found = Solution(True, best.value, cost, best.multipliers, policy_of(visits))
    _require_attained(cmdp, found, criterion)
    return found


def multiplier_ranges(cmdp: FiniteCMDP, criterion: Criterion = DISCOUNTED) -> MultiplierRanges:
    """The range of each optimal multiplier, by two linear programs on the dual's optimal face.

    Raises:
        InputError: no policy keeps the limits, so there are no prices; otherwise as `solve`.
    """
    task = program(cmdp, criterion)
    best = maximize(task, task.reward, task.cost, task.limit)
    if best is None:
        raise InputError(
            "no policy keeps the limits, so they have no prices; raise them to at least "
            f"{_least_cost(task)}, the least that each can be alone"
        )
    least, greatest = price_range(task, best)
    unit = np.abs(cmdp.reward).max() / np.maximum(np.abs(cmdp.cost).max(axis=(1, 2)), 1e-300)
    finite = np.isfinite(greatest)
    width = np.where(finite, greatest - least, np.inf)
    scale = np.where(finite, np.maximum(_SAME * greatest, _NOTHING * unit), 0.0)
    return MultiplierRanges(least, greatest, width <= scale)


def _least_cost(task: Program) -> Floats:  # [K]
    """Each constraint's cost minimised alone."""
    none = task.cost[:0], task.limit[:0]
    optima = [maximize(task, -row, *none) for row in task.cost]
    return np.array([-alone.value for alone in optima if alone is not None]) + 0.0


def _infeasible(task: Program) -> Solution:
    channels = len(task.limit)
    return Solution(
        feasible=False,
        value=float("nan"),
        cost=np.full(channels, np.nan),
        multipliers=np.full(channels, np.nan),
        policy=np.full(task.shape, np.nan),
        least_cost=_least_cost(task),
    )


def _of_average(cmdp: FiniteCMDP, best: Optimum, stay: Floats) -> Solution:
    """A stationary policy where one attains the frequencies, else one that settles.

    Stationary: x(s,a) / x(s) where the optimum stays, y(s,a) / y(s) on the way (Puterman 1994,
    §9.3). Settling: in s with probability x(s) / (x(s) + y(s)), before each decision.
    """
    staying = stay.sum(axis=1)
    wander = passage(cmdp, staying)
    stays = staying > _STAYS
    policy = np.where(stays[:, None], policy_of(stay), policy_of(wander))
    found = Solution(True, best.value, price(cmdp, stay), best.multipliers, policy)
    if _attains(cmdp, policy, found, Average())[0]:
        return found
    total = np.where(stays, staying, 0) + wander.sum(axis=1)
    settle = np.where(total > 0, np.where(stays, staying, 0) / np.where(total > 0, total, 1), 1.0)
    settling = Settling(policy_of(wander), settle, policy_of(stay))
    return replace(found, policy=np.full_like(policy, np.nan), settling=settling)


def _attains(
    cmdp: FiniteCMDP, policy: Floats, found: Solution, criterion: Criterion
) -> tuple[bool, float, Floats]:
    """Whether a policy has the program's value and costs, and those that it has."""
    value, cost = evaluate_policy(cmdp, policy, criterion)
    near = np.isclose([value, *cost], [found.value, *found.cost], rtol=_ATTAINED, atol=_ATTAINED)
    return bool(near.all()), value, cost


def _require_attained(cmdp: FiniteCMDP, found: Solution, criterion: Criterion) -> None:
    """With discount 1, an optimum may be a limit: entering a loop ever more rarely, for longer."""
    if not isinstance(criterion, Discounted) or cmdp.discount < 1:
        return
    attained, value, cost = _attains(cmdp, found.policy, found, criterion)
    if not attained:
        raise InputError(
            f"discount is 1, and no policy attains the optimum {found.value:.6g} at the costs "
            f"{found.cost.tolist()} (the nearest reaches {value:.6g} at {cost.tolist()}): it is "
            "approached by entering a loop ever more rarely and staying ever longer; use a "
            "discount below 1"
        )
