"""GPUs are hidden from the tests unless `-m` asks for the tests marked `gpu`."""

import os
import subprocess
import sys
import warnings

import pytest

from tests.conftest import wants_gpu


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("gpu", True),
        ("(gpu) and slow", True),
        ("", False),
        ("not slow", False),
        ("slow and not gpu", False),
    ],
)
def test_gpus_are_seen_only_where_asked_for(expression, wanted):
    assert wants_gpu(expression) is wanted


def test_the_default_tests_see_no_gpu(request):
    if wants_gpu(request.config.getoption("markexpr")):
        pytest.skip("GPUs were asked for")
    code = "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "''"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.gpu
def test_a_warning_is_no_error_in_a_gpu_test():
    warnings.warn("of another torch", UserWarning, stacklevel=1)
