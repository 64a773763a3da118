"""Is this environment ready for constrained training? `check_cmdp` plays it and reports.

Gymnasium's own `check_env` first, then the contract of `info["cost"]`: there at every step and not
at resets, float, finite, K numbers, the same under the same seed and actions, named. Absent:
whether the cost means what you think; look at the ranges in the report.

Letters: K cost channels, N sub-environments.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv, VectorEnv

from constrained_rl.cmdp import (
    AnyEnv,
    AnyVectorEnv,
    Floats,
    cost_names,
    read_cost,
    require_finite_observations,
    require_next_step,
    reset_envs,
    step_envs,
    vec_with,
    vectorize,
)
from constrained_rl.contract import (
    check_costs,
    check_ends,
    check_names,
    check_observations,
    check_repeats,
    check_resets,
    play,
    time_limit,
)
from constrained_rl.errors import InputError, short
from constrained_rl.factories import made_by
from constrained_rl.faults import where_raised
from constrained_rl.findings import Finding, Level, Report
from constrained_rl.normalizers import require_no_statistics
from constrained_rl.processes import close_env, close_envs
from constrained_rl.registered import find_spec
from constrained_rl.spaces import require_action_space, require_observation_space
from constrained_rl.stacking import is_other_length


def check_cmdp(
    env: str | AnyEnv | AnyVectorEnv | Callable[[], AnyEnv],
    *,
    kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    steps: int = 400,
) -> Report:
    """Play an environment with random actions and report on its costs.

    Args:
        env: A Gymnasium id, an environment, a vector environment, or a function that makes one
            environment. Of an id or a function both the single and the vector form are checked,
            and closed afterwards; what was given as an object is reset and stays open.
        kwargs: Settings of the environment, with an id only.
        seed: Of environment and actions.
        steps: Steps to play; at least one episode should end in them.
    """
    if isinstance(env, VectorEnv):
        return Report(str(env), tuple(_vector_findings(env, seed, steps)))
    if isinstance(env, gymnasium.Env):
        return Report(str(env), tuple(_single_findings(env, seed, steps)))
    if isinstance(env, str):
        settings = dict(kwargs or {})
        spec = find_spec(env)
        single: Callable[[], AnyEnv] = lambda: gymnasium.make(spec, **settings)  # noqa: E731
        several = lambda: vec_with(env, 2, seed, "auto", settings)  # noqa: E731
        return _both(env, single, several, seed, steps)
    if not callable(env):
        raise InputError(
            f"check_cmdp got a {type(env).__name__}, expected an id, an environment, a vector "
            "environment or a function that makes one. If its step returns six values: "
            "FromSixTuple(env)"
        )
    name = getattr(env, "__qualname__", type(env).__qualname__)
    return _both(name, lambda: made_by(env), lambda: vectorize([env] * 2), seed, steps)


def _both(
    subject: str,
    single: Callable[[], AnyEnv],
    several: Callable[[], AnyVectorEnv],
    seed: int,
    steps: int,
) -> Report:
    """Check the single form, and the vector form where the single one is sound."""
    try:
        env = single()
    except InputError:
        raise
    except Exception as error:  # whatever a constructor raises
        raise InputError(f"{subject} could not be created: {where_raised(error)}") from error
    findings = tuple(_single_findings(env, seed, steps))
    close_env(env)
    if all(finding.level != "error" for finding in findings):
        envs = several()
        findings += tuple(_vector_findings(envs, seed, steps))
        close_envs(envs)
    return Report(subject, findings)


def _single_findings(env: AnyEnv, seed: int, steps: int) -> Iterator[Finding]:
    yield from _gymnasium(env)
    yield from _found_by("spaces", lambda: _spaces(env.observation_space, env.action_space))
    yield from _found_by("normalisers", lambda: _no_normalisers(env))
    try:
        first, second = (play(env, seed, steps) for _ in range(2))
    except Exception as error:  # whatever the environment raises belongs into the report
        yield Finding("error", "stepping", f"{type(error).__name__}: {error}", _advice(error))
        return
    yield check_observations(first, env.observation_space)
    yield check_repeats(first, second)
    yield from check_costs(first, second)
    yield check_resets(first)
    yield check_names(env, first)
    ended = sum(step.ended for step in first.steps)
    yield check_ends(ended, len(first.steps), limit=time_limit(env))


def _gymnasium(env: AnyEnv) -> Iterator[Finding]:
    """Gymnasium's own check of what is inside all wrappers; its warnings become lines."""
    check = "Gymnasium's check_env"
    level: Level = "ok"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_env(env.unwrapped, skip_render_check=True, skip_close_check=True)
        except Exception as error:  # assertions, type errors, and what the environment raises
            level = "error"
            yield Finding("error", check, f"{type(error).__name__}: {error}", _advice(error))
    for warning in dict.fromkeys(str(item.message) for item in caught):
        level = "warning" if level == "ok" else level
        yield Finding("warning", check, re.sub(r"\x1b\[\d*m|WARN: ", "", warning).strip())
    if level == "ok":
        yield Finding("ok", check, "passed")


