"""The finite CMDPs that come with the library; `cmdp_of` gives the one behind an environment's id.

Five are files (`.npz` beside this module). Three are built here, because their optimum can be told
in words:

- `corridor`: 40 cells at γ = 0.998. Running is faster than walking and costs more, three times as
  much in the narrow cells. The optimum walks where it is narrow and randomises in at most one cell.
- `one_price`: in each state risk buys reward at the same price λ*, so no static weight but λ*
  itself gives anything but an extreme, and λ* gives no preference at all. See its proof.
- `infeasible`: of two doors one can be watched. Either limit can be met, both cannot.

Random ones are in `random_cmdp`. Letters: S states, A actions, K constraints.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from constrained_rl.envs.random_cmdp import random_cmdp
from constrained_rl.errors import InputError
from constrained_rl.oracle import FiniteCMDP, load_cmdp

CELLS = 40
NARROW = slice(15, 25)
ONE_PRICE = 0.8


def _file(name: str) -> Callable[[], FiniteCMDP]:
    return lambda: load_cmdp(Path(__file__).with_name(f"{name}.npz"))


def corridor() -> FiniteCMDP:
    """Cells in a row: turn back (0), walk (1) or run (2); the far end pays 1 and leads to the near.

    Walking advances with probability 0.5 and running with 0.9, else one stays. At price λ running
    in a cell is worth the time it saves less λ times its cost. The time is worth nearly the same in
    every cell, so narrow cells, at three times the cost, are the first to be walked; of the others
    those far from the pay, because an early cost is discounted less.
    """
    advance = np.array([0.0, 0.5, 0.9])
    back = np.array([1.0, 0.0, 0.0])
    here = np.arange(CELLS)
    transition = np.zeros((CELLS, 3, CELLS))
    transition[here, :, here] += 1 - advance - back
    transition[here, :, (here + 1) % CELLS] += advance
    transition[here, :, np.maximum(here - 1, 0)] += back
    reward = np.zeros((CELLS, 3))
    reward[-1] = advance  # expected pay of a step in the last cell
    cost = np.zeros((1, CELLS, 3))
    cost[0, :, 2] = 0.01
    cost[0, NARROW, 2] = 0.03
    return FiniteCMDP(transition, reward, cost, np.eye(CELLS)[0], 0.998, np.array([2.0]))


def one_price() -> FiniteCMDP:
    """Five states in which risk buys reward at one price: r(s, risky) = r(s, safe) + λ* k(s).

    With c(s, risky) = k(s) and c(s, safe) = 0, and successors that do not depend on the action,
    every policy has J_R = J_R(safe) + λ* J_C. Hence J_R − ν J_C = J_R(safe) + (λ* − ν) J_C:
    for ν < λ* only the largest J_C is optimal, for ν > λ* only J_C = 0, for ν = λ* every policy
    is. The limit lies between, so no static ν leads to the optimum.
    """
    risk = np.array([0.4, 1.2, 0.8, 1.6, 1.0])  # k(s)
    safe = np.array([0.5, 0.0, 1.0, 0.2, 0.3])
    states = len(risk)
    onwards = 0.7 * np.roll(np.eye(states), 1, axis=1) + 0.3 * np.eye(states)  # [S, S]
    return FiniteCMDP(
        transition=np.repeat(onwards[:, None], 2, axis=1),
        reward=np.stack([safe, safe + ONE_PRICE * risk], axis=1),
        cost=np.stack([np.zeros(states), risk], axis=1)[None],
        initial=np.full(states, 1 / states),
        discount=0.95,
        limit=np.array([4.0]),  # the riskiest policy costs 20
    )


def infeasible() -> FiniteCMDP:
    """Two doors, one watched per step; the other costs its channel 1.

    The two costs add up to 1 per step, so to 1 / (1 − γ) = 10 in all, whatever the policy; limits
    of 4 and 4 cannot both be met. Watching each door half of the time misses both by 25 %.
    """
    return FiniteCMDP(
        transition=np.ones((1, 2, 1)),
        reward=np.array([[1.0, 0.5]]),
        cost=np.array([[[0.0, 1.0]], [[1.0, 0.0]]]),
        initial=np.ones(1),
        discount=0.9,
        limit=np.array([4.0, 4.0]),
    )


PROBLEMS: dict[str, Callable[..., FiniteCMDP]] = {
    "constrained_rl/Coin-v0": _file("coin"),
    "constrained_rl/Detour-v0": _file("detour"),
    "constrained_rl/Grid-v0": _file("grid"),
    "constrained_rl/Queue-v0": _file("queue"),
    "constrained_rl/Garnet-v0": _file("garnet"),
    "constrained_rl/Corridor-v0": corridor,
    "constrained_rl/OnePrice-v0": one_price,
    "constrained_rl/Infeasible-v0": infeasible,
    "constrained_rl/Random-v0": random_cmdp,
}
"""Environment id → what makes its CMDP from the environment's settings."""


def cmdp_of(
    env_id: str,
    **settings: Any,  # noqa: ANN401  the environment's own
) -> FiniteCMDP:
    """The finite CMDP that a built-in environment plays, for `oracle.solve`."""
    if env_id not in PROBLEMS:
        raise InputError(
            f"environment {env_id!r} is not a built-in finite CMDP; those are {', '.join(PROBLEMS)}"
        )
    try:
        return PROBLEMS[env_id](**settings)
    except TypeError as error:
        raise InputError(f"{env_id} does not take the settings {settings}: {error}") from error
