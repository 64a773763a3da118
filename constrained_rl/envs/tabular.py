"""A finite CMDP as a fast environment: table look-ups for all sub-environments at once.

A discounted problem is played with episodes that end with probability 1 − γ after each paid step
(`terminated`, no time limit). Step t then happens with probability γ^t, so the expected
*undiscounted* sum of an episode equals the discounted value of `oracle.evaluate_policy`.

Letters: N sub-environments, S states, A actions, K cost channels, M most successors of a pair.
"""

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from constrained_rl.envs import BUILT_IN
from constrained_rl.envs.native import Array, Floats, NativeEnv, NativeVectorEnv, Transition
from constrained_rl.errors import InputError
from constrained_rl.oracle import FiniteCMDP, load_cmdp


class Lottery:
    """Draws from many discrete distributions at once, by their cumulative probabilities."""

    def __init__(self, probability: Floats) -> None:  # [R, S] one distribution per row
        rows, outcomes = np.nonzero(probability)
        rank = np.arange(len(rows)) - np.searchsorted(rows, rows)  # place within its row
        shape = (len(probability), int(rank.max()) + 1)  # [R, M]
        self.outcome = np.zeros(shape, dtype=np.int64)
        self.outcome[rows, rank] = outcomes
        mass = np.zeros(shape)
        mass[rows, rank] = probability[rows, outcomes]
        # The last outcome takes what rounding leaves of 1: its bound is never compared.
        last = np.bincount(rows) - 1
        bound = np.where(np.arange(shape[1]) < last[:, None], mass.cumsum(axis=1), 1.0)
        self.bounds = tuple(np.ascontiguousarray(column) for column in bound[:, :-1].T)

    def draw(self, row: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
        """One outcome for each row: the number of bounds that the uniform number has passed."""
        uniform = random.random(len(row))
        column = np.zeros(len(row), dtype=np.int64)
        for bound in self.bounds:
            column += uniform >= bound[row]
        drawn: NDArray[np.int64] = self.outcome[row, column]
        return drawn


class Tabular:
    """Dynamics of a finite CMDP; the observation is the state's one-hot row."""

    def __init__(self, cmdp: FiniteCMDP, cost_names: tuple[str, ...] = ()) -> None:
        states, actions, channels = cmdp.sizes
        names = cost_names or tuple(f"cost_{k}" for k in range(channels))
        if len(names) != channels:
            raise InputError(f"{len(names)} cost names {names} for a CMDP with K = {channels}")
        self.cmdp = cmdp
        self.cost_names = names
        self.observation_space: Space[Any] = Box(0, 1, (states,), np.float32)
        self.action_space: Space[Any] = Discrete(actions)
        self._successor = Lottery(cmdp.transition.reshape(states * actions, states))
        self._first = Lottery(cmdp.initial[None])
        self._reward = cmdp.reward.ravel()  # [S·A]
        self._cost = np.ascontiguousarray(cmdp.cost.reshape(channels, -1).T)  # [S·A, K]
        self._one_hot = np.eye(states, dtype=np.float32)

    def start(self, count: int, random: np.random.Generator) -> Array:
        """Draw `count` states from the initial distribution."""
        return self._first.draw(np.zeros(count, dtype=np.int64), random)

    def move(self, state: Array, action: Array, random: np.random.Generator) -> Transition:
        """Pay, draw the successor, and end the episode with probability 1 − γ."""
        actions = self.cmdp.sizes[1]
        if action.min() < 0 or action.max() >= actions:
            raise InputError(f"an action lies outside 0…{actions - 1}: {action}")
        pair = state * actions + action
        successor = self._successor.draw(pair, random)
        ended = random.random(len(state)) >= self.cmdp.discount
        return Transition(
            state=successor,
            reward=self._reward[pair],
            cost=self._cost[pair],
            terminated=ended,
            truncated=np.zeros(len(state), dtype=np.bool_),
        )

    def observe(self, state: Array) -> Array:
        """One-hot rows, [N, S] float32."""
        return self._one_hot[state]


def tabular_vec(
    cmdp: FiniteCMDP, num_envs: int, cost_names: tuple[str, ...] = ()
) -> NativeVectorEnv:
    """Any finite CMDP as a native vector environment."""
    return NativeVectorEnv(Tabular(cmdp, cost_names), num_envs)


def detour_cmdp() -> FiniteCMDP:
    """The CMDP behind `constrained_rl/Detour-v0`, for `oracle.solve`."""
    return load_cmdp(Path(__file__).with_name("detour.npz"))


def detour() -> NativeEnv:
    """Entry point of `constrained_rl/Detour-v0`."""
    return NativeEnv(Tabular(detour_cmdp(), BUILT_IN["constrained_rl/Detour-v0"].cost_names))


def detour_vec(num_envs: int) -> NativeVectorEnv:
    """Vector entry point of `constrained_rl/Detour-v0`."""
    names = BUILT_IN["constrained_rl/Detour-v0"].cost_names
    return tabular_vec(detour_cmdp(), num_envs, names)
