"""Checkpoints: a nested state as safetensors + JSON, atomic on disk, read without pickle.

A checkpoint is a folder `<iteration>/` with `tensors.safetensors` and `state.json`. It is written
beside its final name, flushed, and renamed: a reader sees all of it or nothing. `state.json` holds
a SHA-256 of both, so a truncated or damaged checkpoint is recognised and the one before it is used.
A write that fails, on a full disk say, removes what it began and leaves everything else as it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from constrained_rl.errors import InputError, Notice

TENSOR = "$tensor"


class CheckpointWarning(Notice):
    """A damaged checkpoint was passed over."""


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


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place when the block ends without an error.

    The file is flushed to disk before it is renamed, and removed when writing it fails.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        temporary.unlink(missing_ok=True)
        raise (_as_os_error(error, path) or error) from error


def _as_os_error(error: Exception, path: Path) -> OSError | None:
    """What the operating system said, with the path; safetensors hides it in a message."""
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, str(path))
    code = re.search(r"\(os error (\d+)\)", str(error))
    if not isinstance(error, SafetensorError) or code is None:
        return None
    return OSError(int(code[1]), os.strerror(int(code[1])), str(path))


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: temporary name, flush to disk, rename."""
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically; equal tensors give equal bytes."""
    plain = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    with _replacing(path) as temporary:
        save_file(plain, temporary)


def save_state(folder: Path, state: Mapping[str, object]) -> None:
    """Write a nested state as a folder, atomically; `InputError` if it holds anything else.

    What was there is moved aside until the new state has its place, and read if a kill comes
    between the two.
    """
    foreign = {p.name for p in folder.glob("*")} - {"state.json", "tensors.safetensors"}
    if foreign or folder.is_file():
        raise InputError(
            f"{folder} is not a checkpoint ({', '.join(sorted(foreign)[:3]) or 'a file'}); "
            "nothing was changed. Give a new folder, or one that was saved to before"
        )
    tensors: dict[str, Tensor] = {}
    packed = json.dumps(pack(state, tensors))
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_tensors(temporary / "tensors.safetensors", tensors)
        digest = _digest(temporary / "tensors.safetensors", packed)
        write_text(temporary / "state.json", f'{{"sha256": "{digest}", "state": {packed}}}')
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    aside = _aside(folder)
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    temporary.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def load_state(folder: Path) -> dict[str, object]:
    """Read what `save_state` wrote; `InputError` when it is damaged."""
    if not folder.exists() and _aside(folder).exists():  # killed while it was replaced
        folder = _aside(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder; give a run directory (crl train --out), its best/, or what "
            "Agent.save wrote"
        )
    try:
        document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        packed = document["state"]
        found = _digest(folder / "tensors.safetensors", json.dumps(packed))
        if found != document["sha256"]:
            raise ValueError(f"its files have SHA-256 {found[:12]}…, not the one recorded")
        state = unpack(packed, load_file(folder / "tensors.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = str(error) if str(error).strip() else type(error).__name__
        raise InputError(f"checkpoint {folder} is not intact: {what}") from error
    assert isinstance(state, dict)
    return state


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def save_checkpoint(root: Path, iteration: int, state: Mapping[str, object], keep: int) -> None:
    """Write `root/<iteration>` and delete all but the newest `keep`, and what kills left behind."""
    root.mkdir(parents=True, exist_ok=True)
    save_state(root / f"{iteration:08d}", state)
    for old in checkpoints(root)[:-keep]:
        old.rename(_aside(old))  # a kill while it is deleted leaves nothing that looks like one
    for rest in root.glob(".[0-9]*"):
        shutil.rmtree(rest, ignore_errors=True)


def checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders, oldest first; unfinished ones are hidden and not listed."""
    return sorted(p for p in root.glob("[0-9]*") if p.is_dir())


def load_latest(root: Path) -> dict[str, object] | None:
    """State of the newest intact checkpoint; `None` if none was ever written.

    Damaged ones are passed over with a warning; `InputError` when all of them are damaged.
    """
    found = checkpoints(root)
    damaged: list[str] = []
    for folder in reversed(found):
        try:
            state = load_state(folder)
        except InputError as error:
            damaged.append(str(error))
            continue
        for text in damaged:
            warnings.warn(
                f"{text}; falling back to the one before it", CheckpointWarning, stacklevel=2
            )
        return state
    if found:
        raise InputError(
            f"no intact checkpoint in {root}: {len(found)} found, all damaged; restore one from a "
            "backup, or delete the folder to restart the run from its beginning"
        )
    return None


def out_of_space(error: Exception, folder: Path, continued: str | None = None) -> InputError | None:
    """The message of a run in `folder` that could not write for lack of space; else `None`.

    `continued` says what goes on afterwards; default: `how_to_continue`.
    """
    found = error if isinstance(error, OSError) else _as_os_error(error, folder)
    if found is None or found.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    saved = checkpoints(folder / "checkpoints")
    stands = "what was finished before is intact"
    if saved:
        stands = f"the last good checkpoint is iteration {int(saved[-1].name)}"
    return InputError(
        f"no space to write {found.filename or folder}: {found.strerror}; {stands}. "
        f"Free space, then {continued or how_to_continue(folder)}"
    )


def how_to_continue(folder: Path) -> str:
    """The command that continues a run; before its config was written there is none."""
    if (folder / "config.toml").is_file():
        return f"continue with: crl resume {folder}"
    return "give the same command again: the run had not begun"


def _digest(path: Path, text: str) -> str:
    """SHA-256 of a file followed by a text."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(text.encode())
    return digest.hexdigest()
