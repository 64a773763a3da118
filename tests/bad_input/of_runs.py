"""Bad folders: runs that exist, that are none, that are damaged; saving, plotting, evaluating."""

from pathlib import Path

import numpy as np

import constrained_rl as crl
from constrained_rl.oracle import load_cmdp
from tests.bad_input.case import Case, both, copied_run, files, train, unfinished_run


def damaged(*patterns):
    """A setup that cuts the files of a run short."""

    def damage(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.write_bytes(path.read_bytes()[:-40])

    return damage


def edited(name, old, new):
    """A setup that replaces a text in a file of the run."""

    def edit(folder: Path) -> None:
        path = folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return edit


def mine(folder):
    """Something of the user's where a run is to be made."""
    (folder / "run").mkdir()
    (folder / "run/thesis.tex").write_text("precious")


def without_checkpoints(folder):
    """A run that was killed before its first checkpoint."""
    (folder / "run").mkdir()
    (folder / "run/config.toml").write_text('[env]\nid = "constrained_rl/Detour-v0"\n')
    (folder / "run/metrics.jsonl").write_text("")


def saved_over():
    """An agent is saved into a folder that holds something else."""
    settings = {"env": {"num_envs": 2}, "device": "cpu"}
    crl.ppo("constrained_rl/Detour-v0", **settings).save("run")


EVERY_CHECKPOINT = "run/checkpoints/*/tensors.safetensors"
CASES = (
    Case(
        "folder exists",
        "a run directory that exists",
        train("Sound"),
        ("run exists and is not empty; nothing was changed", "crl resume run"),
        copied_run,
    ),
    Case(
        "folder of something else",
        "an output folder that holds something else",
        train("Sound"),
        ("run exists and is not empty; nothing was changed", "choose another --out"),
        mine,
    ),
    Case(
        "output is a file",
        "an output folder that is a file",
        train("Sound"),
        ("run exists", "choose another --out"),
        files(run="precious"),
    ),
    Case(
        "output below a file",
        "an output folder below a file",
        train("Sound", out="run/a"),
        ("run/a cannot be made", "run is a file", "choose another --out"),
        files(run="precious"),
    ),
    Case(
        "output where nothing can be made",
        "an output folder where the system lets nobody make one",
        train("Sound", out="/proc/run"),
        ("/proc/run cannot be made or written into", "choose another --out"),
    ),
    Case(
        "output behind a broken link",
        "an output folder that is a broken link",
        train("Sound"),
        ("run cannot be made or written into (File exists)", "choose another --out"),
        lambda folder: (folder / "run").symlink_to("nowhere"),
    ),
    Case(
        "output of a long name",
        "an output folder whose name is too long",
        train("Sound", out="a" * 300),
        ("(File name too long); choose another --out",),
    ),
    Case(
        "resume nothing",
        "a run that is not there, to resume",
        ("resume", "nowhere"),
        ("nowhere is not a run directory", "crl train --out"),
    ),
    Case(
        "all damaged",
        "no intact checkpoint",
        ("resume", "run"),
        ("no intact checkpoint in run/checkpoints: 2 found, all damaged", "backup"),
        both(unfinished_run, damaged(EVERY_CHECKPOINT)),
    ),
    Case(
        "config edited wrongly",
        "a run whose config has a wrong key",
        ("resume", "run"),
        ("run/config.toml: 1 problem(s)", "ppo.klip: unknown key"),
        both(unfinished_run, edited("run/config.toml", "clip =", "klip =")),
    ),
    Case(
        "config edited after",
        "a run whose networks were given another size",
        ("resume", "run"),
        (
            "the checkpoint holds another model than the settings describe",
            "net.0.weight (4, 11) for (5, 11)",
            "restore the settings it was made with",
        ),
        both(unfinished_run, edited("run/config.toml", "    4,\n", "    5,\n")),
    ),
    Case(
        "evaluate nothing",
        "a run that is not there, to evaluate",
        ("evaluate", "nowhere"),
        ("nowhere is no folder", "crl train --out"),
    ),
    Case(
        "evaluate too early",
        "a run without a checkpoint, to evaluate",
        ("evaluate", "run"),
        ("run has no checkpoint yet", "crl resume run"),
        without_checkpoints,
    ),
    Case(
        "evaluate damaged policy",
        "a damaged policy, to evaluate",
        ("evaluate", "run"),
        ("run/policy.safetensors is damaged", "delete it"),
        both(copied_run, damaged("run/policy.safetensors")),
    ),
    Case(
        "evaluate one episode",
        "an interval from one episode",
        ("evaluate", "run", "--episodes", "1"),
        ("--episodes", "equal to 2"),
        copied_run,
        said="usage",
    ),
    Case(
        "report nothing",
        "a run that is not there, to report",
        ("report", "nowhere"),
        ("nowhere is not a run directory", "crl train --out"),
    ),
    Case(
        "plot nothing",
        "a run that is not there, to plot",
        ("plot", "nowhere"),
        ("nowhere is not a run directory", "crl train --out"),
    ),
    Case(
        "plot too early",
        "a run without an iteration, to plot",
        ("plot", "run"),
        ("no iteration has finished yet",),
        without_checkpoints,
    ),
    Case(
        "no matplotlib",
        "`crl plot` without matplotlib",
        ("plot", "run"),
        ("matplotlib", "pip install"),
        copied_run,
        missing=("matplotlib",),
    ),
    Case(
        "agent saved over",
        "an agent saved where something else is",
        saved_over,
        ("run is not a checkpoint (thesis.tex)", "nothing was changed"),
        mine,
    ),
    Case(
        "model of no CMDP",
        "a finite CMDP whose file lacks arrays",
        lambda: load_cmdp("mine.npz"),
        ("mine.npz: no array", "np.savez"),
        lambda folder: np.savez(folder / "mine.npz", reward=np.zeros((2, 2))),
    ),
    Case(
        "other number of environments",
        "a run that was given more environments",
        ("resume", "run"),
        ("is int64 (4,), expected int64 (6,)", "the settings it was saved with"),
        both(unfinished_run, edited("run/config.toml", "num_envs = 4", "num_envs = 6")),
    ),
    Case(
        "evaluate no best",
        "the best policy of a run that has none",
        ("evaluate", "run/best"),
        ("run/best is no folder", "its best/"),
        copied_run,
    ),
    Case(
        "plot into a file",
        "a file where a folder for plots belongs",
        ("plot", "run", "--out", "mine.txt"),
        ("mine.txt: File exists", "choose another place"),
        both(copied_run, files(mine_txt="precious")),
    ),
)
