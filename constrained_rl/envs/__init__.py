"""Built-in constrained environments; importing this package registers them with Gymnasium.

All are plain NumPy, carry `info["cost"]` as float64 [K] and have a native vector form.
"""

import math
from dataclasses import dataclass
from typing import Any

from gymnasium import register


@dataclass(frozen=True)
class BuiltIn:
    """One row of the table of built-in environments."""

    id: str
    description: str
    limit: tuple[float, ...]  # [K] the limit we suggest; experiments set their own
    cost_names: tuple[str, ...]  # [K]
    settings: dict[str, Any]  # of a run, above the preset's: what is known to work here


ITERATION = 8192
"""decisions of an iteration in tabular problems"""
TABULAR: dict[str, Any] = {
    "total_steps": 400 * ITERATION,
    "average": 0.0,  # the last policy hardly moves: its learning rate has fallen to 1e-6
    # One-hot states and no hidden layer: policy and critics are look-up tables.
    "network": {"hidden": [], "normalize_observations": False},
    "ppo": {
        "epochs": 3,
        "minibatches": 1,
        # Episodes end with 1 − γ, so undiscounted sums are the linear program's discounted values.
        "gamma": 1.0,
        "gae_lambda": 0.98,
        "learning_rate": 0.15,
        "critic_learning_rate": 0.05,
        "normalize_values": True,
        "normalize": "spreads",
        "schedule": "quadratic",
        "entropy": 0.03,
        "entropy_schedule": "quadratic",
    },
}
"""The settings of every finite CMDP, built in or from a file; see `tabular_settings`."""
BURN_IN = 3
"""lengths of a mean episode that are played before the first window, in tabular problems"""


def tabular_settings(discount: float) -> dict[str, Any]:
    """`TABULAR` for a problem of this γ, whose episodes take 1 / (1 − γ) steps on average.

    A window holds a quarter of a mean episode, as a power of two from 32 to 256: values that are
    bootstrapped more often than that know too little of a long episode. The first window waits for
    three mean episodes; by then e⁻³ = 5 % of the first ones are still played, and finished ones are
    hardly shorter than they will be in the long run.
    """
    length = 1 / (1 - discount)
    horizon = 2 ** min(max(round(math.log2(length / 4)), 5), 8)
    env = {"num_envs": ITERATION // horizon, "burn_in": math.ceil(round(BURN_IN * length, 6))}
    return {**TABULAR, "env": env, "ppo": {**TABULAR["ppo"], "horizon": horizon}}


def _finite(
    name: str, gamma: float, limit: tuple[float, ...], cost_names: tuple[str, ...], description: str
) -> BuiltIn:
    """A row of a finite CMDP, with the settings that all of them share."""
    return BuiltIn(
        f"constrained_rl/{name}-v0", description, limit, cost_names, tabular_settings(gamma)
    )


FINITE = (
    _finite("Coin", 0.9, (3.0,), ("cost",), "1 state, 3 actions: the optimum has to randomise"),
    _finite("Detour", 0.97, (4.0,), ("risk",), "11 states: a short risky lane or a long safe one"),
    _finite(
        "Grid",
        0.97,
        (1.5, 3.0),
        ("lava", "energy"),
        "6 × 6 cells with slip: lava and energy on the way to a goal",
    ),
    _finite(
        "Queue",
        0.99,
        (10.0, 30.0, 20.0),
        ("waiting", "power", "rejections"),
        "admission and service of a queue of 20: waiting, power, rejections",
    ),
    _finite(
        "Garnet",
        0.95,
        (2.8149159745053565, 2.455408906528618),
        ("cost_0", "cost_1"),
        "50 random states, 5 actions, two costs",
    ),
    _finite(
        "Corridor", 0.998, (2.0,), ("effort",), "40 cells at γ = 0.998: where to run, where to walk"
    ),
    _finite(
        "OnePrice",
        0.95,
        (4.0,),
        ("risk",),
        "risk has one price everywhere: no static weight leads to the optimum",
    ),
    _finite(
        "Infeasible",
        0.9,
        (4.0, 4.0),
        ("left", "right"),
        "two doors and one guard: either limit can be met, both cannot",
    ),
    _finite(
        "Random",
        0.95,
        (5.16, 3.12),
        ("cost_0", "cost_1"),
        "a random CMDP of a seed; seed, states, actions, … in env.kwargs",
    ),
)
"""The finite CMDPs, whose optimum `oracle.solve(cmdp_of(id))` gives; problems in `problems`."""

BUILT_IN: dict[str, BuiltIn] = {
    built_in.id: built_in
    for built_in in (
        *FINITE,
        BuiltIn(
            id="constrained_rl/PointHazard-v0",
            description="a point steers to a goal behind a hazard; the direct way crosses it",
            # Straight through costs 11.5 (return 9.8), around 0 (8.7): at 2 a policy may clip the
            # edge but not cross, and a relative violation is defined, which it is not at 0.
            limit=(2.0,),
            cost_names=("hazard",),
            settings={"total_steps": 200_000, "ppo": {"entropy": 0.001}},
        ),
        BuiltIn(
            id="constrained_rl/PointCourier-v0",
            description="the point with three budgets: hazard, speed near the goal, energy",
            # The straight way at full speed costs 11.5, 6.0 and 98 (return 9.7).
            limit=(2.0, 1.0, 80.0),
            cost_names=("hazard", "speed", "energy"),
            settings={
                "total_steps": 700_000,
                "env": {"num_envs": 64},
                "network": {"hidden": [32, 32]},
                "ppo": {
                    "horizon": 64,
                    "epochs": 8,
                    "minibatches": 4,
                    "entropy": 0.001,
                    "learning_rate": 1e-3,
                },
            },
        ),
        BuiltIn(
            id="constrained_rl/SpeedLimit-v0",
            description="a mass with drag and a speed limit; best constant speed known",
            # At most 0.1 above the limit on average over the 100 steps; full throttle costs 96.
            limit=(10.0,),
            cost_names=("excess",),
            settings={
                "total_steps": 400_000,
                "network": {"hidden": [32]},
                # A throttle's effect halves with every step, so 20 steps are a long horizon.
                "ppo": {
                    "horizon": 100,
                    "minibatches": 2,
                    "gamma": 0.95,
                    "learning_rate": 3e-3,
                },
            },
        ),
    )
}

for _row in FINITE:
    register(
        id=_row.id,
        entry_point="constrained_rl.envs.tabular:problem",
        vector_entry_point="constrained_rl.envs.tabular:problem_vec",
        kwargs={"env_id": _row.id},
    )
register(
    id="constrained_rl/PointHazard-v0",
    entry_point="constrained_rl.envs.point:point_hazard",
    vector_entry_point="constrained_rl.envs.point:point_hazard_vec",
)
register(
    id="constrained_rl/PointCourier-v0",
    entry_point="constrained_rl.envs.courier:courier",
    vector_entry_point="constrained_rl.envs.courier:courier_vec",
)
register(
    id="constrained_rl/SpeedLimit-v0",
    entry_point="constrained_rl.envs.cruise:cruise",
    vector_entry_point="constrained_rl.envs.cruise:cruise_vec",
)
