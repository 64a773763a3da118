"""Which data: files with a format, a weight in the mixture, and readers for every use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from constrained_rl.config import Positive, Section
from llm_env.prompts import Prompt


class DataSource(Section):
    """A file or folder of examples."""

    path: str
    """a file: .jsonl, .jsonl.gz, .jsonl.xz, .parquet, .txt; or a folder of such files"""
    format: Literal["auto", "pku", "hh", "alpaca", "prompts", "messages"] = "auto"
    """what its rows look like; auto: by their fields"""
    weight: Positive = 1.0
    """share of this source in a mixture, before normalisation"""


def read_prompts(sources: Sequence[DataSource]) -> list[Prompt]:
    """Distinct prompts of all sources, in order of first appearance."""
    from pathlib import Path

    from llm_env.calibration.evidence import read_prompts as read

    return [prompt for source in sources for prompt in read(Path(source.path))]


def read_demonstrations(sources: Sequence[DataSource]) -> list[tuple[Prompt, str]]:
    """(prompt, response) pairs of all sources."""
    raise NotImplementedError
