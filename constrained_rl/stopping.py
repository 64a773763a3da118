"""How does a process stop early and keep its work? SIGTERM becomes `Stopped`, at the right moment.

Within `stoppable()` SIGTERM raises `Stopped` at once, as Ctrl-C raises `KeyboardInterrupt`. A loop
that can save its state runs within `finishing_steps()`: there SIGTERM is only noted, and the loop
ends after its step, saves and raises. Signals belong to the process, hence the one request of this
module. Ctrl-C and SIGKILL are not touched; checkpoints are made for them.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Stopped(BaseException):
    """Somebody asked this process to stop; the message says what stands, if it is not obvious."""


@dataclass
class _Request:
    made: bool = False
    at_once: bool = False  # raise in the signal handler


_request = _Request()


def note_sigterm() -> None:
    """Let SIGTERM only be noted until `stoppable()` is entered, which then raises."""
    signal.signal(signal.SIGTERM, _handle)


def _handle(*_: object) -> None:
    _request.made = True
    if _request.at_once:
        _request.at_once = False  # once: a second signal must not break what the first unwinds
        raise Stopped


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM raises `Stopped` within; main thread only. Not to be nested."""
    previous = signal.signal(signal.SIGTERM, _handle)
    try:
        if _request.made:
            raise Stopped
        _request.at_once = True
        yield
    finally:
        _request.at_once = _request.made = False
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def finishing_steps() -> Iterator[Callable[[], bool]]:
    """Give a function that is True once SIGTERM came; the block is not interrupted by it.

    A request that the block did not answer raises when it ends.
    """
    at_once, _request.at_once = _request.at_once, False
    yield lambda: _request.made
    if at_once and _request.made:
        raise Stopped
    _request.at_once = at_once
