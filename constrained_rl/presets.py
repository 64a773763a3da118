"""The five algorithms, as settings of one loop.

`ppo` ignores costs; `static_shaping` charges a fixed price ν; `ppo_lagrangian` moves the price by
dual gradient ascent; `pid_lagrangian` by PID control, whose gains act on the violation relative to
the limit, so that they mean the same at a limit of 4 and of 25. `scale_free`, the default, also
measures λ in units of the ratio of the advantages, so that nothing depends on a problem's units.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from constrained_rl.config import RunConfig
from constrained_rl.envs import BUILT_IN, FINITE, tabular_settings
from constrained_rl.errors import InputError, Notice
from constrained_rl.finite import FiniteCMDP, load_cmdp
from constrained_rl.occupancy import occupancy, uniform_policy
from constrained_rl.settings import Tree, merge, read_layers, validate

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


NAMING = ("id", "file", "digest")
"""keys of `env` that say which environment it is"""


class OtherEnvironment(Notice):
    """Settings that were written for one environment are used for another."""


@dataclass(frozen=True)
class Given:
    """The settings that a user gave, a file under overrides, over no preset yet."""

    preset: str
    tree: Tree
    source: str
    """under which problems are reported"""
    whole: bool
    """whether the file says everything, as `crl preset` and runs write it"""

    @classmethod
    def read(cls, preset: str | None, file: Path | None, overrides: Sequence[str]) -> Self:
        """Read a file and `key.path=value` overrides; overrides may name another environment.

        Raises `InputError` where `preset` and the file differ.
        """
        below, source = read_layers(file, ())
        above, _ = read_layers(None, overrides)
        tree = merge(_for_another(below, above, source), above)
        named = tree.get("preset", preset or RunConfig().preset)
        if preset not in (None, named):
            raise InputError(
                f"--preset is {preset}, but {source} says preset = {named!r}; drop one of them"
            )
        return cls(str(named), tree, source, _is_whole(below))

    @property
    def environment(self) -> str | Path | None:
        """Id or file of the environment; None where none is named."""
        section = _section(self.tree)
        if isinstance(section.get("file"), str):
            return Path(section["file"])
        return section["id"] if isinstance(section.get("id"), str) else None


def settings_for(given: Given, environment: str | Path | None) -> RunConfig:
    """The given settings over those of their preset, as they are known to work on `environment`.

    A file that says everything leaves nothing to the environment: what is unset there is unset.
    """
    cmdp = load_cmdp(environment) if isinstance(environment, Path) else None
    env_id = environment if isinstance(environment, str) else None
    base = defaults(given.preset, None if given.whole else env_id, None if given.whole else cmdp)
    return validate(RunConfig, merge(base, given.tree), given.source)


def _for_another(below: Tree, above: Tree, source: str) -> Tree:
    """A file's settings without its environment, where the overrides name another; it is told."""
    old, new = _section(below), _section(above)
    named = [section.get("file", section.get("id")) for section in (old, new)]
    if None in named or named[0] == named[1]:
        return below
    warnings.warn(
        f"{source} holds the settings of {named[0]}, which are used for {named[1]} as they are; "
        f"those known to work there: crl preset NAME env.{'file' if 'file' in new else 'id'}="
        f"{named[1]}",
        OtherEnvironment,
        stacklevel=2,
    )
    return {**below, "env": {key: value for key, value in old.items() if key not in NAMING}}


def _is_whole(tree: Tree) -> bool:
    """Whether a file sets all keys that are not unset by default; of a kind, the kind will do."""
    for name, value in RunConfig().model_dump(exclude_none=True, exclude={"env": {"id"}}).items():
        found = tree.get(name)
        if found is None or (
            isinstance(value, dict)
            and "kind" not in value
            and not (isinstance(found, dict) and set(value) <= set(found))
        ):
            return False
    return True


def _section(tree: Tree) -> Tree:
    """The settings of the environment, where they are a table."""
    section = tree.get("env", {})
    return section if isinstance(section, dict) else {}
