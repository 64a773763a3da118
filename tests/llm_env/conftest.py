import sys
import warnings

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


@pytest.fixture(scope="session")
def deepspeed():
    """DeepSpeed and what its engines import when they are made, once instead of in every rank.

    One of its modules compiles a function when it is imported, which takes all of torch's compiler.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("deepspeed.runtime.zero.muon.muon_optimizer")
