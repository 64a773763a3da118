"""How a cost travels through Gymnasium: `info["cost"]`, a float or a float64 array [K], every step.

This file creates vector environments whose autoreset keeps the terminal cost (NEXT_STEP), reads
the cost honestly (a cost that is absent is an error, never zero), and wraps single environments
that carry none yet. Absent: rescaling of costs; `info["cost"]` has the units of its limit.

Letters: N sub-environments, K cost channels.
"""

import difflib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import ArrayLike, NDArray

from constrained_rl.errors import InputError

Array = NDArray[Any]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
AnyEnv = gymnasium.Env[Any, Any]
AnyVectorEnv = VectorEnv[Any, Any, Any]
CostFunction = Callable[[Any, Any, float, dict[str, Any]], float | Sequence[float]]

_CURE = 'Cost(env, names=("collision",), cost=lambda obs, action, reward, info: …)'


@runtime_checkable
class SavesState(Protocol):
    """An environment that a checkpoint can continue to the last bit, random numbers included."""

    def get_state(self) -> dict[str, Array]:
        """Everything the future depends on."""

    def set_state(self, state: dict[str, Array]) -> None:
        """Continue from what `get_state` returned."""


def generator_state(generator: np.random.Generator) -> NDArray[np.uint8]:
    """A NumPy generator's state as JSON bytes, which any array format can hold."""
    text = json.dumps(generator.bit_generator.state)
    return np.frombuffer(text.encode(), dtype=np.uint8).copy()


def restore_generator(generator: np.random.Generator, state: NDArray[np.uint8]) -> None:
    """Put `generator` into a state that `generator_state` returned."""
    generator.bit_generator.state = json.loads(state.tobytes())


def make_vec(
    env_id: str,
    num_envs: int,
    seed: int,
    **kwargs: Any,  # noqa: ANN401  the environment's own settings
) -> AnyVectorEnv:
    """Create N sub-environments with NEXT_STEP autoreset, reset once with `seed`.

    The environment's native vector form is used where it has one and there is nothing to wrap,
    else `SyncVectorEnv`. A later `reset()` without a seed continues the same random numbers.
    Gymnasium's own `wrappers=[…]` are applied to each sub-environment.
    """
    if num_envs < 1:
        raise InputError(f"num_envs is {num_envs}, expected at least 1 sub-environment")
    spec = _find_spec(env_id)
    wrapped = spec.additional_wrappers or kwargs.get("wrappers")
    native = spec.vector_entry_point is not None and not wrapped
    try:
        envs = gymnasium.make_vec(
            spec,
            num_envs,
            vectorization_mode="vector_entry_point" if native else "sync",
            vector_kwargs={} if native else {"autoreset_mode": AutoresetMode.NEXT_STEP},
            **kwargs,
        )
    except (TypeError, gymnasium.error.Error) as error:
        raise InputError(f"{env_id} could not be created with {kwargs}: {error}") from error
    require_next_step(envs)
    envs.reset(seed=seed)
    return envs


def require_next_step(envs: AnyVectorEnv) -> None:
    """Refuse other autoreset modes: SAME_STEP hides the cost of an episode's last step."""
    mode = envs.metadata.get("autoreset_mode")
    if mode is not AutoresetMode.NEXT_STEP:
        raise InputError(
            f"{envs} has autoreset mode {mode}, expected AutoresetMode.NEXT_STEP: the other modes "
            "lose the last step's cost or do not reset. Create it with constrained_rl.cmdp."
            'make_vec, or gymnasium.make_vec(…, vector_kwargs={"autoreset_mode": '
            "AutoresetMode.NEXT_STEP}); a native vector environment declares it in `metadata`"
        )


def cost_names(envs: AnyVectorEnv) -> tuple[str, ...] | None:
    """Names of the cost channels, or None if only the first step can tell their number.

    A native vector environment has the attribute itself, under a `SyncVectorEnv` each
    sub-environment has it (`Cost` sets it).
    """
    inner = envs.unwrapped
    try:
        if isinstance(inner, SyncVectorEnv):  # not Async: a worker ends when it lacks an attribute
            found = inner.get_attr("cost_names")
        else:
            found = (inner.cost_names,)  # type: ignore[attr-defined]
    except AttributeError:
        return None
    for names in found:
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise InputError(f"cost_names of {envs} is {names!r}, expected a tuple of strings")
        if tuple(names) != tuple(found[0]):
            raise InputError(f"sub-environments of {envs} differ in cost_names: {set(found)}")
    return tuple(found[0])


def read_cost(
    info: Mapping[str, Any],
    mask: Bools,  # [N] True where an action was played, False at reset steps
    channels: int | None,  # K, or None before the first step
) -> Floats:  # [N, K]
    """The cost of one vector step; 0 where `mask` is False, an error where it is not known."""
    if "cost" not in info and not mask.any() and channels is not None:
        return np.zeros((len(mask), channels))
    _require_present(info, mask)
    cost = _as_float(info["cost"])
    if cost.ndim == 1:
        cost = cost[:, None]
    if cost.ndim != 2 or len(cost) != len(mask) or cost.shape[1] == 0:
        raise InputError(
            f'info["cost"] has shape {cost.shape}, expected [{len(mask)}] or [{len(mask)}, K]: '
            "one number or K numbers for each sub-environment"
        )
    if channels is not None and cost.shape[1] != channels:
        raise InputError(
            f'info["cost"] has K = {cost.shape[1]} channels, expected {channels} as before; '
            "return the same channels at every step, 0.0 where nothing happened"
        )
    cost = np.where(mask[:, None], cost, 0.0)
    if not np.isfinite(cost).all():
        index = np.flatnonzero(~np.isfinite(cost).all(axis=1)).tolist()
        raise InputError(
            f'info["cost"] is NaN or infinite in sub-environments {index[:8]}: {cost[index[0]]}; '
            "return a finite number (Gymnasium also stores None as NaN)"
        )
    return cost


