"""Which finite CMDP is a small Gymnasium environment?

It is read or walked through completely, never sampled; where neither is possible it is refused.

- One of ours on a finite CMDP gives that.
- One with a table `P[state][action] = [(probability, next state, reward, terminated), …]` and
  `initial_state_distrib` (Gymnasium's toy_text) gives the table; costs come from a function.
- Any other whose steps and reset draw no random numbers is walked through on copies, with an
  observation for a state; costs come from `info["cost"]`.

Where an episode terminates, the CMDP enters one more state, the last, which is absorbing. A time
limit is not part of it: episodes of at most H decisions are what `oracle.Horizon(H)` solves.

Letters: S states, A actions, K constraints.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.spaces.utils import flatten
from numpy.typing import NDArray

from constrained_rl.cmdp import read_cost
from constrained_rl.envs.native import NativeEnv
from constrained_rl.envs.tabular import Tabular
from constrained_rl.errors import InputError
from constrained_rl.finite import FiniteCMDP, Floats

AnyEnv = gymnasium.Env[Any, Any]
CostFunction = Callable[[int, int, int], float | Sequence[float]]
MOST_STATES = 2000
"""states beyond which a dense table [S, A, S] is too large to be walked through"""


@runtime_checkable
class HasTable(Protocol):
    """What Gymnasium's toy_text environments offer."""

    P: Mapping[int, Mapping[int, Sequence[tuple[float, int, float, bool]]]]
    initial_state_distrib: NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """One possible result of an action."""

    probability: float
    state: int | None  # None: the episode has terminated
    reward: float
    cost: Floats  # [K]


def from_gymnasium(
    env: AnyEnv,
    limit: float | Sequence[float],
    discount: float,
    cost: CostFunction | None = None,
) -> FiniteCMDP:
    """The finite CMDP of a small environment, exactly.

    Args:
        env: a single environment with Discrete actions.
        limit: upper bound on each cost, [K] or one number.
        discount: γ; 1 for totals of episodes.
        cost: (state, action, next state) → cost, for an environment with a table.

    Raises:
        InputError: the environment can neither be read nor walked through; the message says why.
    """
    inner = env.unwrapped
    if isinstance(inner, NativeEnv) and isinstance(inner.dynamics, Tabular):
        return replace(inner.dynamics.cmdp, discount=discount, limit=np.atleast_1d(limit))
    if not isinstance(env.action_space, Discrete):
        raise InputError(f"{env} has the action space {env.action_space}, expected Discrete")
    if isinstance(inner, HasTable):
        outcomes, initial = _read_table(inner, cost)
    elif cost is not None:
        raise InputError(
            f'{env} has no table P, so its costs are read from info["cost"]; leave `cost` out and '
            "wrap the environment in constrained_rl.Cost"
        )
    else:
        outcomes = _Walk(env, env.action_space).outcomes()
        initial = np.eye(len(outcomes))[0]
    return _cmdp(outcomes, initial, np.atleast_1d(np.asarray(limit, np.float64)), discount)


def _read_table(
    env: HasTable, cost: CostFunction | None
) -> tuple[list[list[list[Outcome]]], Floats]:
    """Outcomes of every state and action of a table, and the distribution of first states."""
    if cost is None:
        raise InputError(
            "the environment has a table of transitions but no costs in it; give cost=lambda "
            "state, action, next_state: …"
        )
    table = [
        [
            [
                Outcome(p, None if end else to, reward, np.atleast_1d(cost(state, action, to)))
                for p, to, reward, end in env.P[state][action]
            ]
            for action in range(len(env.P[state]))
        ]
        for state in range(len(env.P))
    ]
    return table, np.asarray(env.initial_state_distrib, np.float64)


def _cmdp(
    outcomes: list[list[list[Outcome]]],  # [S, A] of lists
    initial: Floats,  # [S]
    limit: Floats,  # [K]
    discount: float,
) -> FiniteCMDP:
    """Expected rewards and costs, with the absorbing state as the last."""
    states, actions = len(outcomes), len(outcomes[0])
    transition = np.zeros((states + 1, actions, states + 1))
    reward = np.zeros((states + 1, actions))
    cost = np.zeros((len(limit), states + 1, actions))
    transition[states, :, states] = 1
    for state, row in enumerate(outcomes):
        for action, results in enumerate(row):
            for result in results:
                if len(result.cost) != len(limit):
                    raise InputError(
                        f"state {state}, action {action} costs {result.cost.tolist()}, but limit "
                        f"{limit.tolist()} has K = {len(limit)} entries; give one limit per cost"
                    )
                to = states if result.state is None else result.state
                transition[state, action, to] += result.probability
                reward[state, action] += result.probability * result.reward
                cost[:, state, action] += result.probability * result.cost
    return FiniteCMDP(transition, reward, cost, np.append(initial, 0.0), discount, limit)


