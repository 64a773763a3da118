"""Kinds of harm that random_kills.py adds to kills: a second writer, a damaged log, a full disk."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kill_phases import Phase, control

from constrained_rl.errors import InputError

PR_SET_PDEATHSIG = 1  # prctl(2)
PATIENCE = 10.0  # seconds that what continues a killed process waits for its rival to end


def harmed() -> list[Phase]:
    """A run on an environment, with each kind of harm."""
    base = control("constrained_rl/PointHazard-v0")
    kinds = {"two writers": two_writers, "damaged log": damaged_log, "full disk": full_disk}
    return [
        replace(base, name=name, group="harm", work=work(base.work)) for name, work in kinds.items()
    ]


def two_writers(work: Callable[[Path], None]) -> Callable[[Path], None]:
    """Work beside a rival that wants the same folder: each waits while the other has it."""

    def patiently(folder: Path) -> None:
        end = time.monotonic() + PATIENCE
        while not (folder / "policy.safetensors").exists():
            try:
                work(folder)
            except InputError as error:
                if "process" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def both(folder: Path) -> None:
        rival = os.fork()
        if not rival:
            code = 1
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # both are killed together
            try:
                patiently(folder)
                code = 0
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
            finally:
                os._exit(code)
        patiently(folder)
        _, status = os.waitpid(rival, 0)
        if status:
            raise RuntimeError(f"the second writer of {folder} ended with status {status}")

    return both


def damaged_log(work: Callable[[Path], None]) -> Callable[[Path], None]:
    """Before it continues, a line of the log is damaged; refused, the log is put right again."""

    def damaged(folder: Path) -> None:
        log = folder / "metrics.jsonl"
        lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
        if len(lines) < 3:
            work(folder)
            return
        whole, at = b"".join(lines), random.Random(len(lines)).randrange(len(lines) - 1)
        harm = random.Random(at).choice([b"\n", b"[1, 2]\n", b"\xff\xfe\n", lines[at][:9] + b"\n"])
        log.write_bytes(b"".join([*lines[:at], harm, *lines[at:]]))
        try:
            work(folder)
        except InputError as error:
            if f"line {at + 1}" not in str(error):
                raise
            log.write_bytes(whole)
            work(folder)

    return damaged


def full_disk(work: Callable[[Path], None]) -> Callable[[Path], None]:
    """Files can grow to a random size at first (`RLIMIT_FSIZE`); then there is room again."""

    def full(folder: Path) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        room = random.Random(os.getpid()).randrange(500, 40_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            work(folder)
        except (OSError, InputError):
            pass
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
        if not (folder / "policy.safetensors").exists():
            work(folder)

    return full
