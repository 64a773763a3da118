"""A folder of weights in Hugging Face format, looked at before anything is made of it.

Tensors are found by name in one file or in shards with an index, as safetensors or as older
`pytorch_model.bin` (read without unpickling code). A trunk is loaded only when every one of its
weights is there: transformers fills missing ones with random numbers and a warning.
Absent: downloads, quantised weights.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from constrained_rl.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SINGLE = ("model.safetensors", "pytorch_model.bin")
UNREADABLE = (
    SafetensorError,
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    EOFError,
    pickle.PickleError,
)


def damaged(folder: Path, error: object) -> InputError:
    """What is said of a folder whose files cannot be read to their end."""
    return InputError(
        f"{folder} is damaged ({error}); copy or download it again, or save it again with "
        "save_pretrained"
    )


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file of a model's folder."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise damaged(path.parent, f"{path.name}: {error}") from error
    if not isinstance(found, dict):
        raise damaged(path.parent, f"{path.name} holds no object")
    return found


def tensor_places(folder: Path) -> dict[str, Path]:
    """File of every tensor, by name; {} where the folder holds no weights.

    Raises:
        InputError: a file is cut short, or a shard or one of its tensors is missing.
    """
    for name in SINGLE:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _indexed(folder, read_json(index))
        if (folder / name).is_file():
            return dict.fromkeys(_names(folder / name), folder / name)
    return {}


def read_tensors(places: Mapping[str, Path], names: list[str]) -> dict[str, Tensor]:
    """Some tensors by name, on the CPU."""
    found: dict[str, Tensor] = {}
    for path in sorted({places[name] for name in names}):
        here = [name for name in names if places[name] == path]
        try:
            if path.suffix == ".safetensors":
                with safe_open(str(path), framework="pt") as file:
                    found |= {name: file.get_tensor(name) for name in here}
            else:
                state = _unpickled(path)
                found |= {name: state[name].clone() for name in here}
        except UNREADABLE as error:
            raise damaged(path.parent, f"{path.name}: {error}") from error
    return found


def load_backbone(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The transformer trunk of a folder, whatever head lies beside it.

    Args:
        folder: config.json and weights.
        dtype: of the weights; default: as saved.
    """
    from transformers import AutoModel

    return load_whole(AutoModel, folder, dtype="auto" if dtype is None else dtype)


def load_whole(auto: Any, folder: Path, **options: object) -> PreTrainedModel:  # noqa: ANN401
    """A model of which every weight comes from the folder.

    Args:
        auto: a class of transformers with `from_pretrained`.
        folder: config.json and weights.
        options: passed on, as dtype and attn_implementation.

    Raises:
        InputError: a file is damaged, a weight is missing or has another shape than the config
            says.
    """
    try:
        with quiet_transformers():
            model, report = auto.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,  # without it transformers asks, and waits for an answer
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below with both shapes
                **options,
            )
    except UNREADABLE as error:
        raise damaged(folder, error) from error
    # a mismatch is (name, shape in the file, shape in the model)
    mismatched = sorted(report["mismatched_keys"], key=lambda found: str(found[0]))
    shapes = [f"{name} is {tuple(a)}, not {tuple(b)}" for name, a, b in mismatched]
    if shapes:
        raise InputError(
            f"the weights in {folder} do not have the shapes that its config.json says: "
            f"{_some(shapes)}; they belong to another config"
        )
    if report["missing_keys"]:
        raise InputError(
            f"{folder} lacks weights of its {type(model).__name__}: "
            f"{_some(sorted(report['missing_keys']))}; copy or download it again"
        )
    whole: PreTrainedModel = model
    return whole


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no report of the heads that a trunk does not have."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _indexed(folder: Path, index: dict[str, Any]) -> dict[str, Path]:
    """File of every tensor of an index, each shard looked into."""
    places = {name: folder / str(file) for name, file in dict(index.get("weight_map", {})).items()}
    for path in sorted(set(places.values())):
        if not path.is_file():
            raise damaged(folder, f"the index names {path.name}, which is missing")
        inside = set(_names(path))
        lost = [name for name, place in places.items() if place == path and name not in inside]
        if lost:
            raise damaged(folder, f"{path.name} lacks {_some(lost)}")
    return places


def _names(path: Path) -> list[str]:
    """Names of the tensors in a file; a safetensors file cut short fails here."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                return list(file.keys())
        return list(_unpickled(path))
    except UNREADABLE as error:
        raise damaged(path.parent, f"{path.name}: {error}") from error


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Tensors of an older file; nothing else may be in it."""
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state


def _some(items: list[str], most: int = 3) -> str:
    """The first few of a list."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if items[most:] else "")
