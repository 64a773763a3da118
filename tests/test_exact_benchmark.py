"""benchmarks/exact.py on problems of one state, with a few iterations."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "exact.py"


@pytest.fixture
def exact(monkeypatch):
    """The script's module; runs happen in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import exact
    import resumable

    def here(left, code, workers):
        for path, run in left.items():
            yield resumable.play_and_keep(run, path, code)

    monkeypatch.setattr(resumable, "play_all", here)
    return exact


def toll(path, limit=4.0, least=0.0):
    """J_C = 10 · (π(0) + least · π(1)), J_R = 10 · π(0)."""
    np.savez(
        path,
        transition=np.ones((1, 2, 1)),
        reward=np.array([[1.0, 0.0]]),
        cost=np.array([[[1.0, least]]]),
        initial=np.ones(1),
        discount=0.9,
        limit=np.array([limit]),
    )
    return str(path)


def test_json_is_one_object_with_every_rule_against_the_optimum(exact, tmp_path, capsys):
    file = toll(tmp_path / "toll.npz")
    words = ["--problem", file, "--seeds", "1", "--iterations", "2", "--json"]
    assert exact.main([*words, "--runs", str(tmp_path / "runs")]) == 0
    document = json.loads(capsys.readouterr().out)
    problem = document["problems"]["toll"]
    assert [problem["value"], *problem["multipliers"]] == pytest.approx([4.0, 1.0])
    rules = {"scale_free", "PID", "Adam", "linear", "log", "softplus", "static λ*", "best static"}
    assert rules <= document["scores"]["toll"].keys()
    assert document["provenance"]["commit"]
    for run in document["runs"]:
        # J_R = J_C = 10 π(0): above the limit the regret is their distance / |4 − 5|
        assert run["last"]["value"] == pytest.approx(run["last"]["cost"][0])
        assert run["last"]["regret"] == pytest.approx(abs(run["last"]["cost"][0] - 4), rel=1e-4)
        assert run["iterations"] == 2


