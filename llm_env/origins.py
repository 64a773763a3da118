"""Which run or fit left the model that lies in a folder, and with which config?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from constrained_rl.settings import read_toml

MADE = ("policy", "best", "model")
"""folders in which runs and fits leave a model: RUN/policy, RUN/rounds/1/policy, FIT/model"""


def config_of_maker(folder: str | Path) -> dict[str, Any] | None:
    """The config of the run or fit that left a model in a folder; None where there is none."""
    path = Path(folder).resolve()
    for home in (path.parent, *path.parents[2:3]):
        if path.name in MADE and (home / "config.toml").is_file():
            return read_toml(home / "config.toml")
    return None
