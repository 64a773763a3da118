"""What is said of a single environment's costs, from episodes that were played with random actions.

Absent: creating environments and vector environments, see `check`. Letters: K cost channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.wrappers import TimeLimit
from torch import Tensor

from constrained_rl.cmdp import AnyEnv, Floats
from constrained_rl.costs import CURE, are_names
from constrained_rl.errors import short
from constrained_rl.findings import Finding
from constrained_rl.returned import as_array, five_values, require_info, reset_pair


@dataclass(frozen=True)
class Step:
    """One transition as the environment returned it."""

    obs: Any
    info: dict[str, Any]
    ended: bool


@dataclass(frozen=True)
class Played:
    """Some episodes of a single environment."""

    resets: tuple[tuple[Any, Mapping[str, Any]], ...]
    steps: tuple[Step, ...]

    def observations(self) -> list[Any]:
        """All of them, those of resets first."""
        return [obs for obs, _ in self.resets] + [step.obs for step in self.steps]

    def costs(self) -> list[Any]:
        """The costs that are there, raw."""
        return [step.info["cost"] for step in self.steps if "cost" in step.info]


def play(env: AnyEnv, seed: int, steps: int) -> Played:
    """Random actions from `seed`; episodes follow one another."""
    env.action_space.seed(seed)
    resets, played = [reset_pair(env, {"seed": seed})], []
    for _ in range(steps):
        found = five_values(env, env.step(env.action_space.sample()))
        obs, _, terminated, truncated, info = found
        require_info(info, env)
        played.append(Step(obs, info, bool(terminated or truncated)))
        if played[-1].ended:
            resets.append(reset_pair(env, {}))
    return Played(tuple(resets), tuple(played))


def check_observations(played: Played, space: gymnasium.Space[Any]) -> Finding:
    """Every observation, those of resets included, lies in the space."""
    seen = played.observations()
    wrong = [obs for obs in seen if obs not in space]
    if not wrong:
        return Finding("ok", "observations", f"{len(seen)} in their space")
    found = f"{len(wrong)} of {len(seen)} are not in {space}, first {short(wrong[0])}"
    return Finding("error", "observations", found, "return the space's dtype, shape and bounds")


def check_repeats(first: Played, second: Played) -> Finding:
    """The same seed and actions show the same observations, or loading shows others."""
    check = "observations repeatable"
    seen = [
        [as_array(obs) if isinstance(obs, Tensor) else obs for obs in played.observations()]
        for played in (first, second)
    ]
    if data_equivalence(seen[0], seen[1]):
        return Finding("ok", check, "the same under the same seed and actions")
    return Finding(
        "warning",
        check,
        "they differ under the same seed and actions",
        "draw from self.np_random only; leave out wrappers that keep statistics of observations: a "
        "policy that is loaded or evaluated would see others (network.normalize_observations "
        "standardises them)",
    )


def check_costs(first: Played, second: Played) -> Iterator[Finding]:
    """Presence, type, channels, finiteness, range and determinism of the cost."""
    missing = [step for step in first.steps if "cost" not in step.info]
    count, ends = len(first.steps), sum(step.ended for step in first.steps)
    if missing:
        last = sum(step.ended for step in missing)
        found = f'{len(missing)} of {count} steps lack info["cost"], {last} of them last steps'
        keys = sorted({key for step in first.steps for key in step.info})
        advice = f"return it at every step, 0.0 where nothing happened; keys found: {keys}; {CURE}"
        yield Finding("error", "cost present", found, advice)
    else:
        yield Finding("ok", "cost present", f"at each of {count} steps, {ends} of them last steps")
    costs = first.costs()
    if not costs:
        return
    wrong = [x for x in costs if not is_float(x)]
    if wrong:
        kind = str(wrong[0].dtype) if isinstance(wrong[0], np.ndarray) else type(wrong[0]).__name__
        found = f"{len(wrong)} of {len(costs)} are no floats, first {short(wrong[0])} ({kind})"
        advice = (
            "in a vector environment the first one's type cuts off the others' decimals: return "
            "float(cost) or a float64 array, or wrap it in Cost(env), which casts"
        )
        yield Finding("error", "cost type", found, advice)
        return
    yield Finding("ok", "cost type", "float")
    yield from _values([np.atleast_1d(np.asarray(x, np.float64)) for x in costs])
    again = second.costs()
    if len(again) == len(costs) and all(map(np.array_equal, costs, again)):
        yield Finding("ok", "cost repeatable", "the same under the same seed and actions")
    else:
        yield Finding(
            "error",
            "cost repeatable",
            "it differs under the same seed and actions",
            "draw from self.np_random only, after super().reset(seed=seed), and reset all state",
        )


def _values(costs: list[Floats]) -> Iterator[Finding]:
    shapes = sorted({x.shape for x in costs})
    if len(shapes) > 1 or len(shapes[0]) != 1 or shapes[0][0] == 0:
        found = f"costs of shapes {shapes}, expected one shape, () or (K,)"
        yield Finding("error", "cost channels", found, "return the same K channels at every step")
        return
    values = np.stack(costs)
    if not np.isfinite(values).all():
        step = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        found = f"step {step} costs {values[step]}"
        yield Finding("error", "cost finite", found, "return finite numbers")
        return
    ranges = ", ".join(
        f"{low:g} … {high:g}" for low, high in zip(values.min(0), values.max(0), strict=True)
    )
    if values.any(axis=0).all():
        yield Finding("ok", "cost channels", f"K = {values.shape[1]}, values {ranges}")
    else:
        never = np.flatnonzero(~values.any(axis=0)).tolist()
        found = f"K = {values.shape[1]}, values {ranges}; channels {never} were never other than 0"
        advice = "check that the cost is computed; random actions may just not reach it"
        yield Finding("warning", "cost channels", found, advice)


def is_float(value: object) -> bool:
    """A float or an array of floats; a list arrives in a vector environment as an object."""
    return isinstance(value, float | np.floating) or (
        isinstance(value, np.ndarray) and value.dtype.kind == "f"
    )


def check_resets(played: Played) -> Finding:
    """A reset pays nothing, and must not impose its type on the others' costs."""
    found = [info["cost"] for _, info in played.resets if "cost" in info]
    if not found:
        return Finding("ok", "cost at reset", "none")
    if all(is_float(x) for x in found):
        text = f"{len(found)} resets report a cost, first {short(found[0])}"
        return Finding("warning", "cost at reset", text, "it is ignored: nobody has acted yet")
    text = f"a reset reports {short(found[0])}, which is no float"
    advice = "leave it out: its type is imposed on the costs of the other sub-environments"
    return Finding("error", "cost at reset", text, advice)


