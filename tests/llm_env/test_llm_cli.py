"""The command line of the comparison: one real run, and everything that can be typed wrongly."""

import contextlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from constrained_rl.constraint_config import ConstraintConfig, EMAConfig
from constrained_rl.multiplier_config import GradientConfig
from constrained_rl.settings import read_toml, to_toml
from llm_env.cli import main
from llm_env.comparison import cli
from llm_env.comparison.config import CompareConfig
from llm_env.comparison.methods import methods
from llm_env.comparison.schedule import load_config, tasks
from tests.conftest import save_nothing

pytestmark = pytest.mark.xdist_group("llm_cli")  # its fixtures are made once, in one worker

CRL = Path(sys.executable).with_name("crl")
ITERATIONS = 2
LONG = "align.iterations=24"  # a checkpoint falls on 20
SMALL = [
    "device=cpu",
    "workers=1",
    "world.demonstrations=200",
    "world.pairs=60",
    "world.held_out=20",
    "world.prompts=50",
    "world.evaluation=20",
    "model.hidden=16",
    "model.layers=1",
    "model.heads=2",
    f"align.iterations={ITERATIONS}",
    "align.prompts=4",
    "align.max_new_tokens=12",
    "weights=[0.5]",
    "decoupling=false",
    "limits=[]",
]
NAMES = ["sft", "pid-share", "ppo-share", "pid-mean", "ppo-mean", "static-0.5"]


