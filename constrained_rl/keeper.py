"""Whose episodes stand in a vector environment? Notices when anybody else resets or steps it.

Training plays in environments that others can reach too: `agent.envs`, or a vector environment that
was handed in. Each collector is told before somebody else acts, and comes back to its own episodes
afterwards. Absent: single sub-environments (`envs.envs[0].step`), which are not watched.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, Protocol

from gymnasium.vector import VectorEnv, VectorWrapper


class Player(Protocol):
    """Whoever has episodes in an environment."""

    def leave(self) -> None:
        """Keep what is needed to come back: somebody else is about to act."""


class Keeper:
    """Knows which player's episodes an environment holds now."""

    def __init__(self) -> None:
        self._holder: weakref.ref[Player] | None = None  # weak: players refer to the environment
        self._playing = False

    @classmethod
    def of(cls, envs: VectorEnv[Any, Any, Any]) -> Keeper:
        """The keeper of `envs`, one for all who play in them."""
        if isinstance(envs.reset, _Watched):
            return envs.reset.keeper
        keeper, layer = cls(), envs
        while True:
            layer.reset = _Watched(keeper, layer.reset)  # type: ignore[method-assign]
            layer.step = _Watched(keeper, layer.step)  # type: ignore[method-assign]
            if not isinstance(layer, VectorWrapper):
                return keeper
            layer = layer.env

    def __deepcopy__(self, memo: dict[int, Any]) -> Keeper:
        twin = memo[id(self)] = Keeper()
        holder = None if self._holder is None else self._holder()
        if holder is not None:
            twin._holder = weakref.ref(copy.deepcopy(holder, memo))
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return Keeper, ()  # pickled: whoever plays in it comes back first

    def holds(self, player: Player) -> bool:
        """Whether the environment stands where `player` left it."""
        return self._holder is not None and self._holder() is player

    def give_to(self, player: Player | None) -> None:
        """Let `player` act from now on, or somebody unknown; whoever held it is told."""
        before = None if self._holder is None else self._holder()
        if before is not None and before is not player:
            before.leave()
        self._holder = None if player is None else weakref.ref(player)

    def forget(self) -> None:
        """The environment no longer stands where anybody left it."""
        self._holder = None

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Act as the holder; one that is interrupted no longer knows where the episodes are."""
        self._playing = True
        try:
            yield
        except BaseException:
            self.give_to(None)
            raise
        finally:
            self._playing = False

    def called(self) -> None:
        """Somebody resets or steps; the holder does so within `playing`."""
        if not self._playing:
            self.give_to(None)


class _Watched:
    """A method of an environment, in its place: its keeper is told of each call."""

    def __init__(self, keeper: Keeper, method: Callable[..., Any]) -> None:
        self.keeper = keeper
        # A bound method would keep the environment alive in a circle with itself.
        self._bound = isinstance(method, MethodType)
        self._function: Callable[..., Any] = method
        if isinstance(method, MethodType):
            self._envs, self._function = weakref.ref(method.__self__), method.__func__

    def __call__(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        self.keeper.called()
        return self._method()(*arguments, **named)

    def _method(self) -> Callable[..., Any]:
        return MethodType(self._function, self._envs()) if self._bound else self._function

    def __reduce__(self) -> tuple[Any, ...]:
        return _Watched, (self.keeper, self._method())  # of a copy: the copy's
