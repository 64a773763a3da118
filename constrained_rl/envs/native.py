"""From dynamics on arrays to Gymnasium: one vector environment and one single environment.

An environment of ours is a `Dynamics`: pure functions of (state, action, generator) for any number
of sub-environments at once. This file adds what Gymnasium asks for: spaces, seeding, NEXT_STEP
autoreset, `info["cost"]`, and a state that can be saved and restored to the last bit.

Letters: N sub-environments, K cost channels.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium import Env, Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from constrained_rl.cmdp import generator_state, restore_generator
from constrained_rl.errors import InputError

Array = NDArray[Any]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Transition:
    """What one step of N sub-environments brings."""

    state: Array  # [N, …] after the step
    reward: Floats  # [N]
    cost: Floats  # [N, K]
    terminated: Bools  # [N]
    truncated: Bools  # [N]
    termination: Floats | None = None  # [N] probability of `terminated`, where it is chance


class Dynamics(Protocol):
    """A constrained MDP on arrays; holds no state and no randomness of its own."""

    @property
    def observation_space(self) -> Space[Any]:
        """Space of one observation."""

    @property
    def action_space(self) -> Space[Any]:
        """Space of one action."""

    @property
    def cost_names(self) -> tuple[str, ...]:
        """Names of the K cost channels."""

    def start(self, count: int, random: np.random.Generator) -> Array:
        """Draw `count` first states, [count, …]."""

    def move(self, state: Array, action: Array, random: np.random.Generator) -> Transition:
        """Play one action in each state. Returns fresh arrays."""

    def observe(self, state: Array) -> Array:
        """Observations of the states, [N, …]."""


class NativeVectorEnv(VectorEnv[Array, Array, Array]):
    """N copies of some dynamics, stepped by one call; autoreset is NEXT_STEP.

    The step after an episode's end ignores its action and returns the reset observation, reward
    0, cost 0 and `info["_cost"]` False.
    """

    def __init__(self, dynamics: Dynamics, num_envs: int) -> None:
        if num_envs < 1:
            raise InputError(f"num_envs is {num_envs}, expected at least 1 sub-environment")
        self.dynamics = dynamics
        self.num_envs = num_envs
        self.cost_names = dynamics.cost_names
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = dynamics.observation_space
        self.single_action_space = dynamics.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._state: Array = dynamics.start(num_envs, self.np_random)
        self._done: Bools = np.zeros(num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start N new episodes; without a seed the random numbers continue."""
        super().reset(seed=seed, options=options)
        self._state = self.dynamics.start(self.num_envs, self.np_random)
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
        return self.dynamics.observe(self._state), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Play one action in each sub-environment, or start its next episode."""
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise InputError(
                f"actions have shape {actions.shape}, expected {self.action_space.shape}: one "
                "action for each sub-environment"
            )
        idle = self._done
        moved = self.dynamics.move(self._state, actions, self.np_random)
        if idle.any():
            moved.state[idle] = self.dynamics.start(int(idle.sum()), self.np_random)
            for ignored in (moved.reward, moved.cost, moved.terminated, moved.truncated):
                ignored[idle] = 0
        self._state = moved.state
        self._done = moved.terminated | moved.truncated
        obs = self.dynamics.observe(moved.state)
        info = {"cost": moved.cost, "_cost": ~idle}
        if moved.termination is not None:
            info["termination"] = moved.termination
        return obs, moved.reward, moved.terminated, moved.truncated, info

    def get_state(self) -> dict[str, Array]:
        """Everything the future depends on, as arrays."""
        return {
            "state": self._state.copy(),
            "done": self._done.copy(),
            "random": generator_state(self.np_random),
        }

    def set_state(self, state: dict[str, Array]) -> None:
        """Continue from what `get_state` returned, to the last bit."""
        for name, ours in (("state", self._state), ("done", self._done)):
            found = state.get(name, np.zeros(0))
            if found.shape != ours.shape or found.dtype != ours.dtype:
                raise InputError(
                    f"saved environment array {name!r} is {found.dtype} {found.shape}, expected "
                    f"{ours.dtype} {ours.shape}: it was saved from another environment or another "
                    "num_envs; continue with the settings it was saved with"
                )
        self._state = state["state"].copy()
        self._done = state["done"].copy()
        restore_generator(self.np_random, state["random"])


class NativeEnv(Env[Array, Any]):
    """One copy of some dynamics behind Gymnasium's single-environment interface."""

    metadata = {"render_modes": []}  # noqa: RUF012  Gymnasium's class attribute

    def __init__(self, dynamics: Dynamics) -> None:
        self.dynamics = dynamics
        self.cost_names = dynamics.cost_names
        self.observation_space = dynamics.observation_space
        self.action_space = dynamics.action_space
        self._state: Array | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode; without a seed the random numbers continue."""
        super().reset(seed=seed, options=options)
        self._state = self.dynamics.start(1, self.np_random)
        return self.dynamics.observe(self._state)[0], {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:  # noqa: ANN401
        """Play one action."""
        if self._state is None:
            raise InputError("step was called before reset; call env.reset(seed=…) first")
        moved = self.dynamics.move(self._state, np.asarray(action)[None], self.np_random)
        self._state = moved.state
        obs = self.dynamics.observe(moved.state)[0]
        ended = bool(moved.terminated[0]), bool(moved.truncated[0])
        info: dict[str, Any] = {"cost": moved.cost[0]}
        if moved.termination is not None:
            info["termination"] = float(moved.termination[0])
        return obs, float(moved.reward[0]), *ended, info
