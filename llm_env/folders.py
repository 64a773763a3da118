"""Which command made a folder, and what do `crl resume` and `crl report` do with it?"""

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

    owns: Callable[[Path], bool]
    resume: Callable[[Path], None]
    report: Callable[[Path], None]


def kind_of(folder: Path) -> Kind:
    """What made a folder; where nothing else claims it, a run on an environment."""
    return next((kind for kind in KINDS if kind.owns(folder)), RUN)


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


KINDS = (
    Kind(comparison.is_comparison, comparison.finish, comparison.write_report),
    Kind(rounds.is_rounds, rounds.finish, rounds.write_report),
    Kind(lambda folder: config_names(folder, "policy"), resume_training, report_training),
    Kind(lambda folder: config_names(folder, "task"), resume_fit, report_fit),
    Kind(lambda folder: (folder / "answers").is_dir(), repeat_evaluation, repeat_evaluation),
)
RUN = Kind(lambda _: True, core.resume, core.report)
