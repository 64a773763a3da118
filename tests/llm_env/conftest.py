from pathlib import Path

import pytest


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made but not drawn: for tests of a report's words."""

    def savefig(figure, to, **_):
        empty = '<svg width="1" height="1"></svg>'
        if isinstance(to, Path):
            to.write_text(empty)
        else:
            to.write(empty)

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
