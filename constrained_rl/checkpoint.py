"""Checkpoints: a nested state as safetensors + JSON, atomic on disk, read without pickle.

A checkpoint is a folder `<iteration>/` with `tensors.safetensors` and `state.json`. It is written
beside its final name, flushed, and renamed: a reader sees all of it or nothing. `state.json` holds
the tensor file's SHA-256, so a truncated or damaged checkpoint is recognised and the one before it
is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from constrained_rl.errors import InputError

TENSOR = "$tensor"


def pack(state: object, tensors: dict[str, Tensor], path: str = "") -> object:
    """Replace every tensor in a nested state by a reference into `tensors`."""
    if isinstance(state, Tensor):
        tensors[path] = state.detach().cpu().clone().contiguous()
        return {TENSOR: path}
    if isinstance(state, Mapping):
        # JSON knows only string keys, and optimizers number their parameters: keep the type.
        return {
            "$keys": ["int" if isinstance(k, int) else "str" for k in state],
            "$items": [[str(k), pack(v, tensors, f"{path}/{k}")] for k, v in state.items()],
        }
    if isinstance(state, list | tuple):
        return [pack(v, tensors, f"{path}/{i}") for i, v in enumerate(state)]
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(f"a checkpoint cannot hold {type(state).__name__} at {path}")


def unpack(packed: object, tensors: Mapping[str, Tensor]) -> object:
    """Undo `pack`."""
    if isinstance(packed, dict):
        if TENSOR in packed:
            return tensors[packed[TENSOR]]
        kinds = packed["$keys"]
        return {
            (int(key) if kind == "int" else key): unpack(value, tensors)
            for kind, (key, value) in zip(kinds, packed["$items"], strict=True)
        }
    if isinstance(packed, list):
        return [unpack(value, tensors) for value in packed]
    return packed


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: temporary name, flush to disk, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically; equal tensors give equal bytes."""
    temporary = path.with_name(f".{path.name}.tmp")
    plain = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    save_file(plain, temporary)
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def save_state(folder: Path, state: Mapping[str, object]) -> None:
    """Write a nested state as a folder, atomically; `InputError` if it holds anything else."""
    foreign = {p.name for p in folder.glob("*")} - {"state.json", "tensors.safetensors"}
    if foreign or folder.is_file():
        raise InputError(
            f"{folder} is not a checkpoint ({', '.join(sorted(foreign)[:3]) or 'a file'}); "
            "nothing was changed. Give a new folder, or one that was saved to before"
        )
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    packed = pack(state, tensors)
    write_tensors(temporary / "tensors.safetensors", tensors)
    digest = _digest(temporary / "tensors.safetensors")
    write_text(temporary / "state.json", json.dumps({"sha256": digest, "state": packed}))
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def load_state(folder: Path) -> dict[str, object]:
    """Read what `save_state` wrote; `InputError` when it is damaged."""
    try:
        document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        found = _digest(folder / "tensors.safetensors")
        if found != document["sha256"]:
            raise ValueError(f"tensors.safetensors has SHA-256 {found[:12]}…, not the one recorded")
        state = unpack(document["state"], load_file(folder / "tensors.safetensors"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"checkpoint {folder} is not intact: {error}") from error
    assert isinstance(state, dict)
    return state


def save_checkpoint(root: Path, iteration: int, state: Mapping[str, object], keep: int) -> None:
    """Write `root/<iteration>` and delete all but the newest `keep`."""
    root.mkdir(parents=True, exist_ok=True)
    save_state(root / f"{iteration:08d}", state)
    for old in checkpoints(root)[:-keep]:
        shutil.rmtree(old)


def checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders, oldest first; unfinished ones are hidden and not listed."""
    return sorted(p for p in root.glob("[0-9]*") if p.is_dir())


def load_latest(root: Path) -> dict[str, object] | None:
    """State of the newest intact checkpoint; `None` if none was ever written.

    Damaged ones are passed over with a warning; `InputError` when all of them are damaged.
    """
    found = checkpoints(root)
    for folder in reversed(found):
        try:
            return load_state(folder)
        except InputError as error:
            warnings.warn(f"{error}; falling back to the one before it", stacklevel=2)
    if found:
        raise InputError(
            f"no intact checkpoint in {root}: {len(found)} found, all damaged; restore one from a "
            "backup, or delete the folder to restart the run from its beginning"
        )
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
