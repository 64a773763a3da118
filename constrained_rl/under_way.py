"""The episodes under way in a vector environment: their sums so far, and how they are found again.

They outlive a checkpoint, and somebody else's use of the environments: an environment that can save
its state is put back into it, any other plays its episodes again (`replay`). Letters: N
sub-environments, K cost channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from constrained_rl.cmdp import (
    SavesState,
    read_cost,
    read_ending,
    require_finite_observations,
    require_no_cost,
    reset_envs,
    step_envs,
)
from constrained_rl.errors import Notice
from constrained_rl.keeper import Keeper
from constrained_rl.replay import LONGEST, ActionLog, as_rows, differing
from constrained_rl.returned import as_array
from constrained_rl.seeds import Seeds

Array = NDArray[Any]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Step:
    """What one decision in each sub-environment brought; 0 and False where it only reset."""

    reward: Array  # [N]
    cost: Array  # [N, K]
    terminated: Bools  # [N]
    cut: Bools  # [N] truncated, terminated or not
    done: Bools  # [N]
    mask: Bools  # [N] a decision was played
    first: Bools  # [N] and it was its episode's first
    ending: Array  # [N] chance of `terminated`, NaN where it is not known
    finished: tuple[Array, Array, Array, Array]  # return, cost, length and row of episodes [E]


class UnderWay:
    """Steps a vector environment and adds up what its episodes bring."""

    def __init__(self, envs: VectorEnv[Any, Any, Any], channels: int, seed: int) -> None:
        self.envs, self._channels = envs, channels
        self.seeds = Seeds(seed, envs.num_envs)
        self._keeper = Keeper.of(envs)
        self._log = None if isinstance(envs, SavesState) else ActionLog(envs)
        self._kept: dict[str, Array] = {}  # an environment's state while somebody else plays in it
        if self._log is not None:
            self._log.begin(seed)
        self._keeper.give_to(self)
        with self._keeper.playing():
            self._reset(seed)

    def _reset(self, seed: int | list[int]) -> None:
        """Start all episodes from `seed`."""
        self.obs: Any = reset_envs(self.envs, seed)
        require_finite_observations(self.obs)
        count = self.envs.num_envs
        self._ended = np.zeros(count, dtype=bool)  # the last step ended an episode
        self.return_ = np.zeros(count)
        self._cost = np.zeros((count, self._channels))
        self._length = np.zeros(count, dtype=np.int64)
        none = np.zeros(0, dtype=np.int64)
        self._none = np.zeros(0), np.zeros((0, self._channels)), none, none  # finished episodes

    def _reset_rows(self, rows: Bools, log: ActionLog) -> None:
        """Start an episode in some sub-environments, from the seeds in the log."""
        self.obs = reset_envs(self.envs, log.origin.tolist(), rows)
        require_finite_observations(self.obs)
        self._ended[rows], self._length[rows] = False, 0
        self.return_[rows], self._cost[rows] = 0.0, 0.0

    def _begin_anew(self, log: ActionLog) -> None:
        """Start all episodes from seeds that were not given before."""
        count = self.envs.num_envs
        log.begin(self._draw(count) if log.separate else self.seeds.draw(count))
        self._reset(log.seed)

    def _draw(self, count: int) -> list[int]:
        return [self.seeds.draw() for _ in range(count)]

    def play(self, actions: Array) -> Step:
        """One decision in each sub-environment."""
        with self._keeper.playing():
            step = self._advance(actions)
            if self._log is not None:
                self._note(actions, step, self._log)
        return step

    def _note(self, actions: Array, step: Step, log: ActionLog) -> None:
        """Add a step to the log, and renew the seeds of those whose log is long."""
        log.add(actions, step.done)
        if not step.mask.all():
            renewed = log.to_renew(~step.mask)
            if renewed.any():
                log.renew(renewed, self._draw(int(renewed.sum())))
                self._reset_rows(renewed, log)

    def _advance(self, actions: Array) -> Step:
        mask = ~self._ended
        first = mask & (self._length == 0)
        self.obs, reward, terminated, truncated, info = step_envs(self.envs, actions)
        require_finite_observations(self.obs)
        if self._channels:
            cost = read_cost(info, mask, self._channels)
        else:
            require_no_cost(info, mask)
            cost = np.zeros((len(mask), 0))
        reward = np.where(mask, reward, 0.0)
        done = (terminated | truncated) & mask
        finished = self._account(reward, cost, mask, done)
        ending = read_ending(info, mask)
        return Step(
            reward, cost, terminated & mask, truncated & mask, done, mask, first, ending, finished
        )

    def _account(
        self, reward: Array, cost: Array, mask: Bools, done: Bools
    ) -> tuple[Array, Array, Array, Array]:
        """Add a step to the running sums; return those of finished episodes, which begin again."""
        self.return_ += reward
        self._cost += cost
        self._length += mask
        self._ended = done
        if not done.any():
            return self._none
        counted = done if self._log is None else done & ~self._log.settled
        rows = np.flatnonzero(counted)
        finished = self.return_[rows], self._cost[rows], self._length[rows], rows
        self.return_[done], self._cost[done], self._length[done] = 0.0, 0.0, 0
        return finished

    def shorten(self) -> None:
        """Keep the log of actions short enough for checkpoints; between two windows."""
        log = self._log
        if log is None:
            return
        endless = (log.since >= LONGEST) & ~log.settled & ~self._ended
        with self._keeper.playing():
            if log.separate and endless.any():
                log.renew(endless, self._draw(int(endless.sum())))
                self._reset_rows(endless, log)
            elif not log.separate and (endless.any() or log.settled.all()):
                self._begin_anew(log)
        if endless.any():
            warnings.warn(
                f"episodes of sub-environments {np.flatnonzero(endless).tolist()[:8]} had not "
                f"ended after {LONGEST} decisions; new ones begin. Give the environment a time "
                "limit (max_episode_steps)",
                Notice,
                stacklevel=2,
            )
        log.trim()

    def leave(self) -> None:
        """Somebody else is about to act in the environments: keep what `come_back` needs."""
        if isinstance(self.obs, np.ndarray):
            self.obs = self.obs.copy()  # it may be the environment's own memory
        if isinstance(self.envs, SavesState):
            self._kept = self.envs.get_state()

    def come_back(self) -> None:
        """Bring the environments to where they were left, if they are elsewhere."""
        if self._keeper.holds(self):
            return
        self._keeper.give_to(self)
        if self._log is not None:
            with self._keeper.playing():
                wrong = self._play_again(self._log)
            self._report(wrong)
        elif self._kept:
            assert isinstance(self.envs, SavesState)
            self.envs.set_state(self._kept)
            self._kept = {}

    def _play_again(self, log: ActionLog) -> Bools:  # [N]
        """Rebuild the episodes; which of them went another way: they go on from where they are."""
        expected = self._seen()
        self._reset(log.seed)
        starts, wrong = log.starts, np.zeros(self.envs.num_envs, dtype=bool)
        for t, (actions, ended) in enumerate(zip(log.actions, log.ended, strict=True)):
            if t > 0 and (starts == t).any():  # until then it played something that is forgotten
                self._reset_rows(starts == t, log)
            self._advance(actions)
            wrong |= (self._ended != ended) & (starts <= t)
        if log.actions and (log.since == 0).any():
            self._reset_rows(log.since == 0, log)
        return wrong | differing(expected, self._seen())

    def _report(self, wrong: Bools) -> None:
        if wrong.any():
            warnings.warn(
                f"sub-environments {np.flatnonzero(wrong).tolist()[:8]} of {len(wrong)}: their "
                "episodes under way were played again with the same seeds and actions, and went "
                "another way. Training goes on from where they are now; its results are not those "
                "of a run without an interruption. Either this is not the environment they were "
                "begun in, or it is not deterministic: it has to draw from self.np_random only, "
                "after super().reset(seed=seed), and to keep nothing from one episode to the "
                "next; see `crl check-env`",
                Notice,
                stacklevel=2,
            )

    def _seen(self) -> tuple[Array, ...]:
        """What is known of the episodes under way, each [N, …]."""
        return as_rows(self.obs), self._ended, self.return_, self._cost, self._length

    def state(self) -> dict[str, object]:
        """Sums, and the environment's state or what rebuilds it."""
        state: dict[str, object] = {
            "ended": torch.from_numpy(self._ended),
            "return": torch.from_numpy(self.return_),
            "cost": torch.from_numpy(self._cost),
            "length": torch.from_numpy(self._length),
        }
        if self._log is not None:
            obs = torch.from_numpy(as_rows(self.obs))
            return state | {"obs": obs, "log": self._log.state(), "seeds": self.seeds.state()}
        assert isinstance(self.envs, SavesState)
        saved = self._kept or self.envs.get_state()
        environment = {name: torch.from_numpy(x) for name, x in saved.items()}
        return state | {"environment": environment, "obs": torch.from_numpy(as_array(self.obs))}

    def load(self, state: Mapping[str, object]) -> bool:
        """Restore `state()`; False where it holds no episodes for these environments: new ones.

        Of environments that cannot save their state, `come_back` plays the episodes again.
        """
        if self._log is not None:
            return self._load_log(state, self._log)
        environment = state["environment"]
        assert isinstance(environment, dict)
        assert isinstance(self.envs, SavesState)
        self._keeper.give_to(self)
        self._kept = {}
        self.envs.set_state({name: _array(x) for name, x in environment.items()})
        self._load_sums(state)
        return True

    def _load_log(self, state: Mapping[str, object], log: ActionLog) -> bool:
        if "restart_seed" in state:  # made when all episodes were dropped at every checkpoint
            last = state["restart_seed"]
            assert isinstance(last, int)
            self.seeds.note_restarts(last)
            return self._without_episodes(log)
        saved, seeds = state["log"], state["seeds"]
        assert isinstance(saved, dict)
        assert isinstance(seeds, Tensor)
        self.seeds.restore(seeds)
        if len(saved["origin"]) != self.envs.num_envs:
            return self._without_episodes(log)
        log.restore(saved)
        self._load_sums(state)
        self._keeper.forget()
        return True

    def _without_episodes(self, log: ActionLog) -> bool:
        self._keeper.give_to(self)
        with self._keeper.playing():
            self._begin_anew(log)
        return False

    def _load_sums(self, state: Mapping[str, object]) -> None:
        self.obs = _array(state["obs"])
        self._ended, self._length = _array(state["ended"]), _array(state["length"])
        self.return_, self._cost = _array(state["return"]), _array(state["cost"])


def _array(value: object) -> Array:
    assert isinstance(value, Tensor)
    return value.numpy().copy()
