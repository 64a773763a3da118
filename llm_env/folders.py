"""Which command made a folder, and what do `crl resume`, `report` and `evaluate` do with it?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from constrained_rl import cli as core
from constrained_rl.errors import InputError
from llm_env.comparison import cli as comparison
from llm_env.rounds import cli as rounds


@dataclass(frozen=True)
class Kind:
    """A kind of folder: whether one is of it, and what is done with it."""

    command: str
    owns: Callable[[Path], bool]
    resume: Callable[[Path], None]
    report: Callable[[Path], None]
    evaluation: str = ""
    """what measures its result on fresh prompts, where `crl evaluate` does not"""


def kind_of(folder: Path) -> Kind:
    """What made a folder; where nothing else claims it, a run on an environment.

    Raises:
        InputError: no command made it, or its config was lost.
    """
    found = owner(folder)
    if found is not None:
        return found
    if not (folder / "config.toml").is_file():
        made = ", ".join(kind.command for kind in KINDS)
        raise InputError(
            f"{folder} is not a run directory: it has no config.toml; give a folder that "
            f"`crl train --out` made, or {made}"
        )
    if not config_names(folder, "env"):
        raise InputError(
            f"{folder}/config.toml names no env, policy or task: it was emptied, or is of another "
            "version; restore it"
        )
    return RUN


def refuse_evaluation(folder: Path) -> None:
    """Say what evaluates a folder that is no run on an environment."""
    if (folder / "config.json").is_file():
        raise InputError(
            f"{folder} is a model; evaluate it with: crl llm evaluate {folder} --prompts FILE"
        )
    found = owner(folder)
    if found is not None and found.evaluation:
        raise InputError(f"{folder} was made by {found.command}; {found.evaluation}")


def training_of(folder: Path) -> Path | None:
    """The run of `crl llm train` that a folder is, or whose policy/ or best/ it is."""
    return next((home for home in (folder, folder.parent) if owner(home) is TRAINING), None)


def owner(folder: Path) -> Kind | None:
    """The kind that claims a folder; a run on an environment is claimed by none."""
    return next((kind for kind in KINDS if kind.owns(folder)), None)


def refuse_certificate(folder: Path, prompts: Path | None) -> None:
    """Say what can be certified, where this folder cannot."""
    found = owner(folder)
    if found is not None or (folder / "config.json").is_file():
        what = "a model" if found is None else f"made by {found.command}"
        raise InputError(
            f"{folder} is {what}; certificates are for runs of `crl train` and `crl llm train`, "
            "whose limits and costs their configs tell"
        )
    if prompts is not None:
        raise InputError(
            f"--prompts is for language models, but {folder} is a run on an environment"
        )


def config_names(folder: Path, key: str) -> bool:
    """Whether a folder's config has a top-level key."""
    from constrained_rl.settings import read_toml

    path = folder / "config.toml"
    return path.is_file() and key in read_toml(path)


def resume_training(folder: Path) -> None:
    """Continue what `crl llm train` began."""
    from llm_env.training.run import resume

    core.resume_by(resume, folder)


def report_training(folder: Path) -> None:
    """Write report.html of what `crl llm train` began."""
    from llm_env.training.report import write_training_report

    print(f"wrote {write_training_report(folder)}")


def resume_fit(folder: Path) -> None:
    """Continue what `crl llm sft` or `crl llm score` began."""
    from llm_env.fitting.run import resume

    core.resume_by(resume, folder)


def report_fit(folder: Path) -> None:
    """Fits are reported by their files."""
    raise InputError(
        f"{folder} is a fit, which has no report: its losses are in metrics.jsonl, what it "
        "reaches on held-out rows in accuracy.json"
    )


def repeat_evaluation(folder: Path) -> None:
    """Evaluations are continued by the command that began them."""
    raise InputError(
        f"{folder} was made by crl llm evaluate or arena; give that command again with --out "
        f"{folder}: what lies there is not made again"
    )


TRAINING = Kind(
    "crl llm train",
    lambda folder: config_names(folder, "policy"),
    resume_training,
    report_training,
    "its models are policy and best in it: crl llm evaluate FOLDER --prompts FILE",
)
KINDS = (
    Kind("crl llm compare", comparison.is_comparison, comparison.finish, comparison.write_report),
    Kind(
        "crl llm rounds",
        rounds.is_rounds,
        rounds.finish,
        rounds.write_report,
        "its models are rounds/<k>/policy in it: crl llm evaluate FOLDER --prompts FILE",
    ),
    TRAINING,
    Kind(
        "crl llm sft or score",
        lambda folder: config_names(folder, "task"),
        resume_fit,
        report_fit,
        "what it reaches on held-out rows is in accuracy.json",
    ),
    Kind(
        "crl llm evaluate or arena",
        lambda folder: (folder / "answers").is_dir(),
        repeat_evaluation,
        repeat_evaluation,
        "its results are in results.json and report.html",
    ),
)
RUN = Kind("crl train", lambda _: True, core.resume, core.report)
