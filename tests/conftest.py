"""One thread, no GPU unless asked for, the same examples on every machine, undrawn figures."""

import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("tests", max_examples=50, derandomize=True, deadline=None)
settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs unless `-m` names the mark `gpu`: forked tests cannot share one."""
    if not wants_gpu(config.getoption("markexpr")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def wants_gpu(expression: str) -> bool:
    """Whether the `-m` expression asks for the tests marked `gpu`."""
    return re.search(r"(?<!not )\bgpu\b", expression) is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a GPU test pass under another torch, which warns of other things."""
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.filterwarnings("default"))


def save_nothing(figure, to, **_):
    """Stands for `Figure.savefig` where the picture is not looked at."""
    empty = '<svg width="1" height="1"></svg>'
    if isinstance(to, Path):
        to.write_text(empty)
    else:
        to.write(empty)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made but not drawn: for tests of a report's words."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_nothing)
