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
