"""benchmarks/multipliers.py: what it varies, and how it reads a response."""

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import multiplier_cases
    import multiplier_runs

    return multiplier_cases, multiplier_runs


def test_a_response_is_read_after_its_step_and_on_active_constraints_only(study):
    # Two constraints, the second of price 0. λ₁ peaks at 6 before the step (not counted) and at 3
    # after it: 3 / 2 − 1 = .5. Over the last fifth (2 of 10) λ = (2, .2): error .2 / 2 = .1.
    # J_C₁ / limit: 2, 1.5, 1.2, 1.04, .98 at 2, 4, …, 10: outside ± 5 % last at 6, step at 2 → 4.
    lam = np.array([[6, 0], [1, 0], [1, 0], [3, 0], *[[2, 0]] * 4, *[[2, 0.2]] * 2], dtype=float)
    cost = np.array([[8, 9], [6, 9], [4.8, 9], [4.16, 9], [3.92, 9]], dtype=float)
    found = study[1].response(
        lam, np.arange(2, 11, 2), cost, np.array([4.0, 1.0]), np.array([2.0, 0.0]), start=2
    )
    assert found["overshoot"] == pytest.approx(0.5)
    assert found["error"] == pytest.approx(0.1)
    assert found["settling"] == 4
    # second half: 1.2, 1.04, .98; mean 1.0733, deviations .1267, −.0333, −.0933
    assert found["oscillation"] == pytest.approx(0.0929, abs=1e-4)


def test_a_cost_that_ends_outside_the_band_has_not_settled(study):
    lam, at = np.ones((4, 1)), np.array([2, 4])
    found = study[1].response(lam, at, np.array([[1.0], [1.2]]), np.ones(1), np.ones(1), start=0)
    assert found["settling"] is None


def test_each_condition_changes_one_thing(study):
    cases = study[0]
    runs = {(run.rule, run.condition): run for run in cases.studies(1, 1, ["Detour"], iterations=2)}
    base = runs["scale_free", "as it is"].config
    slow = runs["scale_free", "gain ÷ 10"].config
    assert slow.multiplier.ki == pytest.approx(base.multiplier.ki / 10)
    assert slow.multiplier.kp == base.multiplier.kp
    # λ* of Detour is .3429, so that of rewards × 100 is 34.29
    far = runs["linear", "λ₀ = 10 λ*"].config
    assert far.multiplier.initial == pytest.approx(3.429, abs=1e-3)
    assert runs["log", "λ₀ = 0"].config.multiplier.initial == 1e-3
    paid = runs["scale_free", "rewards × 100"].problem.yardstick.solution.multipliers
    assert paid[0] == pytest.approx(34.29, abs=0.01)
    step = runs["PID", "limit steps down"]
    assert step.step
    assert step.config.limit == (6.0,)
    assert step.problem.yardstick.cmdp.limit.tolist() == [4.0]


def test_the_limit_moves_while_training(study, tmp_path):
    cases, runs = study
    chosen = [
        run
        for run in cases.studies(1, 1, ["Detour"], iterations=4)
        if run.rule == "linear" and run.condition in ("as it is", "limit steps down")
    ]
    still, moved = (runs.play(run) for run in chosen)
    assert still["iterations"] == moved["iterations"] == [4]
    assert still["lambda"] != moved["lambda"]
