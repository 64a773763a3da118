"""Where do networks live, and what becomes of what was made on another device?

Weights and optimizer moments are plain tensors and go anywhere. The state of a random generator is
its device's alone: on another device it begins anew, and that is told.
"""

from __future__ import annotations

import hashlib
import re
import warnings

import torch
from torch import Tensor

from constrained_rl.errors import InputError, Notice

DEVICES = "auto, cpu, cuda, cuda:0 (a GPU by its number) or mps"


class DeviceNotice(Notice):
    """What was made on one device goes on on another."""


def choose_device(name: str) -> torch.device:
    """Resolve a device setting; `InputError` for another name, and for a device that is absent."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise InputError(f"device is {name!r}, expected {DEVICES}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    lack = _lack(name)
    if lack:
        raise InputError(f"device is {name!r}, but {lack}; use device=cpu or auto")
    return torch.device(name)


def device_here(name: str) -> str:
    """The device setting of something that was made before, on this machine or on another.

    It stays what it is; where that device is absent, it becomes what auto takes here, with a
    notice.
    """
    lack = _lack(name)
    if not lack:
        return name
    found = choose_device("auto")
    warnings.warn(
        f"this was made with device={name}, but {lack}; it goes on with device={found}",
        DeviceNotice,
        stacklevel=2,
    )
    return str(found)


def _lack(name: str) -> str:
    """Why this machine does not have a device; empty where it has."""
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            return "torch sees no GPU"
        found, number = torch.cuda.device_count(), int(name.partition(":")[2] or 0)
        return "" if number < found else f"torch sees {found} GPU(s), which are counted from 0"
    if name == "mps" and not torch.backends.mps.is_available():
        return "torch sees no Apple GPU"
    return ""


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Put a generator into a saved state; one of another device gives it a seed, with a notice.

    The states of a CPU's, a CUDA and an Apple generator have different lengths. The seed is the
    state's digest: the same state begins the same numbers on every machine without that device.
    """
    if len(state) == len(generator.get_state()):
        generator.set_state(state)
        return
    digest = hashlib.sha256(state.numpy().tobytes()).digest()
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    warnings.warn(
        f"the saved random numbers are of another device than {generator.device.type}: they begin "
        "anew here, so what follows is not what that device would have played",
        DeviceNotice,
        stacklevel=2,
    )
