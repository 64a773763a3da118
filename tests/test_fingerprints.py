"""benchmarks/fingerprints.py tells a changed result from an equal one."""

import json
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.test_control_benchmark import ROOT


@pytest.fixture
def fingerprints(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import fingerprints

    return fingerprints


def run_folder(folder, weight=1.0, cost=2.0, seconds=3.0):
    folder.mkdir()
    save_file({"w": np.array([weight])}, folder / "policy.safetensors")
    (folder / "metrics.jsonl").write_text(json.dumps({"cost": cost, "time/collect": seconds}))
    return folder


def test_times_and_checkpoints_are_no_part_of_a_fingerprint(fingerprints, tmp_path):
    one, other = run_folder(tmp_path / "one"), run_folder(tmp_path / "other", seconds=4.0)
    (other / "checkpoints").mkdir()
    save_file({"w": np.zeros(1)}, other / "checkpoints/tensors.safetensors")
    assert fingerprints.fingerprint(one) == fingerprints.fingerprint(other)


def test_a_weight_and_a_metric_have_a_hash_each(fingerprints, tmp_path):
    one = fingerprints.fingerprint(run_folder(tmp_path / "one"))
    weight = fingerprints.fingerprint(run_folder(tmp_path / "weight", weight=1.5))
    cost = fingerprints.fingerprint(run_folder(tmp_path / "cost", cost=2.5))
    assert weight["weights"] != one["weights"]
    assert weight["numbers"] == one["numbers"]
    assert cost["weights"] == one["weights"]
    assert cost["numbers"] != one["numbers"]


@pytest.mark.parametrize(
    ("after", "status", "said"),
    [
        ({"a": "1"}, 0, "1 cases equal, 0 different"),
        ({"a": "2"}, 1, "DIFFERENT"),
        ({"b": "1"}, 1, "only in after.json"),
    ],
)
def test_two_files_are_compared(fingerprints, tmp_path, monkeypatch, capsys, after, status, said):
    for name, row in (("before", {"a": "1"}), ("after", after)):
        taken = {case: {"weights": value, "numbers": "0"} for case, value in row.items()}
        (tmp_path / f"{name}.json").write_text(json.dumps({"fingerprints": taken}))
    files = [str(tmp_path / "before.json"), str(tmp_path / "after.json")]
    monkeypatch.setattr(sys, "argv", ["fingerprints.py", "--compare", *files])
    assert fingerprints.main() == status
    assert said in capsys.readouterr().out
