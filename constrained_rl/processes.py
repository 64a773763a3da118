"""How do environments in processes of their own start, fail and end (`AsyncVectorEnv`)?

Signals are the parent's: it saves and closes them. An error of one process ends them all. Absent:
restarting a process that ended.
"""

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from constrained_rl.errors import InputError, Notice
from constrained_rl.faults import where_raised

AnyEnv = gymnasium.Env[Any, Any]
AnyVectorEnv = VectorEnv[Any, Any, Any]


class ClosesQuietly(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment of a process: `close_envs` does not reach what it raises as it closes.

    Nor that of the one which Gymnasium makes and closes first, to see the spaces.
    """

    def close(self) -> None:
        """Close; what is raised is a warning."""
        close_env(self.env)


class LeavesSignals:
    """A wrapper for processes of their own, in which signals are left to the parent.

    Ctrl-C reaches every process of a terminal; the parent saves what it can and closes the others.
    A fork also inherits the parent's handler of SIGTERM, by which it could not be ended quietly.
    """

    def __init__(self, in_processes: bool = True) -> None:
        self.parent, self.in_processes = os.getpid(), in_processes

    def __call__(self, env: AnyEnv) -> AnyEnv:
        """Return `env`, which closes quietly; where there are no processes, as it is."""
        if os.getpid() != self.parent:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        wrapped = self.in_processes and isinstance(env, gymnasium.Env)
        return ClosesQuietly(env) if wrapped else env


class ProcessEndedError(InputError):
    """The process of a sub-environment ended by itself, or was ended by somebody else."""


@contextmanager
def of_processes(envs: AnyVectorEnv) -> Iterator[None]:
    """An error ends all processes; their tracebacks are its notes, not warnings."""
    if not isinstance(envs.unwrapped, AsyncVectorEnv):
        yield
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except Exception as error:
            for item in caught:
                error.add_note(str(item.message))
            codes = [process.exitcode for process in envs.unwrapped.processes]
            close_envs(envs)
            if isinstance(error, EOFError | ConnectionError):
                raise ProcessEndedError(
                    f"a process of {envs} has ended (exit codes {codes}; −9 is a kill, often for "
                    "lack of memory). Lower env.num_envs or set env.vectorization=sync; a run "
                    "continues from its last checkpoint with `crl resume`"
                ) from error
            raise
    for item in caught:
        warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)


def close_envs(envs: AnyVectorEnv) -> None:
    """Close; what an environment raises as it closes is a warning: its results are there.

    Processes too, whatever they were doing and whether they are still there.
    """
    inner = envs.unwrapped
    if type(inner) is SyncVectorEnv and not inner.closed:
        for env in inner.envs:  # one that fails does not keep the others open
            close_env(env)
        inner.closed = True
    with _failures_are_warnings():
        _close(envs)
    inner.closed = True  # nobody tries again, not even Python as it ends


def close_env(env: AnyEnv) -> None:
    """Close a single environment; what it raises is a warning."""
    with _failures_are_warnings():
        env.close()


@contextmanager
def _failures_are_warnings() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever an environment raises
        warnings.warn(
            f"closing an environment failed: {where_raised(error)}. Its results are not touched; "
            "repair its close()",
            Notice,
            stacklevel=4,
        )


def _close(envs: AnyVectorEnv) -> None:
    inner = envs.unwrapped
    if not isinstance(inner, AsyncVectorEnv) or inner.closed:
        envs.close()
        return
    idle = inner._state is AsyncState.DEFAULT  # Gymnasium warns and waits for an answer if it isn't
    inner._state = AsyncState.DEFAULT
    try:
        envs.close(terminate=not idle)
    except (EOFError, ConnectionError):
        envs.close(terminate=True)
