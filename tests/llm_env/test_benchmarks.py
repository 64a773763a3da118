"""The benchmarks run where there is no accelerator."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_the_benchmark_of_an_iteration_runs_at_its_small_size(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu.py", "--small", "--out", tmp_path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("gpu-cpu-")
    assert file.name.endswith("-small.json")
    found = json.loads(file.read_text())
    assert list(found["phases"]) == ["generate", "score", "annotate", "update"]
    for phase in found["phases"].values():
        assert phase["seconds"] > 0
        assert phase["share of arithmetic"] > 0
    assert found["phases"]["generate"]["share of bandwidth"] > 0