def start(out):
    """`crl llm compare` in a process of its own, with more iterations."""
    return subprocess.Popen(
        [CRL, "llm", "compare", "--out", str(out), *SMALL, LONG],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and standard output of a comparison that nobody interrupted, its figures not drawn."""
    folder, out = tmp_path_factory.mktemp("comparison") / "whole", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", ["crl", "llm", "compare", "--out", str(folder), *SMALL])
        patch.setattr("matplotlib.figure.Figure.savefig", save_nothing)
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return folder, out.getvalue()


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Folder of one in a process of its own, long enough to be killed behind a checkpoint."""
    folder = tmp_path_factory.mktemp("comparison") / "long"
    process = start(folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return folder


def policies(folder):
    return {
        name: (folder / "runs" / name / "policy/model.safetensors").read_bytes()
        for name in NAMES[1:]
    }


# a comparison


def test_a_comparison_ends_with_a_table_a_report_and_its_numbers(finished):
    folder, out = finished
    assert "static ν = 0.5" in out
    assert "unsafe" in out
    assert "report:" in out
    assert "<html" in (folder / "report.html").read_text()[:500]
    results = json.loads((folder / "results.json").read_text())
    assert [method["name"] for method in results["methods"]] == NAMES
    assert all(
        (folder / task.folder / "time.json").is_file() for task in tasks(load_config(folder))
    )
    assert not [p for p in folder.rglob(".*") if p.is_dir()]  # nothing is left half done
    rows = (folder / "runs/pid-share/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["iteration"] for row in rows] == list(range(1, ITERATIONS + 1))
    assert len(set(policies(folder).values())) == 5  # methods differ


def test_its_models_are_evaluated_on_new_prompts(finished, crl):
    folder, _ = finished
    code, out, _ = crl("evaluate", folder, "--episodes", "20", "--json")
    assert code == 0
    found = json.loads(out)
    assert [row["method"] for row in found["methods"][::2]] == NAMES
    assert {row["mode"] for row in found["methods"]} == {"greedy", "sampled"}
    code, out, _ = crl("evaluate", folder / "runs/pid-share", "--episodes", "20", "--json")
    assert json.loads(out)["methods"] == found["methods"][2:4]  # the same prompts and draws
    code, out, _ = crl("evaluate", folder / "runs/sft", "--episodes", "20")
    assert "20 new prompts, seed 12345" in " ".join(out.split())


def test_evaluating_what_has_not_finished_says_how_to_continue(finished, crl, tmp_path):
    folder, _ = finished
    for name in ("comparison", "config.toml"):
        shutil.copy(folder / name, tmp_path / name)
    code, _, errors = crl("evaluate", tmp_path)
    assert code == 2
    assert "no method has finished yet; continue it: crl resume" in errors


@pytest.mark.parametrize("place", ["runs/nobody", "sft/x"])
def test_evaluating_what_is_no_method_names_those_that_are(finished, crl, place):
    code, _, errors = crl("evaluate", finished[0] / place)
    assert code == 2
    assert f"is no finished method of {finished[0]}; finished are {', '.join(NAMES)}" in " ".join(
        errors.split()
    )


def test_an_emptied_config_is_refused_before_a_worker_starts(finished, crl, tmp_path):
    for name in ("comparison", "config.toml"):
        shutil.copy(finished[0] / name, tmp_path / name)
    (tmp_path / "config.toml").write_text("")
    code, out, errors = crl("resume", tmp_path)
    assert (code, out) == (2, "")
    assert "config.toml: is empty" in errors
    assert sorted(os.listdir(tmp_path)) == ["comparison", "config.toml"]


@pytest.mark.usefixtures("undrawn")
def test_resuming_a_finished_comparison_runs_nothing_and_says_it_again(finished, crl):
    folder, _ = finished
    before = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*")}
    numbers = (folder / "results.json").read_text()
    code, out, _ = crl("resume", folder)
    assert code == 0
    assert "static ν = 0.5" in out
    assert {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*")} == before
    assert (folder / "results.json").read_text() == numbers


def test_a_report_of_a_comparison_is_not_that_of_a_run(crl, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "llm_env.comparison.report.write_comparison_report", lambda folder: folder / "it"
    )
    (tmp_path / "comparison").touch()
    assert crl("report", tmp_path)[:2] == (0, f"wrote {tmp_path / 'it'}\n")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12: with threads
def test_a_stage_that_fails_is_one_message_and_the_others_are_kept(
    finished, crl, tmp_path, monkeypatch
):
    forked = multiprocessing.get_context("fork")  # a worker that has nothing to import
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: forked)
    folder = tmp_path / "failing"
    shutil.copytree(finished[0], folder)
    shutil.rmtree(folder / "runs/static-0.5")
    tree = read_toml(folder / "config.toml")
    tree["align"]["ppo"]["learning_rate"] = 1e38
    (folder / "config.toml").write_text(to_toml(load_config(folder).model_validate(tree)))
    code, _, errors = crl("resume", folder)
    assert code == 2
    assert errors.startswith("error: runs/static-0.5: ")
    assert "NaN or infinite" in errors
    assert "Traceback" not in errors
    kept = [p.name for p in (folder / "runs").iterdir() if not p.name.startswith(".")]
    assert sorted(kept) == sorted(NAMES[:-1])


def children(pid):
    """Processes that a process has started, from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds, process=None):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_killed_comparison_leaves_no_worker_and_resumes_to_the_same_policies(long, crl, tmp_path):
    folder = tmp_path / "killed"
    process = start(folder)
    checkpoint = "runs/.*/checkpoints/00000020"
    wait_for(lambda: any(folder.glob(checkpoint)), 120, process)
    workers = children(process.pid)
    assert workers
    process.send_signal(signal.SIGKILL)
    process.wait(30)  # not for its output: a worker that lives on would hold the pipe open
    try:
        wait_for(lambda: not any(map(alive, workers)), 10)
    finally:
        for worker in filter(alive, workers):
            os.kill(worker, signal.SIGKILL)
        process.communicate()
    left = sorted(p.name for p in (folder / "runs").iterdir())
    assert any(name.startswith(".") for name in left)  # it was in the middle of a run
    assert len(left) < len(NAMES)  # and others had not begun
    time.sleep(0.2)
    assert sorted(p.name for p in (folder / "runs").iterdir()) == left  # nobody writes any more
    code, _, errors = crl("resume", folder)
    assert code == 0, errors
    assert policies(folder) == policies(long)
    for name in NAMES:
        said = (folder / "runs" / name / "evaluation.jsonl").read_text()
        assert said == (long / "runs" / name / "evaluation.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_sigterm_stops_a_comparison_with_a_checkpoint_and_it_resumes_to_the_same_policies(
    long, crl, tmp_path
):
    folder = tmp_path / "stopped"
    process = start(folder)
    wait_for(
        lambda: any(p.stat().st_size for p in folder.glob("runs/.*/metrics.jsonl")), 120, process
    )
    workers = children(process.pid)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors.splitlines()[-1] == f"stopped; continue with: crl resume {folder}"
    assert "Traceback" not in errors
    # one of them is Python's resource tracker, which ends a moment after its parent
    wait_for(lambda: not any(map(alive, workers)), 5)
    (checkpoint,) = folder.glob("runs/.*/checkpoints/*")  # of the iteration it was in
    assert 0 < int(checkpoint.name) < 20
    code, _, errors = crl("resume", folder)
    assert code == 0, errors
    assert policies(folder) == policies(long)


# what can be wrong


def test_an_existing_folder_is_refused_and_left_as_it_was(crl, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, _, errors = crl("llm", "compare", "--out", tmp_path, *SMALL)
    assert code == 2
    assert "not empty; nothing was changed" in errors.replace("\n", " ")
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("algin.iterations=2", "algin: unknown key; did you mean 'align'?"),
        ("align.ppo.lerning_rate=1", "align.ppo.lerning_rate: unknown key; did you mean 'learning"),
        ("align.multiplier.pk=1", "unknown key; did you mean 'kp'?"),
        ("world.demos=2", "world.demos: unknown key; "),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(crl, tmp_path, setting, message):
    code, _, errors = crl("llm", "compare", "--out", tmp_path / "new", setting)
    assert code == 2
    assert message in errors
    assert not (tmp_path / "new").exists()


def test_all_bad_values_are_listed(crl, tmp_path):
    bad = ["align.iterations=0", "world.pairs=many", "device=tpu", "align.limit=nan"]
    code, _, errors = crl("llm", "compare", "--out", tmp_path / "new", *bad)
    assert code == 2
    for text in ("align.iterations: found 0", "world.pairs: found 'many'", "device: found 'tpu'"):
        assert text in errors
    assert "align.limit" in errors
    assert not (tmp_path / "new").exists()


def test_without_a_gpu_cuda_is_refused_before_a_folder_exists(crl, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, errors = crl("llm", "compare", "--out", tmp_path / "new", "device=cuda")
    assert (code, out) == (2, "")
    assert errors.count("error:") == 1
    assert "torch sees no GPU; use device=cpu or auto" in errors
    assert not (tmp_path / "new").exists()


def test_several_limits_are_refused_before_a_folder_exists(crl, tmp_path):
    code, _, errors = crl("llm", "compare", "--out", tmp_path / "new", "align.limit=[0.1, 0.2]")
    assert code == 2
    assert "give one number" in errors
    assert not (tmp_path / "new").exists()


def test_a_config_file_and_overrides_go_together(crl, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "finish", lambda folder: seen.append(load_config(folder)))
    (tmp_path / "my.toml").write_text('seed = 3\ndevice = "cpu"\n[align]\nlimit = 0.1\n')
    arguments = (tmp_path / "my.toml", "align.limit=0.2", "--quick", "--out", tmp_path / "new")
    code, out, _ = crl("llm", "compare", *arguments)
    assert code == 0
    (config,) = seen
    assert (config.seed, config.align.limit, config.align.iterations) == (3, 0.2, 40)
    assert f"{len(methods(config)) - 1} RL runs" in out


def test_a_section_given_in_part_keeps_the_recommended_rest(crl, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "finish", lambda folder: seen.append(load_config(folder)))
    settings = [
        "score.batch_size=8",
        "align.multiplier.kp=7",
        "align.constraint.estimator.kind=ema",
    ]
    code, _, errors = crl("llm", "compare", "--out", tmp_path / "new", *settings)
    assert code == 0, errors
    (config,), usual = seen, CompareConfig()
    assert config.score == usual.score.model_copy(update={"batch_size": 8})
    assert config.align.multiplier == usual.align.multiplier.model_copy(update={"kp": 7})
    assert config.align.constraint == ConstraintConfig(
        transform=usual.align.constraint.transform, estimator=EMAConfig()
    )


def test_another_kind_of_controller_starts_from_its_own_defaults(crl, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "finish", lambda folder: seen.append(load_config(folder)))
    settings = ["align.multiplier.kind=gradient", "align.multiplier.learning_rate=0.5"]
    assert crl("llm", "compare", "--out", tmp_path / "new", *settings)[0] == 0
    assert seen[0].align.multiplier == GradientConfig(learning_rate=0.5)


def test_ctrl_c_answers_with_the_command_that_continues(crl, tmp_path, monkeypatch):
    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("llm_env.comparison.schedule.run_all", interrupted)
    code, _, errors = crl("llm", "compare", "--out", tmp_path / "new", *SMALL)
    assert code == 130
    assert f"continue with: crl resume {tmp_path / 'new'}" in errors


def test_resuming_what_is_no_run_is_refused(crl, tmp_path):
    code, _, errors = crl("resume", tmp_path)
    assert code == 2
    assert "no config.toml" in errors


def test_without_transformers_there_is_an_installation_hint(crl, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, errors = crl("llm", "compare", "--out", tmp_path / "new")
    assert code == 2
    assert "pip install" in errors
    assert not (tmp_path / "new").exists()
