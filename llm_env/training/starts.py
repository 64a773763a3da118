"""Are the models that a run began with still what they were? Digests at the start, and on resuming.

A checkpoint holds what training changes. Frozen weights under adapters, the KL reference and score
models come from their folders again, and a folder can be overwritten. Absent: tokenizers' other
files; services, which say nothing of their weights.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from constrained_rl.checkpoint import write_text
from constrained_rl.errors import InputError
from llm_env.training.config import TrainConfig

FILE = "models.json"
PLACES, BYTES = 64, 4096
"""where a file of weights is read, and how much there: a model of gigabytes takes milliseconds"""


def record(config: TrainConfig, folder: Path) -> None:
    """Write down the models of a run that begins."""
    found = {path: digest(Path(path)) for path in model_folders(config)}
    write_text(folder / FILE, json.dumps(found, indent=2))


def compare(config: TrainConfig, folder: Path) -> None:
    """`InputError` where a model has changed since the start; without a record nothing is said."""
    if not (folder / FILE).is_file():
        return
    began = json.loads((folder / FILE).read_text(encoding="utf-8"))
    for path in model_folders(config):
        if Path(path).is_dir() and began.get(path) != digest(Path(path)):
            raise InputError(
                f"{path} is not the model that {folder} began with: its weights, config or "
                "tokenizer have changed since. Put back what was there, or start a new run"
            )


def model_folders(config: TrainConfig) -> list[str]:
    """Folders that a resumed run reads weights from."""
    trunk = [] if config.critic.trunk in ("policy", "shared", "reward") else [config.critic.trunk]
    scores = [source.path for source in (config.reward, *config.costs.values())]
    return sorted({config.policy.path, *trunk, *(path for path in scores if path is not None)})


def digest(folder: Path) -> str:
    """SHA-256 of config and tokenizer, and of each file of weights its size and samples of it."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        size = path.stat().st_size
        if path.name in ("config.json", "tokenizer.json"):
            found.update(path.read_bytes())
        elif path.suffix in (".safetensors", ".bin"):
            found.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                for place in range(0, size, max(1, size // PLACES)):
                    file.seek(place)
                    found.update(file.read(BYTES))
    return found.hexdigest()