class Cost(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Gives a single environment an honest `info["cost"]`: float64 [K] at every step.

    Args:
        env: The environment to wrap.
        names: One name for each of the K channels.
        cost: Computes the cost from (obs, action, reward, info) of the step just made; without it
            the environment's own `info["cost"]` is checked and cast.
    """

    def __init__(
        self, env: AnyEnv, names: Sequence[str] = ("cost",), cost: CostFunction | None = None
    ) -> None:
        RecordConstructorArgs.__init__(self, names=names, cost=cost)
        gymnasium.Wrapper.__init__(self, env)
        if isinstance(names, str) or not names or len(set(names)) < len(names):
            raise InputError(
                f'Cost names are {names!r}, expected distinct names in a tuple such as ("risk",)'
            )
        self.cost_names = tuple(names)
        self._cost = cost

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode. A reset pays nothing, so its info carries no cost."""
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, {key: value for key, value in info.items() if key != "cost"}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:  # noqa: ANN401
        """Play one action and attach its cost."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._cost is not None:
            found: ArrayLike = self._cost(obs, action, float(reward), info)
        elif "cost" in info:
            found = info["cost"]
        else:
            raise InputError(
                f'{self.env} returned no info["cost"], only {sorted(info)}; compute it: {_CURE}'
            )
        return obs, reward, terminated, truncated, {**info, "cost": self._checked(found)}

    def _checked(self, found: ArrayLike) -> Floats:
        """Cast to float64 [K] and require K finite numbers."""
        try:
            cost = np.atleast_1d(np.array(found, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise InputError(f"cost of {self.env} is {found!r}, expected numbers") from error
        if cost.shape != (len(self.cost_names),) or not np.isfinite(cost).all():
            raise InputError(
                f"cost of {self.env} is {found!r}, expected {len(self.cost_names)} finite numbers "
                f"for {self.cost_names}; name every channel in Cost(env, names=…)"
            )
        return cost


def _require_present(info: Mapping[str, Any], mask: Bools) -> None:
    """Raise unless every sub-environment that played an action reported a cost."""
    if "cost" not in info:
        keys = sorted(key for key in info if not key.startswith("_"))
        raise InputError(
            f'the environment returned no info["cost"], only {keys}; a missing cost is never taken '
            f"for 0. Wrap each sub-environment: make_vec(…, wrappers=[lambda env: {_CURE}])"
        )
    present = np.asarray(info.get("_cost", mask), dtype=np.bool_)
    missing = np.flatnonzero(mask & ~present).tolist()
    if missing:
        raise InputError(
            f'sub-environments {missing[:8]} played an action but returned no info["cost"] '
            f"({len(missing)} of {int(mask.sum())}); return it at every step, 0.0 where nothing "
            f"happened, or wrap each: {_CURE}"
        )


def _as_float(found: object) -> Floats:
    """Cast float arrays; refuse the others, in which Gymnasium may have cut off the decimals.

    `VectorEnv._add_info` allocates the array with the type of the first sub-environment: 0 from
    the first turns 0.5 from the second into 0, True turns 3 into True.
    """
    cost = np.asarray(found)
    if cost.dtype.kind != "f":
        raise InputError(
            f'info["cost"] has dtype {cost.dtype}, expected float64: with the first '
            "sub-environment's type Gymnasium may have cut off the others' decimals. Return "
            "float(cost) or np.asarray(cost, dtype=np.float64), or wrap each sub-environment in "
            "Cost(env), which casts"
        )
    return cost.astype(np.float64)


def _find_spec(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """The registered spec; `module:Name-v0` imports the module first."""
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(f"{env_id}: module {module} cannot be imported: {error}") from error
    spec = gymnasium.registry.get(name)
    if spec is None:
        near = _near_names(name) or [env_id for env_id in gymnasium.registry if _is_ours(env_id)]
        raise InputError(
            f"no environment is registered as {name!r}; near names: {', '.join(near)}. For an "
            "environment of another package write `package:Name-v0`, which imports it first"
        )
    return spec


def _near_names(name: str) -> list[str]:
    """Registered ids that look like `name`, ours first; namespaces and case do not count."""
    theirs_first = sorted(gymnasium.registry, key=_is_ours)  # of two equal tails, ours remains
    by_tail = {env_id.split("/")[-1].lower(): env_id for env_id in theirs_first}
    tails = difflib.get_close_matches(name.split("/")[-1].lower(), by_tail, n=5, cutoff=0.6)
    return sorted((by_tail[tail] for tail in tails), key=lambda env_id: not _is_ours(env_id))


def _is_ours(env_id: str) -> bool:
    return env_id.startswith("constrained_rl/")
