"""Mistakes in given code against mistakes of ours."""

import sys

import pytest

from constrained_rl.cli import run_cli
from constrained_rl.faults import fault_in_given_code
from llm_env.comparison import cli as comparison


def caught(function):
    try:
        function()
    except Exception as error:
        return fault_in_given_code(error)


def test_a_mistake_in_given_code_is_named_with_its_place():
    assert caught(lambda: 1 / 0) == (
        f"{__file__}, line {caught.__code__.co_firstlineno + 8}, in <lambda> raised "
        "ZeroDivisionError: division by zero"
    )


def test_a_mistake_below_our_own_code_is_ours_and_keeps_its_traceback(monkeypatch):
    assert caught(lambda: comparison.is_comparison(3)) is None
    monkeypatch.setattr(sys, "argv", ["crl"])
    with pytest.raises(TypeError, match="unsupported operand"):
        run_cli(lambda: comparison.is_comparison(3))


def test_a_mistake_in_a_process_is_found_in_the_traceback_that_it_sent():
    error = KeyError("speed")
    error.add_note('File "/home/me/my_env.py", line 7, in step\n    return info["speed"]')
    assert (
        fault_in_given_code(error) == "/home/me/my_env.py, line 7, in step raised KeyError: 'speed'"
    )