def test_an_infeasible_file_is_reported_with_its_least_cost(exact, tmp_path, capsys):
    file = toll(tmp_path / "hard.npz", least=0.5)
    words = ["--problem", file, "--seeds", "1", "--iterations", "1", "--json"]
    assert exact.main([*words, "--runs", str(tmp_path / "runs")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["problems"]["hard"]["least_cost"] == pytest.approx([5.0])
    assert document["scores"] == {}
    ends = document["infeasible"]["hard"]
    assert "static λ*" not in ends  # there is no λ*
    assert ends["scale_free"]["cost"][0] >= 5.0


def test_finished_runs_are_not_run_again_unless_the_code_has_changed(exact, tmp_path, monkeypatch):
    import resumable

    runs = tmp_path / "runs"
    words = ["--problem", toll(tmp_path / "toll.npz"), "--seeds", "1", "--iterations", "1"]
    arguments = exact.arguments_of([*words, "--runs", str(runs)])
    jobs = [exact.run_of(job) for job in exact.jobs_of(arguments)[:2]]

    def files():
        return {path: path.stat().st_mtime_ns for path in runs.iterdir()}

    records = exact.finished(jobs, arguments)
    first = files()
    assert len(first) == 2
    assert exact.finished(jobs, arguments) == records
    assert files() == first
    monkeypatch.setattr(resumable, "code_digest", lambda packages: "another")
    any_code = exact.arguments_of([*words, "--runs", str(runs), "--any-code"])
    assert exact.finished(jobs, any_code) == records
    assert files() == first
    shown = exact.arguments_of([*words, "--runs", str(runs), "--kept"])
    with pytest.raises(SystemExit) as nothing:
        exact.finished(jobs, shown)
    assert nothing.value.code == 2
    exact.finished(jobs, arguments)
    assert len(files()) == 4


def test_a_run_that_fails_is_shown_and_counts_as_a_seed_that_missed(
    exact, tmp_path, capsys, monkeypatch
):
    import exact_runs

    def broken(job):
        raise FloatingPointError("policy is NaN")

    monkeypatch.setattr(exact_runs, "play", broken)
    words = ["--problem", toll(tmp_path / "toll.npz"), "--seeds", "1"]
    assert exact.main([*words, "--json", "--runs", str(tmp_path / "runs")]) == 0
    found = capsys.readouterr()
    score = json.loads(found.out)["scores"]["toll"]["PID"]
    assert (score["failed"], score["within"]["value"], score["regret"]) == (1, 0.0, None)
    assert "toll, PID, seed 0 failed: FloatingPointError: policy is NaN" in found.err


def test_every_table_and_the_figure_are_drawn(exact, tmp_path, capsys):
    files = [toll(tmp_path / "toll.npz"), toll(tmp_path / "hard.npz", least=0.5)]
    words = ["--problem", files[0], "--problem", files[1], "--seeds", "1", "--iterations", "1"]
    words += ["--runs", str(tmp_path / "runs"), "--figure", str(tmp_path / "figure")]
    exact.main(words)
    printed = capsys.readouterr().out
    for title in ("The default rule on", "Regret / violation", "Static weights", "no policy can"):
        assert title in printed
    assert (tmp_path / "figure.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--problem", "nowhere.npz"], "nowhere.npz"),
        (["--seeds", "0"], "found '0', expected a whole number ≥ 1"),
        (["--problem", "a/x.npz", "--problem", "b/x.npz"], "--problem names x twice"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(exact, capsys, words, message):
    try:
        code = exact.main(words)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_default_rule_comes_first_and_no_two_runs_are_the_same_seed_of_a_pair(exact):
    import exact_cases

    jobs = exact_cases.table_jobs([], exact_cases.QUICK)
    problems = {job.problem.name for job in jobs if job.problem.origin != "scaled"}
    first = jobs[: exact_cases.QUICK.ours * len(problems)]
    assert {job.algorithm for job in first} == {"scale_free"}
    assert {job.problem.name for job in first} == problems
    keys = [(job.problem.name, job.algorithm, job.seed) for job in jobs]
    assert len(set(keys)) == len(keys)


def record(regret, violation, lam, algorithm="scale_free"):
    """A finished run on a problem of one constraint."""
    exact = {"value": 0.0, "cost": [4.0], "regret": regret, "violation": violation}
    return {
        "problem": "toll",
        "algorithm": algorithm,
        "last": exact,
        "ergodic": exact,
        "multipliers": [lam],
        "time_to_feasibility": 100.0,
        "violation_regret": 0.1,
        "cpu_seconds": 1.0,
    }


def test_scores_of_four_runs_by_hand(exact, tmp_path):
    import exact_cases
    import exact_summary

    problem = exact_cases.from_file(Path(toll(tmp_path / "toll.npz")))  # λ* = 1
    runs = [record(0.01, 0.0, 1.1), record(0.02, 0.04, 1.2), record(0.03, 0.06, 0.8)]
    failed = {"problem": "toll", "algorithm": "scale_free", "failed": "NaN"}
    score = exact_summary.judged(exact_summary.scored([*runs, failed], {"toll": problem}))
    assert score["regret"]["value"] == pytest.approx(0.02)  # of three values none is cut
    assert score["violation"]["value"] == pytest.approx(0.1 / 3)
    assert score["within"]["value"] == 0.5  # 0 and .04 of four
    assert score["multiplier_error"]["value"] == pytest.approx(0.5 / 3)  # .1, .2, .2
    assert (score["runs"], score["failed"], score["settled"]) == (4, 1, 3)
    assert score["targets"] == {
        "regret": True,
        "violation": False,
        "within": False,
        "multiplier_error": True,
    }


def test_the_best_static_weight_is_chosen_by_regret(exact, tmp_path):
    import exact_cases
    import exact_summary

    problem = exact_cases.from_file(Path(toll(tmp_path / "toll.npz")))
    runs = [record(0.5, 0.0, 1.0, "static λ*"), record(0.4, 0.2, 3.0, "static 3 λ*")]
    found = exact_summary.scores_of(problem, [*runs, record(0.1, 0.0, 1.0)])
    assert found["best static"]["chosen"] == "static 3 λ*"
    assert found["best static"]["violation"]["value"] == pytest.approx(0.2)


def test_other_units_are_compared_with_the_plain_runs(exact, tmp_path):
    import exact_cases
    import exact_summary

    problem = exact_cases.from_file(Path(toll(tmp_path / "toll.npz")))
    rewards, costs = exact_cases.scaled(problem)
    assert rewards.yardstick.solution.multipliers == pytest.approx([100.0])
    assert costs.yardstick.cmdp.limit == pytest.approx([0.04])
    plain = [record(regret, 0.0, 1.0) for regret in (0.01, 0.02)]
    worse = [{**record(regret, 0.0, 100.0), "problem": rewards.name} for regret in (0.03, 0.05)]
    alike = [{**record(regret, 0.0, 100.0), "problem": costs.name} for regret in (0.01, 0.02)]
    rows = exact_summary.robustness([problem, rewards, costs], [*plain, *worse, *alike])
    assert [(row["problem"], row["change"]) for row in rows] == [
        ("toll", "rewards × 100"),
        ("toll", "costs × .01"),
    ]
    # every changed run has more regret; of four pairs one is more, one less and two are equal
    assert [row["improvement"]["value"] for row in rows] == [1.0, 0.5]
    assert [row["targets"]["unaltered"] for row in rows] == [False, True]


@pytest.mark.slow
def test_a_killed_table_goes_on_with_the_runs_it_has(tmp_path):
    file = toll(tmp_path / "toll.npz")
    runs = tmp_path / "runs"
    words = [sys.executable, str(SCRIPT), "--problem", file, "--seeds", "1", "--iterations", "4"]
    words += ["--runs", str(runs), "--json"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(runs.glob("*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    kept = {path: path.read_bytes() for path in runs.glob("*.json")}
    done = subprocess.run(words, capture_output=True, check=True)
    document = json.loads(done.stdout)
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert all(score["runs"] == 1 for score in document["scores"]["toll"].values())
