"""Does any episode end? Where none does, no cost is known, λ holds still, and a run is wasted.

J_C, λ and the choice of `best/` rest on finished episodes. Absent: episodes that end, but seldom.
"""

from __future__ import annotations

import warnings

from constrained_rl.errors import InputError, Notice
from constrained_rl.ppo import Parts

EVIDENCE = 100
"""steps of each sub-environment without an end: too few would stop a short trial"""


class NoEpisodeNotice(Notice):
    """No episode has ended yet."""


def warn_without_episodes(parts: Parts, iterations: int) -> None:
    """Warn after a quarter of the iterations, and after the last, if no episode has ended yet.

    After a quarter only where no time limit promises that one will.
    """
    if parts.episodes or parts.iteration not in (_early(iterations), iterations):
        return
    limit = parts.collector.time_limit
    if parts.iteration < iterations and limit is not None and limit <= _played(parts, iterations):
        return
    ends = "the environment has no time limit" if limit is None else f"the time limit is {limit}"
    warnings.warn(
        f"no episode has ended in the {_played(parts, parts.iteration)} steps that each "
        f"sub-environment has played ({ends}): costs and returns are those of finished episodes, "
        "so nothing is known of them and λ holds still. Train longer, lower env.num_envs, or make "
        "episodes shorter (max_episode_steps)",
        NoEpisodeNotice,
        stacklevel=3,
    )


def require_episodes(parts: Parts, iterations: int) -> None:
    """As `warn_without_episodes`, for a whole run: `InputError` where none is going to end.

    That is so where the time limit lies beyond the run's last step, and a quarter of the run and
    `EVIDENCE` steps have passed in which the environment ended none before its limit.
    """
    limit, steps = parts.collector.time_limit, _played(parts, iterations)
    if parts.episodes or limit is None or limit <= steps or not parts.constraints.constraints:
        warn_without_episodes(parts, iterations)
        return
    played = _played(parts, parts.iteration)
    if parts.iteration >= _early(iterations) and played >= EVIDENCE:
        num_envs = parts.decisions // played  # without an end every step was a decision
        raise InputError(
            f"no episode is going to end: each sub-environment plays {steps} steps in this run, "
            f"the time limit ends an episode after {limit}, and in the first {played} steps none "
            "ended before it. Costs are those of finished episodes, so λ would never move. Give "
            f"total_steps={limit * num_envs} or more, or lower env.num_envs={num_envs}, or the "
            "environment's max_episode_steps"
        )
    if parts.iteration == iterations:
        warn_without_episodes(parts, iterations)


def _early(iterations: int) -> int:
    return max(1, iterations // 4)


def _played(parts: Parts, iterations: int) -> int:
    """Steps of each sub-environment in so many iterations."""
    return iterations * parts.config.horizon
