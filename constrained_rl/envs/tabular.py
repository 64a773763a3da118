"""A finite CMDP as a fast environment: table look-ups for all sub-environments at once.

A discounted problem is played with episodes that end with probability 1 − γ after each paid step
(`terminated`, no time limit). Step t then happens with probability γ^t, so the expected
*undiscounted* sum of an episode equals the discounted value of `oracle.evaluate_policy`. With γ = 1
episodes end in absorbing states.

Letters: N sub-environments, S states, A actions, K cost channels, M most successors of a pair.
"""

from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from constrained_rl.envs import BUILT_IN
from constrained_rl.envs.native import Array, Floats, NativeEnv, NativeVectorEnv, Transition
from constrained_rl.envs.problems import cmdp_of
from constrained_rl.errors import InputError
from constrained_rl.finite import FiniteCMDP, require_ends


class Lottery:
    """Draws from many discrete distributions at once, by their cumulative probabilities.

    Rows of few outcomes are compared bound by bound; where there are more than `FEW`, one binary
    search over all rows, the cumulative probabilities of row i shifted by i, takes less.
    """

    FEW = 8

    def __init__(self, probability: Floats) -> None:  # [R, S] one distribution per row
        rows, outcomes = np.nonzero(probability)
        count = np.bincount(rows)  # [R] outcomes of each row
        shape = (len(probability), int(count.max()))  # [R, M]
        rank = np.arange(len(rows)) - np.searchsorted(rows, rows)  # place within its row
        self.outcome = np.zeros(shape, dtype=np.int64)
        self.outcome[rows, rank] = outcomes
        mass = np.zeros(shape)
        mass[rows, rank] = probability[rows, outcomes]
        # The last outcome takes what rounding leaves of 1: its bound is never compared.
        self._last = count - 1
        bound = np.where(np.arange(shape[1]) < self._last[:, None], mass.cumsum(axis=1), 1.0)
        self._bounds = tuple(np.ascontiguousarray(column) for column in bound[:, :-1].T)
        self._shifted = (bound + np.arange(len(bound))[:, None]).ravel()  # [R·M], ascending

    def draw(self, row: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
        """One outcome for each row: the number of bounds that the uniform number has passed."""
        uniform = random.random(len(row))
        if len(self._bounds) < self.FEW:
            column = np.zeros(len(row), dtype=np.int64)
            for bound in self._bounds:
                column += uniform >= bound[row]
        else:
            passed = np.searchsorted(self._shifted, row + uniform, side="right")
            # row + uniform may round up to row + 1, which is another row's
            column = np.minimum(passed - row * self.outcome.shape[1], self._last[row])
        drawn: NDArray[np.int64] = self.outcome[row, column]
        return drawn


class Tabular:
    """Dynamics of a finite CMDP; the observation is the state's one-hot row."""

    def __init__(self, cmdp: FiniteCMDP, cost_names: tuple[str, ...] = ()) -> None:
        states, actions, channels = cmdp.sizes
        names = cost_names or tuple(f"cost_{k}" for k in range(channels))
        if len(names) != channels:
            raise InputError(f"{len(names)} cost names {names} for a CMDP with K = {channels}")
        require_ends(cmdp)
        self._ends = cmdp.absorbing if cmdp.discount == 1 else None  # [S], see `require_ends`
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
        if self._ends is None:
            ended = random.random(len(state)) >= self.cmdp.discount
        else:
            ended = self._ends[successor]
        return Transition(
            state=successor,
            reward=self._reward[pair],
            cost=self._cost[pair],
            terminated=ended,
            truncated=np.zeros(len(state), dtype=np.bool_),
            termination=self._chance(len(state)),
        )

    def _chance(self, count: int) -> Floats | None:
        """1 − γ for each of `count` steps; None where absorbing states end the episodes."""
        return None if self._ends is not None else np.full(count, 1 - self.cmdp.discount)

    def observe(self, state: Array) -> Array:
        """One-hot rows, [N, S] float32."""
        return self._one_hot[state]


def tabular_vec(
    cmdp: FiniteCMDP, num_envs: int, cost_names: tuple[str, ...] = ()
) -> NativeVectorEnv:
    """Any finite CMDP as a native vector environment."""
    return NativeVectorEnv(Tabular(cmdp, cost_names), num_envs)


def problem(
    env_id: str,
    **settings: Any,  # noqa: ANN401  the problem's own
) -> NativeEnv:
    """Entry point of the built-in finite CMDPs."""
    return NativeEnv(_built_in(env_id, settings))


def problem_vec(
    num_envs: int,
    env_id: str,
    **settings: Any,  # noqa: ANN401  the problem's own
) -> NativeVectorEnv:
    """Vector entry point of the built-in finite CMDPs."""
    return NativeVectorEnv(_built_in(env_id, settings), num_envs)


def _built_in(env_id: str, settings: dict[str, Any]) -> Tabular:
    """Tables of a built-in problem; a random one may have another number of costs than the row."""
    cmdp, names = cmdp_of(env_id, **settings), BUILT_IN[env_id].cost_names
    return Tabular(cmdp, names if len(names) == len(cmdp.limit) else ())
