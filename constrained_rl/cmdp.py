"""How a cost travels through Gymnasium: `info["cost"]`, a float or a float64 array [K], every step.

This file creates vector environments whose autoreset keeps the terminal cost (NEXT_STEP), steps
them, and reads the cost honestly: a cost that is absent is an error, never zero. The wrappers that
give a single environment a cost are in `costs`. Absent: rescaling of costs; `info["cost"]` has the
units of its limit.

Letters: N sub-environments, K cost channels.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from constrained_rl.costs import CURE, are_names
from constrained_rl.errors import InputError, short
from constrained_rl.factories import Factory, SubEnvironmentMaker
from constrained_rl.faults import where_raised
from constrained_rl.processes import LeavesSignals, of_processes
from constrained_rl.registered import Vectorization, find_spec
from constrained_rl.returned import (
    SubEnvironment,
    as_array,
    five_values,
    flags,
    numbers,
    require_in_space,
    reset_pair,
)
from constrained_rl.stacking import explained

Array = NDArray[Any]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
AnyEnv = gymnasium.Env[Any, Any]
AnyVectorEnv = VectorEnv[Any, Any, Any]


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
    vectorization: Vectorization = "auto",
    **kwargs: Any,  # noqa: ANN401  the environment's own settings
) -> AnyVectorEnv:
    """Create N sub-environments with NEXT_STEP autoreset, reset once with `seed`.

    `vectorization` "sync" steps them one after another, "async" each in a process of its own (close
    them), and "auto" takes the environment's native vector form where it has one and there is
    nothing to wrap, else "sync". A later `reset()` without a seed continues the same random
    numbers. Gymnasium's own `wrappers=[…]` are applied to each sub-environment.
    """
    return vec_with(env_id, num_envs, seed, vectorization, kwargs)


def vec_with(
    env_id: str,
    num_envs: int,
    seed: int,
    vectorization: Vectorization,
    settings: Mapping[str, Any],
) -> AnyVectorEnv:
    """As `make_vec`, for settings of whatever name: an environment's own may be called `seed`."""
    kwargs = dict(settings)
    if num_envs < 1:
        raise InputError(f"num_envs is {num_envs}, expected at least 1 sub-environment")
    spec = find_spec(env_id)
    wrapped = spec.additional_wrappers or kwargs.get("wrappers")
    native = vectorization == "auto" and spec.vector_entry_point is not None and not wrapped
    mode = "sync" if vectorization == "auto" else vectorization
    if not native:
        outer = LeavesSignals() if mode == "async" else None
        kwargs["wrappers"] = [
            *filter(None, [outer]),
            *(kwargs.get("wrappers") or ()),
            SubEnvironment,
        ]
    try:
        envs = gymnasium.make_vec(
            spec,
            num_envs,
            vectorization_mode="vector_entry_point" if native else mode,
            vector_kwargs={} if native else {"autoreset_mode": AutoresetMode.NEXT_STEP},
            **kwargs,
        )
    except InputError:
        raise
    except Exception as error:  # whatever a constructor raises
        raise InputError(
            f"{env_id} could not be created with {dict(settings)}: {where_raised(error)}"
        ) from error
    require_next_step(envs)
    reset_envs(envs, seed)
    return envs


def vectorize(factories: Sequence[Factory], vectorization: Vectorization = "auto") -> AnyVectorEnv:
    """One sub-environment from each factory, NEXT_STEP autoreset; "auto" is "sync".

    An "async" factory is sent to its process by cloudpickle, so a lambda is fine.
    """
    if not factories or not all(callable(factory) for factory in factories):
        raise InputError(
            f"the environments are {factories!r}, expected functions without arguments that make "
            "one sub-environment each"
        )
    made = AsyncVectorEnv if vectorization == "async" else SyncVectorEnv
    prepare = LeavesSignals(in_processes=vectorization == "async")
    wrapped = [SubEnvironmentMaker(factory, prepare) for factory in factories]
    try:
        return made(wrapped, autoreset_mode=AutoresetMode.NEXT_STEP)
    except RuntimeError as error:
        if "observation_mode" in str(error) or "action space" in str(error):
            raise InputError(f"the sub-environments do not fit together: {error}") from error
        raise


def step_envs(
    envs: AnyVectorEnv,
    actions: Any,  # noqa: ANN401  [N, …], what the environment takes
) -> tuple[Any, ...]:
    """One vector step; what Gymnasium cannot put together is explained.

    Rewards are NumPy arrays [N] and flags bools [N], also of environments that keep their tensors
    on a device or use 0 and 1.
    """
    with _explaining(envs):
        found = five_values(envs, envs.step(actions))
    obs, reward, terminated, truncated, info = found
    require_in_space(obs, envs)
    return (
        obs,
        numbers("rewards", reward, envs.num_envs),
        flags("terminations", terminated, envs.num_envs),
        flags("truncations", truncated, envs.num_envs),
        info,
    )


@contextmanager
def _explaining(envs: AnyVectorEnv) -> Iterator[None]:
    """Say what is wrong with values that Gymnasium cannot put together."""
    try:
        with of_processes(envs):
            yield
    except InputError:
        raise
    except Exception as error:
        explanation = explained(error, envs)
        if explanation is None:
            raise
        raise explanation from error


def reset_envs(
    envs: AnyVectorEnv,
    seed: int | list[int],
    rows: Bools | None = None,  # [N]
) -> Any:  # noqa: ANN401
    """Start new episodes from `seed`, or from one each; the first observations [N, …].

    Only in `rows`, if given, which Gymnasium's own vector environments can; others go on.
    """
    given = {"seed": seed, "options": None if rows is None else {"reset_mask": rows}}
    with _explaining(envs):
        obs, _ = reset_pair(envs, {name: x for name, x in given.items() if x is not None})
    require_in_space(obs, envs)
    return obs


