"""Random constrained MDPs from a seed, feasible by construction and with limits that bind.

Garnet problems (Archibald, McKinnon & Thomas 1995): every pair leads to `branching` states with
Dirichlet(1) probabilities. With u, v_k uniform on [0, 1] for every pair and one κ per problem,

    reward = u²,   cost_k = κ u² + (1 − κ) v_k²,   κ uniform in `SHARE`: what pays also costs

The limits lie between two policies that a linear program finds: the unconstrained optimum, of cost
U [K], and the safest, which minimises Σ_k C_k / U_k, of cost L. With one slack τ per problem,

    limit = L + τ (U − L),   τ uniform in `SLACK`

so mixing their occupancies keeps every limit with room to spare, and the unconstrained optimum
keeps none. A draw is repeated until every limit has a price that matters, λ*_k limit_k at least
`BITE` of the optimal value J*, and the uniform policy's value is at least `SPREAD` of it away (the
unit in which regret is measured). Letters: S states, A actions, K constraints.
"""

from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from constrained_rl.errors import InputError
from constrained_rl.oracle import FiniteCMDP, evaluate_policy, solve, uniform_policy

Floats = NDArray[np.float64]

SLACK = (0.1, 0.5)
BITE = 0.01
SHARE = (0.0, 0.5)
SPREAD = 0.2
_TRIES = 200


@cache
def random_cmdp(
    seed: int = 0,
    states: int = 30,
    actions: int = 4,
    constraints: int = 2,
    discount: float = 0.95,
    branching: int = 3,
) -> FiniteCMDP:
    """The CMDP of a seed. The same arguments give the same problem."""
    _check(seed, states, actions, constraints, discount, branching)
    random = np.random.default_rng([seed, states, actions, constraints, branching])
    for _ in range(_TRIES):
        free = _draw(random, (states, actions, constraints), discount, branching)
        bound = _limited(free, random.uniform(*SLACK))
        if bound is not None:
            return bound
    raise InputError(
        f"none of {_TRIES} random CMDPs of seed {seed} has {constraints} limits that all bind; ask "
        "for more states and actions, or fewer constraints"
    )


def _draw(
    random: np.random.Generator, sizes: tuple[int, int, int], discount: float, branching: int
) -> FiniteCMDP:
    """A CMDP whose limits nothing reaches."""
    states, actions, constraints = sizes
    transition = np.zeros((states, actions, states))
    for s in range(states):
        for a in range(actions):
            successors = random.choice(states, branching, replace=False)
            transition[s, a, successors] = random.dirichlet(np.ones(branching))
    reward = random.random((states, actions)) ** 2
    share = random.uniform(*SHARE)
    cost = share * reward + (1 - share) * random.random((constraints, states, actions)) ** 2
    initial = random.dirichlet(np.ones(states))
    most = np.full(constraints, 2 / (1 - discount))
    return FiniteCMDP(transition, reward, cost, initial, discount, most)


def _limited(free: FiniteCMDP, slack: float) -> FiniteCMDP | None:
    """The problem with its limits; None if one of them would not bind."""
    dearest = solve(free).cost
    safest = solve(replace(free, reward=-np.tensordot(1 / dearest, free.cost, axes=1))).cost
    limit = _rounded(safest + slack * (dearest - safest))
    if (limit <= safest).any() or (limit >= dearest).any():
        return None
    bound = replace(free, limit=limit)
    solution = solve(bound)
    binds = solution.multipliers * limit >= BITE * abs(solution.value)
    uniform, _ = evaluate_policy(bound, uniform_policy(bound))
    far = abs(solution.value - uniform) >= SPREAD * abs(solution.value)
    return bound if far and binds.all() else None


def _rounded(values: Floats) -> Floats:
    """To three digits, so that a limit can be written down."""
    return np.array([float(f"{value:.3g}") for value in values])


def _check(
    seed: int, states: int, actions: int, constraints: int, discount: float, branching: int
) -> None:
    """Refuse sizes that make no problem."""
    for name, value, least in (
        ("seed", seed, 0),
        ("states", states, 2),
        ("actions", actions, 2),
        ("constraints", constraints, 1),
        ("branching", branching, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"random CMDP: {name} is {value!r}, expected an integer ≥ {least}")
    if branching > states:
        raise InputError(
            f"random CMDP: branching is {branching}, expected at most states = {states}: a pair "
            "cannot lead to more states than there are"
        )
    if not 0 < discount < 1:
        raise InputError(f"random CMDP: discount is {discount!r}, expected 0 < discount < 1")
