"""The reference vectors hold, and the checker that says so can say no."""

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
VECTORS = HERE / "reference_vectors.json"
_spec = importlib.util.spec_from_file_location("check_vectors", HERE / "check_vectors.py")
check_vectors = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_vectors)


@pytest.fixture(scope="module")
def document():
    return json.loads(VECTORS.read_text(encoding="utf-8"))


def changed(document, group, change, case=0):
    """A copy in which the first expected number of a case of `group` went through `change`."""
    copy = json.loads(json.dumps(document))
    node, key = copy[group][case], "expected"
    while not isinstance(node[key], float):
        node, key = node[key], (next(iter(node[key])) if isinstance(node[key], dict) else 0)
    node[key] = change(node[key])
    return copy


def exit_code(tmp_path, document):
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps(document))
    return check_vectors.main(str(path))


def test_the_file_holds_all_groups(document):
    assert set(document) == set(check_vectors.GROUPS)


@pytest.mark.parametrize("group", check_vectors.GROUPS)
def test_every_group_agrees_to_1e_6_in_float64(document, group):
    assert check_vectors.deviations({group: document[group]})[group] <= 1e-6


@pytest.mark.parametrize("group", check_vectors.GROUPS)
@pytest.mark.parametrize("case", [0, -1])
def test_a_changed_expected_number_fails_its_group(tmp_path, document, group, case):
    off = changed(document, group, lambda x: x + 1e-4 * max(1, abs(x)), case)
    assert exit_code(tmp_path, {group: off[group]}) == 1


@pytest.mark.parametrize("group", check_vectors.GROUPS)
def test_nan_as_expected_number_fails_its_group(tmp_path, document, group):
    off = changed(document, group, lambda _: float("nan"))
    assert exit_code(tmp_path, {group: off[group]}) == 1


def test_a_deviation_within_the_tolerance_passes(tmp_path, document):
    off = changed(document, "log_multiplier", lambda x: x + 1e-8)
    assert exit_code(tmp_path, off) == 0


@pytest.mark.parametrize("document", [{"unheard of": []}, {"pid": []}])
def test_an_unknown_or_empty_group_is_an_error_not_a_pass(tmp_path, document):
    with pytest.raises(ValueError, match="group"):
        exit_code(tmp_path, document)


def test_all_groups_are_printed_with_their_verdict(capsys):
    assert check_vectors.main(str(VECTORS)) == 0
    printed = capsys.readouterr().out
    assert all(group in printed for group in check_vectors.GROUPS)
    assert "FAILED" not in printed


@pytest.mark.parametrize(("off", "code", "verdict"), [(0, 0, "ok"), (1, 1, "FAILED")])
def test_the_exit_code_of_the_script_is_the_verdict(
    tmp_path, document, monkeypatch, capsys, off, code, verdict
):
    file = tmp_path / "vectors.json"
    file.write_text(json.dumps({"pid": changed(document, "pid", lambda x: x + off)["pid"]}))
    monkeypatch.setattr(sys, "argv", ["check_vectors.py", str(file)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(HERE / "check_vectors.py"), run_name="__main__")
    assert ended.value.code == code
    assert verdict in capsys.readouterr().out