def require_finite_observations(obs: object) -> None:
    """Refuse NaN and infinite numbers in a batch of observations [N, …], naming who sent them."""
    if not isinstance(obs, np.ndarray) or obs.dtype.kind != "f" or np.isfinite(obs).all():
        return
    finite = np.isfinite(obs).reshape(len(obs), -1)
    rows = np.flatnonzero(~finite.all(axis=1)).tolist()
    columns = np.flatnonzero(~finite[rows[0]]).tolist()
    raise InputError(
        f"observations of sub-environments {rows[:8]} are NaN or infinite ({len(rows)} of "
        f"{len(obs)}); the first at {columns[:8]}: {obs[rows[0]].ravel()[columns[:8]]}. Repair the "
        "environment: a policy cannot read them, and they would destroy its statistics"
    )


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

    A native vector environment has the attribute itself, under `SyncVectorEnv` and `AsyncVectorEnv`
    each sub-environment has it (`Cost` sets it).
    """
    inner = envs.unwrapped
    if isinstance(inner, SyncVectorEnv | AsyncVectorEnv):
        # Asked first, because a process of Async ends when it lacks an attribute.
        if not all(inner.call("has_wrapper_attr", "cost_names")):
            return None
        found = inner.call("get_wrapper_attr", "cost_names")
    elif hasattr(inner, "cost_names"):
        found = (inner.cost_names,)
    else:
        return None
    for names in found:
        if not are_names(names):
            raise InputError(f"cost_names of {envs} is {names!r}, expected a tuple of strings")
        if tuple(names) != tuple(found[0]):
            differing = sorted({tuple(each) for each in found if are_names(each)})
            raise InputError(f"sub-environments of {envs} differ in cost_names: {differing}")
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
    cost = _as_float("cost", info["cost"])
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


def read_ending(
    info: Mapping[str, Any],
    mask: Bools,  # [N] True where an action was played
) -> Floats:  # [N]
    """`info["termination"]`, the probability of `terminated` given the state and action; else NaN.

    An environment that ends episodes by chance (a discount, played) knows it; averages over that
    chance then need not sample it. The observation is then of the state that the episode would go
    on from. 0 where `mask` is False.
    """
    if "termination" not in info:
        return np.where(mask, np.nan, 0.0)
    chance = _as_float("termination", info["termination"])
    if chance.shape != mask.shape:
        raise InputError(
            f'info["termination"] has shape {chance.shape}, expected [{len(mask)}]: one '
            "probability for each sub-environment"
        )
    ending = np.where(mask, chance, 0.0)
    bad = np.flatnonzero(~((ending >= 0) & (ending <= 1)))
    if len(bad) > 0:
        raise InputError(
            f'info["termination"] is {ending[bad[0]]} in sub-environment {bad[0]}, expected the '
            "probability in [0, 1] with which this step ends the episode; leave it out if unknown"
        )
    # Gymnasium fills in 0 for sub-environments that left it out.
    present = np.asarray(info.get("_termination", mask), dtype=np.bool_)
    return np.where(mask & ~present, np.nan, ending)


def require_no_cost(
    info: Mapping[str, Any],
    mask: Bools,  # [N] True where an action was played
) -> None:
    """Refuse a cost from an environment whose first step had none: nobody would see it."""
    present = "cost" in info and mask & np.asarray(info.get("_cost", mask), dtype=np.bool_)
    if np.any(present):
        raise InputError(
            f'sub-environments {np.flatnonzero(present).tolist()[:8]} returned info["cost"], but '
            "the first step had none, so it would not be counted; return it at every step, 0.0 "
            f"where nothing happened, or wrap each: {CURE}"
        )


def _require_present(info: Mapping[str, Any], mask: Bools) -> None:
    """Raise unless every sub-environment that played an action reported a cost."""
    if "cost" not in info:
        keys = sorted(key for key in info if not key.startswith("_"))
        raise InputError(
            f'the environment returned no info["cost"], only {keys}; a missing cost is never taken '
            f"for 0. Wrap each sub-environment: {CURE}; for the command line, register it wrapped "
            "in a file my_env.py (gymnasium.register) and give env.id=my_env:Name-v0, or train "
            "without costs by --preset ppo"
        )
    present = np.asarray(info.get("_cost", mask), dtype=np.bool_)
    missing = np.flatnonzero(mask & ~present).tolist()
    if missing:
        raise InputError(
            f'sub-environments {missing[:8]} played an action but returned no info["cost"] '
            f"({len(missing)} of {int(mask.sum())}); return it at every step, 0.0 where nothing "
            f"happened, or wrap each: {CURE}"
        )


def _as_float(key: str, found: object) -> Floats:
    """Cast float arrays; refuse the others, in which Gymnasium may have cut off the decimals.

    `VectorEnv._add_info` allocates the array with the type of the first sub-environment: 0 from
    the first turns 0.5 from the second into 0, True turns 3 into True.
    """
    numbers = as_array(found)
    if numbers.dtype.kind == "f":
        return numbers.astype(np.float64)
    cure = ", or wrap each sub-environment in Cost(env), which casts" if key == "cost" else ""
    given = f"Return float({key}) or np.asarray({key}, dtype=np.float64){cure}"
    if numbers.dtype.kind in "biu":
        raise InputError(
            f'info["{key}"] has dtype {numbers.dtype}, expected float64: with the first '
            f"sub-environment's type Gymnasium may have cut off the others' decimals. {given}"
        )
    first = numbers.flat[0] if numbers.size else None
    raise InputError(
        f'info["{key}"] has dtype {numbers.dtype}, expected float64: the first is {short(first)}, '
        f"of type {type(first).__name__}. {given}"
    )