class _Walk:
    """Visits every state of a deterministic environment on copies of it, breadth first."""

    def __init__(self, env: AnyEnv, actions: Discrete) -> None:
        self._actions, self._space = actions, env.observation_space
        first = self._copy(env)
        first.reset(seed=0)  # makes its generator
        self._copies = [first]
        self._number: dict[bytes, int] = {}
        self._number[self._key(self._still(first, lambda: first.reset()[0], "reset"))] = 0

    def outcomes(self) -> list[list[list[Outcome]]]:
        """The single outcome of every action in every state that can be reached."""
        found: list[list[list[Outcome]]] = []
        again: list[tuple[int, AnyEnv]] = []  # states reached another way
        while len(found) < len(self._copies):
            here, row = self._copies[len(found)], []
            for action in range(int(self._actions.n)):
                after = self._copy(here)
                outcome = self._step(after, action)
                row.append([outcome])
                if outcome.state is not None and outcome.state < len(self._copies):
                    again.append((outcome.state, after))
                elif outcome.state is not None:
                    self._copies.append(after)
            found.append(row)
        for state, other in again:
            self._require_same(state, other, found[state])
        return found

    def _step(self, env: AnyEnv, action: int) -> Outcome:
        """Play an action; a state that was not seen before gets the next number."""
        moved = self._still(env, lambda: env.step(int(self._actions.start) + action), "step")
        obs, reward, terminated, truncated, info = moved
        if truncated:
            raise InputError(
                f"{env} cut an episode short (truncated): time is part of its state; make it "
                "without a time limit, gymnasium.make(…, max_episode_steps=-1)"
            )
        batch = {key: np.asarray([value]) for key, value in info.items() if key == "cost"}
        cost = read_cost(batch, np.ones(1, dtype=np.bool_), None)[0]
        state = None
        if not terminated:
            state = self._number.setdefault(self._key(obs), len(self._number))
        if len(self._number) > MOST_STATES:
            raise InputError(
                f"{env} has more than {MOST_STATES} states; its table would be too large"
            )
        return Outcome(1.0, state, float(reward), cost)

    def _require_same(self, state: int, env: AnyEnv, expected: list[list[Outcome]]) -> None:
        """Refuse observations that are no states: the same one, with another future."""
        for action, (known,) in enumerate(expected):
            found = self._step(self._copy(env), action)
            alike = found.state == known.state and found.reward == known.reward
            if not (alike and (found.cost == known.cost).all()):
                raise InputError(
                    f"{env}: action {int(self._actions.start) + action} after the same observation "
                    f"gave {_said(known)} at one time and {_said(found)} at another: the "
                    "observation is not the whole state, or steps are random; observe what is "
                    "missing, or write the table yourself as a FiniteCMDP"
                )

    def _still(self, env: AnyEnv, act: Callable[[], Any], name: str) -> Any:  # noqa: ANN401
        """Do something that must not draw from the environment's random numbers."""
        before = env.unwrapped.np_random.bit_generator.state
        result = act()
        if env.unwrapped.np_random.bit_generator.state != before:
            raise InputError(
                f"{name} of {env} draws random numbers and it has no table P of probabilities: "
                "they cannot be known exactly, only guessed from samples; write the table yourself "
                "as a FiniteCMDP"
            )
        return result

    def _copy(self, env: AnyEnv) -> AnyEnv:
        try:
            return copy.deepcopy(env)
        except Exception as error:  # whatever a foreign environment raises
            raise InputError(
                f"{env} cannot be copied ({error}), so it cannot be walked through; write its "
                "table yourself as a FiniteCMDP"
            ) from error

    def _key(self, obs: Any) -> bytes:  # noqa: ANN401  whatever the environment observes
        return np.asarray(flatten(self._space, obs)).tobytes()


def _said(outcome: Outcome) -> str:
    """An outcome in words."""
    end = "the end" if outcome.state is None else f"state {outcome.state}"
    return f"{end} with reward {outcome.reward:g} and cost {outcome.cost.tolist()}"
