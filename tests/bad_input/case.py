"""One bad input: what is wrong, how it is handed in, and what the message has to contain."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DETOUR = "env.id=constrained_rl/Detour-v0"
TINY = (
    "device=cpu",
    "total_steps=32",
    "env.num_envs=4",
    "ppo.horizon=8",
    "ppo.epochs=1",
    "ppo.minibatches=1",
    "network.hidden=[4]",
    "evaluation.every=0",
)
"""settings of a run of one iteration and milliseconds"""


@dataclass(frozen=True)
class Case:
    """A bad input and what has to be said of it."""

    name: str
    wrong: str  # what is wrong, a phrase of the documentation's table
    run: tuple[str, ...] | Callable[[], object]  # arguments of `crl`, or Python in the folder
    expect: tuple[str, ...]  # what was found and what to do, as parts of the message
    setup: Callable[[Path], None] | None = None  # prepares the folder it is run in
    missing: tuple[str, ...] = ()  # packages that are not installed
    seen: Literal["before", "training"] = "before"  # training: the run's folder `run` stays
    said: Literal["error", "usage", "report"] = "error"  # usage: typer's; report: on stdout


def files(**texts: str | bytes) -> Callable[[Path], None]:
    """A setup that writes files; `_` in a name stands for the dot."""

    def write(folder: Path) -> None:
        for name, text in texts.items():
            content = text.encode() if isinstance(text, str) else text
            (folder / name.replace("_", ".")).write_bytes(content)

    return write


def both(*setups: Callable[[Path], None]) -> Callable[[Path], None]:
    """One setup after another."""

    def run(folder: Path) -> None:
        for setup in setups:
            setup(folder)

    return run


def train(env: str, *settings: str, out: str = "run") -> tuple[str, ...]:
    """`crl train` on an environment of `envs.py`, or on one that Gymnasium knows."""
    known = "/" in env or ":" in env or env.endswith("-v1")
    env_id = env if known else f"tests.bad_input.envs:bad/{env}-v0"
    return ("train", *TINY, f"env.id={env_id}", "limit=1", *settings, "--out", out)


@functools.cache
def finished_run() -> Path:
    """A run of two iterations with a checkpoint of each, made once."""
    from constrained_rl.config import RunConfig
    from constrained_rl.run import start
    from constrained_rl.settings import read_layers, validate

    settings = (*TINY, "total_steps=64", "checkpoint.every=1", DETOUR)
    home = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, home)
    folder = Path(home) / "run"
    return start(validate(RunConfig, read_layers(None, settings)[0], "tiny"), folder)


def copied_run(folder: Path) -> None:
    """A finished run as `run/` in the folder."""
    shutil.copytree(finished_run(), folder / "run")


def unfinished_run(folder: Path) -> None:
    """The same, before its last file was written."""
    copied_run(folder)
    (folder / "run/policy.safetensors").unlink()
