"""One process at a time writes into a folder: a lock that the kernel releases when its owner ends.

The lock is on the file `.lock`, which names its owner and is removed by it. Processes that the
owner forks do not hold it, so that none of them keeps a folder whose owner was killed. Needs a
system with flock(2); on network file systems it reaches as far as theirs does.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from constrained_rl.errors import InputError

LOCK = ".lock"

_held: set[int] = set()  # file descriptors; a fork closes its copies


def _let_go() -> None:
    for number in _held:
        os.close(number)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing folder; `InputError` names the process that has it."""
    path = folder / LOCK
    number = _locked(path)
    while not _is(path, number):  # its owner removed the file between opening and locking
        os.close(number)
        number = _locked(path)
    _held.add(number)
    try:
        os.ftruncate(number, 0)
        os.pwrite(number, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        if number in _held:  # a fork that unwinds has closed its copy
            path.unlink(missing_ok=True)
            _held.remove(number)
            os.close(number)


def _locked(path: Path) -> int:
    """A file descriptor of the lock file, locked."""
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}), and a run needs it so that no other "
            "process works in the folder; make the folder writable, or work on a copy"
        ) from error
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(number, 200, 0).decode(errors="replace").strip() or "unknown"
        os.close(number)
        if isinstance(error, BlockingIOError):
            raise InputError(
                f"{path.parent} is in use: another process ({owner}) writes there; nothing was "
                "changed. Wait until it has ended, or end it, or choose another --out"
            ) from error
        raise InputError(
            f"{path.parent} cannot be locked ({error.strerror}), so that two processes could write "
            "into one run; choose an --out on a file system with flock"
        ) from error
    return number


def _is(path: Path, number: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(number))
    except FileNotFoundError:
        return False