def check_names(env: AnyEnv, played: Played) -> Finding:
    """One string per channel, or none at all."""
    advice = "set env.cost_names to a tuple, one string per channel, or wrap: Cost(env, names=…)"
    if not env.has_wrapper_attr("cost_names"):
        return Finding("warning", "cost names", "none; channels will be called 0, 1, …", advice)
    names = env.get_wrapper_attr("cost_names")
    sizes = {np.size(cost) for cost in played.costs() if is_float(cost)}
    if not are_names(names):
        return Finding("error", "cost names", f"{names!r} is no tuple of strings", advice)
    if sizes and sizes != {len(names)}:
        found = f"{len(names)} names {tuple(names)} for costs of {sorted(sizes)} channels"
        return Finding("error", "cost names", found, advice)
    return Finding("ok", "cost names", ", ".join(names))


def time_limit(env: AnyEnv) -> int | None:
    """Steps after which a `TimeLimit` around the environment truncates; None without one."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit):
            return env._max_episode_steps
        env = env.env
    return None


def check_ends(
    ended: int, steps: int, check: str = "episodes end", limit: int | None = None
) -> Finding:
    """Costs are bounded per finished episode, so episodes have to finish."""
    if ended or limit is not None:
        beyond = "" if ended else f", but at {limit} at the latest"
        return Finding("ok", check, f"{ended or 'none'} in {steps} steps{beyond}")
    return Finding(
        "warning",
        check,
        f"none in {steps} steps",
        "costs are bounded per finished episode: set max_episode_steps, or raise `steps`",
    )
