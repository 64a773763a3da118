"""One thread, property tests that draw the same examples on every machine, undrawn figures."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("tests", max_examples=50, derandomize=True, deadline=None)
settings.load_profile("tests")


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
