import sys
from pathlib import Path

import pytest

from llm_env import cli


@pytest.fixture
def crl(monkeypatch, capsys):
    """Call the console script in this process: exit code, standard output, standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["crl", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "300")
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    return call


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
