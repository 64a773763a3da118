"""Where a result came from: code version, packages, machine, command. Never the environment."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from constrained_rl.checkpoint import write_text

PACKAGES = ("torch", "numpy", "scipy", "gymnasium", "transformers", "pydantic", "safetensors")


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def provenance() -> dict[str, object]:
    """Commit (and whether the tree was changed), versions, platform and command line."""
    status = _git("status", "--porcelain")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "modified": None if status is None else bool(status),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "command": sys.argv,
    }


def write_provenance(folder: Path) -> None:
    """Write `provenance.json`."""
    write_text(folder / "provenance.json", json.dumps(provenance(), indent=2) + "\n")
