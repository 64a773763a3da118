"""Built-in constrained environments; importing this package registers them with Gymnasium.

All are plain NumPy, carry `info["cost"]` as float64 [K] and have a native vector form.
"""

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


BUILT_IN: dict[str, BuiltIn] = {
    built_in.id: built_in
    for built_in in (
        BuiltIn(
            id="constrained_rl/Detour-v0",
            description="11 states: a short risky lane or a long safe one; exact optimum known",
            limit=(4.0,),
            cost_names=("risk",),
            settings={
                # One-hot states and no hidden layer: a lookup table. Episodes end with 1 − γ, so
                # undiscounted sums are the discounted values of the linear program.
                "total_steps": 3_200_000,
                "env": {"num_envs": 512},
                "network": {"hidden": [], "normalize_observations": False},
                "ppo": {
                    "horizon": 32,
                    "minibatches": 1,
                    "gamma": 1.0,
                    "learning_rate": 0.02,
                    "entropy": 0.01,
                },
            },
        ),
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

register(
    id="constrained_rl/Detour-v0",
    entry_point="constrained_rl.envs.tabular:detour",
    vector_entry_point="constrained_rl.envs.tabular:detour_vec",
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
