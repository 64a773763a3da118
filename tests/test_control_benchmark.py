"""benchmarks/control.py: one iteration of each rule, and what its figures mean."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def control(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import control

    monkeypatch.setattr(control, "EPISODES", 16)
    return control


def test_one_iteration_of_every_rule_makes_a_row(control, monkeypatch, tmp_path, capsys):
    import resumable

    def here(left, code, workers):
        for path, run in left.items():
            yield resumable.play_and_keep(run, path, code)

    monkeypatch.setattr(resumable, "play_all", here)
    small = {"env": {"num_envs": 4}, "ppo": {"epochs": 1}}
    monkeypatch.setattr(control, "PROBLEMS", (replace(control.HAZARD, settings=small),))
    out = tmp_path / "control.json"
    words = ["--seeds", "1", "--iterations", "1", "--runs", str(tmp_path / "runs")]
    assert control.main([*words, "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    assert [row["rule"] for row in document["table"]] == list(control.RULES)
    for run in document["runs"]:
        for policy in (run["last"], run["mean"]):
            cost = policy["cost"][0]
            assert cost["low"] < cost["value"] < cost["high"]
            assert policy["violation"] == pytest.approx(max(cost["value"] / 2 - 1, 0), rel=1e-4)
            assert policy["kept"] == [cost["value"] <= 2.1]
        assert run["last"] == run["mean"]  # of one iteration
        assert len(run["mixture"]) == 1
    assert "PointHazard" in capsys.readouterr().out


def test_a_mixture_plays_every_policy_as_often_on_episodes_of_its_own(control):
    class Played:
        """An agent whose policies cost what they are called."""

        policy = SimpleNamespace(load_state_dict=lambda state: costs.append(state))
        config = SimpleNamespace(seed=0)

        def evaluate(self, episodes, seed):
            asked.append((episodes, seed))
            found = {"cost/a": SimpleNamespace(value=costs[-1])}
            return SimpleNamespace(intervals=lambda: found)

    costs, asked = [], []
    assert control.mixture(Played(), ["a"], [1.0, 6.0]) == [3.5]
    assert [episodes for episodes, _ in asked] == [8, 8]
    assert len({seed for _, seed in asked}) == 2


def test_other_units_are_other_numbers_of_the_same_episodes(control):
    kept = [
        control.play(
            control.Job(problem, "scale_free", 0, {"total_steps": 1, "ppo": {"epochs": 1}})
        )
        for problem in (control.HAZARD, control.SCALED)
    ]
    assert kept[1]["limit"] == [0.02]
    # before the first update both have played the same episodes
    assert kept[1]["violation_regret"] == pytest.approx(kept[0]["violation_regret"])


def test_limits_while_training_are_read_off_the_mean_of_ten_iterations(control):
    # 12 iterations, the first without an episode: means over 2–11 and 3–12 are 5 and 4.2 of 4
    cost = np.array([[np.nan, 12.0, *[4.0] * 8, 6.0, 4.0]])
    found = control.over_training(cost, np.array([4.0]))
    assert found["violation_regret"] == pytest.approx((0.25 + 0.05) / 2)
    assert found["feasible_from"] is None  # not for ten means on end
    settled = control.over_training(np.full((1, 30), 4.0), np.array([4.0]))
    assert settled["feasible_from"] == pytest.approx(10 / 30)


def test_units_are_divided_out(control):
    import control_report

    mean = {"return": {"value": 900.0}, "cost": [{"value": 0.03}], "violation": 0.5}
    run = {
        "problem": "scaled",
        "rule": "scale_free",
        "mean": mean | {"kept": [False]},
        "last": mean | {"kept": [True], "violation": 0.0},
        "mixture": [0.04],
        "limit": [0.02],
        "lambda": [5000.0],
        "violation_regret": 0.1,
        "feasible_from": None,
        "cpu_seconds": 1.0,
    }
    row = control_report.table_of([run], {"scaled": (100.0, 0.01)})[0]
    # 900 / 100, .03 / .01, .02 / .01, and a price of 5000 · .01 / 100
    found = [*row["return"], *row["cost"], *row["limit"], *row["lambda"]]
    assert found == pytest.approx([9.0, 3.0, 2.0, 0.5])
    assert (row["mean"]["within"], row["last"]["within"], row["feasible_from"]) == (0, 1, None)
    expected = ["50.0, 50.0", "0 of 1", "4", "0.0, 0.0", "1 of 1"]
    assert control_report.cells(row)[5:10] == expected


def test_a_failed_run_is_a_row_that_says_so(control):
    import control_report

    run = {"problem": "Room", "rule": "scale_free", "seed": 0, "failed": "NaN"}
    table = control_report.table_of([run], {"Room": (1.0, 1.0)})
    assert control_report.cells(table[0])[:4] == ["Room", "scale_free", "1", "1 failed"]
