"""Collects windows of T decisions from a Gymnasium vector environment: rows = sub-environments.

Requires NEXT_STEP autoreset, so `obs[:, t + 1]` is the true successor of decision t and the step
that only resets is masked. Running sums cross windows: an episode is reported where it ends.
Checkpoints change nothing: they hold what finds the episodes under way again (`under_way`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from constrained_rl.cmdp import cost_names, read_cost, reset_envs, step_envs
from constrained_rl.contract import time_limit_of
from constrained_rl.devices import restore_generator
from constrained_rl.errors import InputError, require_finite
from constrained_rl.networks import ActingPolicy
from constrained_rl.rollout import Episodes, Rollout
from constrained_rl.streams import expected_ends, require_chance
from constrained_rl.under_way import Step, UnderWay

Array = NDArray[Any]


def probe_channels(
    envs: VectorEnv[Any, Any, Any], seed: int, required: bool, corrected: bool = False
) -> int:
    """Number of cost channels K, found by one random step.

    `InputError` if a cost is required or named and absent, or has to be corrected and the chance
    that an episode ends is absent.
    """
    reset_envs(envs, seed)
    envs.action_space.seed(seed)
    info = step_envs(envs, envs.action_space.sample())[4]
    if corrected and required:
        require_chance("termination" in info)
    if not required and "cost" not in info and cost_names(envs) is None:
        return 0
    return len(read_cost(info, np.ones(envs.num_envs, dtype=bool), None)[0])


@dataclass(frozen=True)
class Windowing:
    """How long a window is, and how much is played before the first one.

    Of episodes that start together the short ones end first, so the first windows' finished
    episodes are too short, and cost too little. `burn_in` steps are played by the starting policy
    and forgotten, but for the sums of the episodes they leave under way.
    """

    horizon: int  # decisions of each sub-environment
    burn_in: int = 0  # vector steps

    def __post_init__(self) -> None:
        """Require a window that holds a decision."""
        if self.horizon < 2:
            raise InputError(
                f"ppo.horizon is {self.horizon}; give at least 2: the step that only resets an "
                "episode could fill a window of one, which then holds no decision"
            )


@dataclass
class LimitSeen:
    """How does a time limit report an end that was drawn at the same step? From ends so far.

    Most say both, terminated and truncated. One that says only terminated shows where nobody has
    lived longer: of the episodes that end at that age some are truncated and some are not.
    """

    age: int = 0  # of the longest episode
    cut: bool = False  # one of that age was truncated
    drawn: bool = False  # one of that age was terminated only
    together: bool = False  # some episode was both

    def see(
        self,
        age: Array,  # [E] of the episodes that end
        terminated: Array,  # [E]
        truncated: Array,  # [E]
    ) -> None:
        """Take note of the ends of a step."""
        oldest = int(age.max())
        if oldest > self.age:
            self.age, self.cut, self.drawn = oldest, False, False
        last = age == self.age
        self.cut |= bool((truncated & ~terminated & last).any())
        self.drawn |= bool((terminated & ~truncated & last).any())
        self.together |= bool((terminated & truncated).any())

    @property
    def apart(self) -> bool:
        """Whether a drawn end hides that the limit was reached, as far as that shows."""
        return self.cut and self.drawn and not self.together


class VectorCollector:
    """Steps `envs` with `policy`; episodes continue from one window into the next."""

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        policy: ActingPolicy,
        windowing: Windowing,
        cost_names: tuple[str, ...],
        seed: int,
        device: torch.device,
    ) -> None:
        self._policy, self._windowing = policy, windowing
        self._channels, self._device = len(cost_names), device
        self.cost_names = cost_names
        self._generator = torch.Generator(device).manual_seed(seed)
        self._limit = LimitSeen()
        self.under_way = UnderWay(envs, self._channels, seed)
        self._burn_in = windowing.burn_in  # steps still to be played before a window

    @property
    def time_limit(self) -> int | None:
        """Decisions after which the environment ends an episode, where it says so."""
        return time_limit_of(self.under_way.envs)

    def collect(self) -> Rollout:
        """Act for `horizon` steps in every sub-environment."""
        self.under_way.come_back()
        self.under_way.shorten()
        self._play_burn_in()
        observed, actions = [self._policy.encode(self.under_way.obs)], []
        steps: list[Step] = []
        for _ in range(self._windowing.horizon):
            action, step = self._step(observed[-1])
            observed.append(self._policy.encode(self.under_way.obs))
            actions.append(action)
            steps.append(step)
        terminated, cut, endings = (
            self._rows(rows)
            for rows in (
                [step.terminated for step in steps],
                [step.cut for step in steps],
                [step.ending for step in steps],
            )
        )
        known = not endings.isnan().any()
        return Rollout(
            obs=torch.stack(observed, 1),
            action=torch.stack(actions, 1),
            reward=self._rows([step.reward for step in steps]),
            cost=self._rows([step.cost for step in steps]),
            terminated=terminated,
            done=self._rows([step.done for step in steps]),
            mask=self._rows([step.mask for step in steps]),
            episodes=_episodes(steps),
            exchangeable=True,
            first=self._rows([step.first for step in steps]),
            ending=endings if known else None,
            ends=expected_ends(endings, cut, self._limit.apart) if known else None,
        )

    def _play_burn_in(self) -> None:
        for _ in range(self._burn_in):
            self._step(self._policy.encode(self.under_way.obs))
        self._burn_in = 0
        require_finite("returns of the burn-in", torch.from_numpy(self.under_way.return_))

    def _step(self, obs: Tensor) -> tuple[Tensor, Step]:
        """Act once everywhere."""
        action = self._policy.act(obs, self._generator, deterministic=False)
        step = self.under_way.play(self._policy.executed(action))
        *_, length, rows = step.finished
        if len(rows) and not np.isnan(step.ending[rows]).any():
            self._limit.see(length, step.terminated[rows], step.cut[rows])
        return action, step

    def _rows(self, steps: Sequence[Array]) -> Tensor:
        """Stack T arrays [N, …] to a tensor [N, T, …]; numbers become default floats."""
        stacked = torch.from_numpy(np.stack(steps, axis=1))
        if stacked.dtype != torch.bool:
            stacked = stacked.to(torch.get_default_dtype())
        return stacked.to(self._device)

    def state_dict(self) -> dict[str, object]:
        """Generator, and all that finds the episodes under way again."""
        own = {
            "generator": self._generator.get_state(),
            "burn_in": self._burn_in,
            "limit": asdict(self._limit),
        }
        return own | self.under_way.state()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`; `under_way.come_back` then finds the episodes, or `collect`."""
        generator, burn_in = state["generator"], self._windowing.burn_in
        assert isinstance(generator, Tensor)
        restore_generator(self._generator, generator)
        limit = state.get("limit", {})  # older checkpoints do not say
        assert isinstance(limit, dict)
        self._limit = LimitSeen(**limit)
        if self.under_way.load(state):
            saved = state["burn_in"]
            assert isinstance(saved, int)
            burn_in = saved
        self._burn_in = burn_in


def _episodes(steps: Sequence[Step]) -> Episodes:
    """The episodes that finished in a window, in the order of their ends."""
    finished = zip(*(step.finished for step in steps), strict=True)
    return_, cost, length, row = (torch.from_numpy(np.concatenate(part)) for part in finished)
    counts = torch.tensor([len(step.finished[-1]) for step in steps])
    end = torch.arange(len(steps)).repeat_interleave(counts)
    return Episodes(return_, cost, length, row, end)
