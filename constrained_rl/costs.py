"""Wrappers that give a single environment an honest `info["cost"]`: float64 [K], every step.

`Cost` checks the cost that is there or computes it; `FromSixTuple` converts environments whose step
returns the cost as a sixth value (safety-gymnasium, OmniSafe). Absent: rescaling and vector
wrappers; a cost has the units of its limit, and belongs to each sub-environment.

Letters: K cost channels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from constrained_rl.errors import InputError, short
from constrained_rl.returned import flag, number, require_known_arguments, reset_pair

Floats = NDArray[np.float64]
AnyEnv = gymnasium.Env[Any, Any]
CostFunction = Callable[[Any, Any, float, dict[str, Any]], float | Sequence[float]]

CURE = 'Cost(env, names=("collision",), cost=lambda obs, action, reward, info: …)'


class Cost(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Gives a single environment an honest `info["cost"]`: float64 [K] at every step.

    Args:
        env: The environment to wrap.
        names: One name for each of the K channels; by default ("cost",), or the names of `cost`.
        cost: Computes the costs of the step just made from (obs, action, reward, info): one
            callable that returns K numbers, or `{name: callable}` with one number each. Without it
            the environment's own `info["cost"]` is checked and cast.

    Raises:
        InputError: at the first step whose cost is absent, not finite, or not K numbers.
    """

    def __init__(
        self,
        env: AnyEnv,
        names: Sequence[str] | None = None,
        cost: CostFunction | Mapping[str, CostFunction] | None = None,
    ) -> None:
        _require_single(env, "Cost")
        RecordConstructorArgs.__init__(self, names=names, cost=cost)
        gymnasium.Wrapper.__init__(self, env)
        if isinstance(cost, Mapping):
            if names is not None and tuple(names) != tuple(cost):
                raise InputError(
                    f"Cost got names={names!r} and functions for {tuple(cost)}; leave names out"
                )
            names = tuple(cost)
        self.cost_names = checked_names(("cost",) if names is None else names)
        functions = cost if isinstance(cost, Mapping) else {"cost": cost}
        for name, function in functions.items():
            if not callable(function) and (function is not None or isinstance(cost, Mapping)):
                raise InputError(
                    f"Cost got {function!r} as the function of {name!r}, expected a callable on "
                    f"(obs, action, reward, info), e.g. {CURE}"
                )
        self._cost = cost

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode. A reset pays nothing, so its info carries no cost."""
        obs, info = reset_pair(self.env, {"seed": seed, "options": options})
        return obs, {key: value for key, value in info.items() if key != "cost"}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:  # noqa: ANN401
        """Play one action and attach its cost."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        given = (obs, action, number("reward", reward), info)
        if isinstance(self._cost, Mapping):
            cost = np.concatenate(
                [computed(function, given, (name,)) for name, function in self._cost.items()]
            )
        elif self._cost is not None:
            cost = computed(self._cost, given, self.cost_names)
        elif "cost" in info:
            cost = checked_cost(info["cost"], self.cost_names, f"cost of {self.env}")
        else:
            raise InputError(
                f'{self.env} returned no info["cost"], only {sorted(info)}; compute it: {CURE}'
            )
        return obs, reward, terminated, truncated, {**info, "cost": cost}


@runtime_checkable
class _Renders(Protocol):
    """An environment that can be shown, Gymnasium's or not."""

    def render(self) -> Any:  # noqa: ANN401
        """A picture, or what the environment calls one."""


@runtime_checkable
class _Closes(Protocol):
    """An environment that holds something to be given back, Gymnasium's or not."""

    def close(self) -> None:
        """Give it back."""