def _advice(error: Exception) -> str:
    """What to do about an exception of the environment."""
    if is_other_length(error):
        return "a step with six values, obs, reward, cost, …: wrap it in FromSixTuple(env)"
    return ""


def _found_by(check: str, function: Callable[[], str]) -> Iterator[Finding]:
    """What a check says is found, or the `InputError` that it raises."""
    try:
        yield Finding("ok", check, function())
    except InputError as error:
        yield Finding("error", check, str(error))


def _spaces(observation: gymnasium.Space[Any], action: gymnasium.Space[Any]) -> str:
    require_observation_space(observation)
    require_action_space(action)
    return f"observations {type(observation).__name__}, actions {type(action).__name__}"


def _no_normalisers(env: AnyEnv) -> str:
    require_no_statistics(env)
    return "none with statistics of its own"


def _vector_findings(envs: AnyVectorEnv, seed: int, steps: int) -> Iterator[Finding]:
    """The same contract as the training loop holds a vector environment to."""
    form = f"vector form ({type(envs.unwrapped).__name__})"
    try:
        require_next_step(envs)
        require_no_statistics(envs)
        require_observation_space(envs.single_observation_space)
        require_action_space(envs.single_action_space)
        names = cost_names(envs)
        first, ended = play_vector(envs, seed, steps)
        second, _ = play_vector(envs, seed, steps)
    except InputError as error:
        yield Finding("error", form, str(error))
        return
    channels = first.shape[-1]
    if names is not None and len(names) != channels:
        yield Finding("error", form, f"{len(names)} cost names {names} for {channels} channels")
    elif not np.array_equal(first, second):
        found = "costs differ under the same seed and actions"
        yield Finding("error", form, found, "draw from the seeded generators only")
    else:
        yield Finding("ok", form, f"K = {channels} costs at every step of {envs.num_envs}")
    limit = time_limit(envs.envs[0]) if isinstance(envs, SyncVectorEnv) else None
    yield check_ends(ended, steps * envs.num_envs, f"{form}: episodes end", limit)


def play_vector(envs: AnyVectorEnv, seed: int, steps: int) -> tuple[Floats, int]:  # [steps, N, K]
    """Costs under random actions from `seed`, and how many episodes ended."""
    obs = reset_envs(envs, seed)
    envs.action_space.seed(seed)
    costs: list[Floats] = []
    mask, ended = np.ones(envs.num_envs, dtype=np.bool_), 0
    for _ in range(steps):
        require_finite_observations(obs)
        if obs not in envs.observation_space:
            raise InputError(f"observations are not in {envs.observation_space}: {short(obs)}")
        obs, _, terminated, truncated, info = step_envs(envs, envs.action_space.sample())
        costs.append(read_cost(info, mask, costs[-1].shape[1] if costs else None))
        done = (terminated | truncated) & mask
        ended += int(done.sum())
        mask = ~done
    return np.stack(costs), ended
