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


@pytest.mark.slow
def test_the_enumerable_language_is_trained_and_kept(tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, BENCHMARKS / "enumerable_language.py", "--quick", "--out", out]
    command += ["--runs", tmp_path / "runs"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [run["kl_streams"] for run in found["runs"]] == ["both", "reward"]
    assert all(0.3 < run["share"] < 1 for run in found["runs"])  # 75 % after ten iterations
