"""Collects windows of T decisions from a Gymnasium vector environment: rows = sub-environments.

Requires NEXT_STEP autoreset, so `obs[:, t + 1]` is the true successor of decision t and the step
that only resets is masked. Running sums cross windows: an episode is reported where it ends.
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

from constrained_rl.cmdp import (
    SavesState,
    as_array,
    cost_names,
    read_cost,
    read_ending,
    require_finite_observations,
    require_no_cost,
    reset_envs,
    step_envs,
)
from constrained_rl.devices import restore_generator
from constrained_rl.errors import InputError, require_finite
from constrained_rl.networks import ActingPolicy
from constrained_rl.rollout import Episodes, Rollout
from constrained_rl.streams import expected_ends, require_chance

Array = NDArray[Any]


def probe_channels(
    envs: VectorEnv[Any, Any, Any], seed: int, required: bool, corrected: bool = False
) -> int:
    """Number of cost channels K, found by one random step.

    `InputError` if a cost is required or named and absent, or has to be corrected and the chance
    that an episode ends is absent.
    """
    envs.reset(seed=seed)
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
    burn_in: int = 0  # vector steps, again after every restart

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
        self._envs, self._policy = envs, policy
        self._windowing, self._channels, self._device = windowing, len(cost_names), device
        self.cost_names = cost_names
        self._generator = torch.Generator(device).manual_seed(seed)
        self._limit = LimitSeen()
        self._restart(seed)

    def _restart(self, seed: int) -> None:
        self._obs: Array = reset_envs(self._envs, seed)
        require_finite_observations(self._obs)
        count = self._envs.num_envs
        self._ended = np.zeros(count, dtype=bool)  # the last step ended an episode
        self._return = np.zeros(count)
        self._cost = np.zeros((count, self._channels))
        self._length = np.zeros(count, dtype=np.int64)
        self._restart_seed = seed
        self._burn_in = self._windowing.burn_in  # steps still to be played before a window

    def collect(self) -> Rollout:
        """Act for `horizon` steps in every sub-environment."""
        self._play_burn_in()
        observed, actions = [self._policy.encode(self._obs)], []
        steps: list[tuple[Array, ...]] = []
        ended: list[tuple[Array, ...]] = []
        for t in range(self._windowing.horizon):
            action, step = self._step(observed[-1], t, ended)
            observed.append(self._policy.encode(self._obs))
            actions.append(action)
            steps.append(step)
        rewards, costs, terminations, truncations, dones, masks, firsts, endings = (
            self._rows(record) for record in zip(*steps, strict=True)
        )
        known = not endings.isnan().any()
        return Rollout(
            obs=torch.stack(observed, 1),
            action=torch.stack(actions, 1),
            reward=rewards,
            cost=costs,
            terminated=terminations,
            done=dones,
            mask=masks,
            episodes=self._episodes(ended),
            exchangeable=True,
            first=firsts,
            ending=endings if known else None,
            ends=expected_ends(endings, truncations, self._limit.apart) if known else None,
        )

    def _play_burn_in(self) -> None:
        for _ in range(self._burn_in):
            self._step(self._policy.encode(self._obs), 0, [])
        self._burn_in = 0
        require_finite("returns of the burn-in", torch.from_numpy(self._return))

    def _step(
        self, obs: Tensor, t: int, ended: list[tuple[Array, ...]]
    ) -> tuple[Tensor, tuple[Array, ...]]:
        """Play one decision everywhere: the actions, and what `Rollout` keeps of them."""
        action = self._policy.act(obs, self._generator, deterministic=False)
        mask = ~self._ended
        first = mask & (self._length == 0)
        self._obs, reward, terminated, truncated, info = step_envs(
            self._envs, self._policy.executed(action)
        )
        require_finite_observations(self._obs)
        cost = self._read_cost(info, mask)
        reward = np.where(mask, reward, 0.0)
        done = (terminated | truncated) & mask
        if "termination" in info and done.any():
            self._limit.see(self._length[done] + 1, terminated[done], truncated[done])
        self._account(reward, cost, mask, done, t, ended)
        ending = read_ending(info, mask)
        cut = truncated & mask
        return action, (reward, cost, terminated & mask, cut, done, mask, first, ending)

    def _read_cost(self, info: dict[str, Any], mask: Array) -> Array:
        if self._channels == 0:
            require_no_cost(info, mask)
            return np.zeros((len(mask), 0))
        return read_cost(info, mask, self._channels)

    def _account(
        self,
        reward: Array,
        cost: Array,
        mask: Array,
        done: Array,
        t: int,
        ended: list[tuple[Array, ...]],
    ) -> None:
        """Add a step to the running sums and move finished episodes to `ended`."""
        self._return += reward
        self._cost += cost
        self._length += mask
        self._ended = done
        if done.any():
            rows = np.flatnonzero(done)
            ended.append(
                (
                    self._return[rows],
                    self._cost[rows],
                    self._length[rows],
                    rows,
                    np.full(len(rows), t),
                )
            )
            self._return[rows], self._cost[rows], self._length[rows] = 0.0, 0.0, 0

    def _rows(self, steps: Sequence[Array]) -> Tensor:
        """Stack T arrays [N, …] to a tensor [N, T, …]; numbers become default floats."""
        stacked = torch.from_numpy(np.stack(steps, axis=1))
        if stacked.dtype != torch.bool:
            stacked = stacked.to(torch.get_default_dtype())
        return stacked.to(self._device)

    def _episodes(self, ended: list[tuple[Array, ...]]) -> Episodes:
        if not ended:
            empty = torch.zeros(0, dtype=torch.long)
            none = torch.zeros(0, dtype=torch.float64)
            return Episodes(none, none.new_zeros(0, self._channels), empty, empty, empty)
        return_, cost, length, row, end = (
            torch.from_numpy(np.concatenate(column)) for column in zip(*ended, strict=True)
        )
        return Episodes(return_, cost, length, row, end)

    def at_checkpoint(self, seed: int) -> None:
        """Restart all episodes from `seed` unless the environment can save its state."""
        if not isinstance(self._envs, SavesState):
            self._restart(seed)

    def state_dict(self) -> dict[str, object]:
        """Generator, and either everything about the episodes under way or their restart seed."""
        state: dict[str, object] = {
            "generator": self._generator.get_state(),
            "limit": asdict(self._limit),
        }
        if not isinstance(self._envs, SavesState):
            return state | {"restart_seed": self._restart_seed}
        environment = {name: torch.from_numpy(x) for name, x in self._envs.get_state().items()}
        return state | {
            "environment": environment,
            "obs": torch.from_numpy(as_array(self._obs)),
            "ended": torch.from_numpy(self._ended),
            "return": torch.from_numpy(self._return),
            "cost": torch.from_numpy(self._cost),
            "length": torch.from_numpy(self._length),
            "burn_in": self._burn_in,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`."""
        restore_generator(self._generator, _tensor(state["generator"]))
        limit = state.get("limit", {})  # older checkpoints do not say
        assert isinstance(limit, dict)
        self._limit = LimitSeen(**limit)
        if not isinstance(self._envs, SavesState):
            seed = state["restart_seed"]
            assert isinstance(seed, int)
            self._restart(seed)
            return
        environment = state["environment"]
        assert isinstance(environment, dict)
        self._envs.set_state({name: _tensor(x).numpy().copy() for name, x in environment.items()})
        self._obs = _tensor(state["obs"]).numpy().copy()
        self._ended = _tensor(state["ended"]).numpy().copy()
        self._return = _tensor(state["return"]).numpy().copy()
        self._cost = _tensor(state["cost"]).numpy().copy()
        self._length = _tensor(state["length"]).numpy().copy()
        burn_in = state["burn_in"]
        assert isinstance(burn_in, int)
        self._burn_in = burn_in


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value
