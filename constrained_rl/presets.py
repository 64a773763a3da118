"""The five algorithms, as settings of one loop.

`ppo` ignores costs; `static_shaping` charges a fixed price ν; `ppo_lagrangian` moves the price by
dual gradient ascent; `pid_lagrangian` by PID control, whose gains act on the violation relative to
the limit, so that they mean the same at a limit of 4 and of 25. `scale_free`, the default, also
measures λ in units of the ratio of the advantages, so that nothing depends on a problem's units.
"""

from __future__ import annotations

from typing import Any

from constrained_rl.envs import BUILT_IN, FINITE, tabular_settings
from constrained_rl.errors import InputError
from constrained_rl.finite import FiniteCMDP
from constrained_rl.occupancy import occupancy, uniform_policy
from constrained_rl.settings import merge

PRESETS: dict[str, dict[str, Any]] = {
    "ppo": {"constrained": False},
    "static_shaping": {"multiplier": {"kind": "fixed", "weight": 1.0}},
    "ppo_lagrangian": {"multiplier": {"kind": "gradient", "learning_rate": 0.05}},
    "pid_lagrangian": {"multiplier": {"kind": "pid", "kp": 1.0, "ki": 0.02, "relative": True}},
    "scale_free": {
        "multiplier": {"kind": "scale_free"},
        "constraint": {"estimator": {"kind": "ema", "decay": 0.5}},
        "average": 0.1,
    },
}

QUIET: dict[str, Any] = {
    "multiplier": {"kp": 4.0, "ki": 0.2},
    "constraint": {"corrected": True, "estimator": {"kind": "tracking", "gain": 0.15}},
}
"""`scale_free` where the environment knows its chance of ending, so that estimates hardly jitter"""

LONG = 0.999
"""discount whose episodes are the longest that first windows wait for, see `tabular_settings`"""

SUMMARIES: dict[str, str] = {
    "ppo": "unconstrained; costs are reported only",
    "static_shaping": "reward − ν · cost at a fixed ν",
    "ppo_lagrangian": "λ by dual gradient ascent",
    "pid_lagrangian": "λ by PID control of the violation",
    "scale_free": "λ by PI control in units of the problem; nothing to tune",
}


def defaults(name: str, env_id: str | None, cmdp: FiniteCMDP | None = None) -> dict[str, Any]:
    """Settings of a preset, and over them those known to work on a problem.

    Args:
        name: of the preset.
        env_id: a built-in environment has settings of its own; others have none.
        cmdp: a finite CMDP that is played instead; all of them share theirs.
    """
    if name not in PRESETS:
        raise InputError(f"preset '{name}' does not exist; choose from {', '.join(PRESETS)}")
    tree = {"preset": name, **PRESETS[name]}
    if cmdp is not None:
        tree = merge(tree, tabular_settings(min(_chance_to_go_on(cmdp), LONG)))
    elif env_id in BUILT_IN:
        tree = merge(tree, {"env": {"id": env_id}})
        tree = merge(tree, BUILT_IN[env_id].settings)
    if name == "scale_free" and _by_chance(env_id, cmdp):
        tree = merge(tree, QUIET)
    return tree


def _by_chance(env_id: str | None, cmdp: FiniteCMDP | None) -> bool:
    """Whether episodes end with probability 1 − γ, which the environment then knows."""
    return cmdp.discount < 1 if cmdp is not None else env_id in {row.id for row in FINITE}


def _chance_to_go_on(cmdp: FiniteCMDP) -> float:
    """γ; where it is 1, that of episodes as long as those without a plan until absorbed."""
    if cmdp.discount < 1:
        return cmdp.discount
    return 1 - 1 / max(1.0, float(occupancy(cmdp, uniform_policy(cmdp)).sum()))