class FromSixTuple(gymnasium.Env[Any, Any]):
    """Turns `obs, reward, cost, terminated, truncated, info` into Gymnasium's step with a cost.

    Observations of a Box are cast to its dtype, rewards to float, flags to bool, and the cost to
    `info["cost"]`, float64 [K]. `reset` may return (obs, info) or the observation alone. Seed and
    options are passed on only where they are given.

    Args:
        env: The environment; any object with spaces, `reset` and `step`, `gymnasium.Env` or not.
        names: One name for each of the K costs.
    """

    def __init__(
        self,
        env: Any,  # noqa: ANN401  its step has another signature than every Gymnasium class
        names: Sequence[str] = ("cost",),
    ) -> None:
        if isinstance(env, VectorEnv):
            _require_single(env, "FromSixTuple")
        self.env = env
        self.cost_names = checked_names(names)
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self.metadata = dict(getattr(env, "metadata", {"render_modes": []}))
        self.render_mode = getattr(env, "render_mode", None)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode. A reset pays nothing, so its info carries no cost."""
        super().reset(seed=seed)
        given = {"seed": seed, "options": options or None}  # Gymnasium's empty ones are none
        try:
            found = self.env.reset(**{key: x for key, x in given.items() if x is not None})
        except TypeError as error:
            require_known_arguments(error, str(self.env))
            raise
        pair = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)
        obs, info = found if pair else (found, {})
        return self._observed(obs), {key: value for key, value in info.items() if key != "cost"}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401
        """Play one action and move its cost into the info."""
        found = self.env.step(action)
        if not isinstance(found, tuple) or len(found) != 6:
            count = len(found) if isinstance(found, tuple) else type(found).__name__
            raise InputError(
                f"step of {self.env} returned {count} values, expected 6: obs, reward, cost, "
                "terminated, truncated, info. For Gymnasium's five use Cost(env)"
            )
        obs, reward, cost, terminated, truncated, info = found
        cost = checked_cost(cost, self.cost_names, f"cost of {self.env}")
        ended = flag("terminated", terminated), flag("truncated", truncated)
        return self._observed(obs), number("reward", reward), *ended, {**info, "cost": cost}

    def render(self) -> Any:  # noqa: ANN401
        """Render what is inside, where it can be rendered."""
        return self.env.render() if isinstance(self.env, _Renders) else None

    def close(self) -> None:
        """Close what is inside, where it can be closed."""
        if isinstance(self.env, _Closes):
            self.env.close()

    def _observed(self, obs: Any) -> Any:  # noqa: ANN401
        if isinstance(self.observation_space, gymnasium.spaces.Box):
            return np.asarray(obs, dtype=self.observation_space.dtype)
        return obs


def _require_single(env: object, wrapper: str) -> None:
    """Refuse what a wrapper of single environments cannot wrap."""
    if isinstance(env, VectorEnv):
        raise InputError(
            f"{wrapper} got the vector environment {env}, expected a single one: costs belong to "
            f"each sub-environment. Wrap those: ppo_lagrangian(lambda: {wrapper}(Mine(), …)), or "
            f"gymnasium.make_vec(id, …, wrappers=[lambda env: {wrapper}(env, …)])"
        )
    if not isinstance(env, gymnasium.Env):
        raise InputError(
            f"{wrapper} got {short(env)}, expected a single gymnasium.Env: {wrapper}(Mine(), …) or "
            f'{wrapper}(gymnasium.make("CartPole-v1"), …). If its step returns six values: '
            "FromSixTuple(env)"
        )


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Require distinct non-empty strings, one per channel."""
    if not are_names(names) or not all(names) or len(set(names)) < max(1, len(names)):
        raise InputError(
            f'Cost names are {names!r}, expected distinct names in a tuple such as ("risk",)'
        )
    return tuple(names)


def are_names(names: object) -> bool:
    """Whether something is a tuple or list of strings; a string alone is not."""
    return isinstance(names, tuple | list) and all(isinstance(name, str) for name in names)


def computed(
    function: CostFunction, given: tuple[Any, Any, float, dict[str, Any]], names: tuple[str, ...]
) -> Floats:  # [K]
    """Costs by a user's function; what it does wrong is said with its name and arguments."""
    called = f"cost function {function_name(function)}"
    try:
        found = function(*given)
    except InputError:
        raise
    except Exception as error:
        shown = ", ".join(
            f"{name} = {short(x)}"
            for name, x in zip(("obs", "action", "reward", "info"), given, strict=True)
        )
        raise InputError(
            f"{called} raised {type(error).__name__}: {error}; it was called with {shown}. It is "
            "called with (obs, action, reward, info) after every step"
        ) from error
    return checked_cost(found, names, called)


def checked_cost(found: object, names: tuple[str, ...], source: str) -> Floats:  # [K]
    """Cast to float64 [K] and require K finite numbers; `source` begins the message."""
    expected = f"expected {len(names)} finite number(s) for {names}"
    try:
        raw = np.asarray(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{source} is {short(found)}, {expected}: {error}") from error
    if raw.dtype.kind not in "bifu":
        items = list(found) if isinstance(found, list | tuple) else [found]
        bad = next((x for x in items if np.asarray(x).dtype.kind not in "bifu"), found)
        raise InputError(f"{source} is {short(found)}, {expected}; not a number: {short(bad)}")
    cost: Floats = np.atleast_1d(raw.astype(np.float64))
    if cost.shape != (len(names),):
        raise InputError(
            f"{source} is {short(found)} of shape {raw.shape}, {expected}; name every channel in "
            "Cost(env, names=…)"
        )
    if not np.isfinite(cost).all():
        k = int(np.flatnonzero(~np.isfinite(cost))[0])
        raise InputError(f"{source} is {short(found)}, {expected}; {names[k]!r} is {cost[k]}")
    return cost


def function_name(function: object) -> str:
    """Module and qualified name of a callable, or of an object's class."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
