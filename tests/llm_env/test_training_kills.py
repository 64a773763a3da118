"""A full disk and killed ranks under `crl llm train`: one message, nothing lost, and it goes on."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors import SafetensorError

from constrained_rl import checkpoint
from constrained_rl.checkpoint import checkpoints
from constrained_rl.settings import to_toml
from llm_env.training import run
from tests.llm_env.ranks import free_port
from tests.llm_env.test_training import config_of, models  # noqa: F401 (a fixture)

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


def written(folder):
    return (folder / "policy" / "model.safetensors").read_bytes()


def fill_disk(monkeypatch, save):
    """From the second call on, a file gets its first half and then there is no space."""
    calls = []

    def full(tensors, path, *arguments, **options):
        calls.append(path)
        save(tensors, path, *arguments, **options)
        if len(calls) > 1:
            os.truncate(path, os.path.getsize(path) // 2)
            raise SafetensorError(FULL)

    return full


def start_by_command(crl, models, folder):  # noqa: F811
    file = folder.with_suffix(".toml")
    file.write_text(to_toml(config_of(models)))
    return crl("llm", "train", file, "--out", folder)


def test_a_disk_that_fills_under_a_checkpoint_keeps_the_last(models, tmp_path, crl, monkeypatch):  # noqa: F811
    folder, whole = tmp_path / "run", run.start(config_of(models), tmp_path / "whole")
    monkeypatch.setattr(checkpoint, "save_file", fill_disk(monkeypatch, checkpoint.save_file))
    code, _, errors = start_by_command(crl, models, folder)
    said = " ".join(errors.split())
    assert code == 2
    assert "Traceback" not in said
    assert "No space left on device; the last good checkpoint is iteration 2." in said
    assert f"continue with: crl resume {folder}" in said
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["00000002"]
    monkeypatch.undo()
    assert crl("resume", folder)[0] == 0
    assert written(folder) == written(whole)


def test_a_disk_that_fills_under_the_export_loses_nothing(models, tmp_path, crl, monkeypatch):  # noqa: F811
    def full(*_, **__):
        raise SafetensorError(FULL)

    folder = tmp_path / "run"
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    code, _, errors = start_by_command(crl, models, folder)
    said = " ".join(errors.split())
    assert code == 2
    assert f"no space to write {folder}: {os.strerror(errno.ENOSPC)}" in said
    assert not [p for p in folder.iterdir() if p.name.startswith((".policy", ".best", "policy"))]
    monkeypatch.undo()
    assert crl("resume", folder)[0] == 0
    assert (folder / "policy" / "model.safetensors").is_file()


def torchrun(*arguments):
    """Start two ranks of `crl`."""
    launcher = [*("--nproc-per-node", "2"), "--master-port", str(free_port()), "-m", "llm_env"]
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, *map(str, arguments)]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables)


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file:
        return [int(child) for child in file.read().split()]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_under_torchrun_ends_the_job_which_resumes_bitwise(models, tmp_path, victim):  # noqa: F811
    file, folder, whole = tmp_path / "config.toml", tmp_path / "run", tmp_path / "whole"
    longer = {"align": {"iterations": 40}, "checkpoint": {"every": 2}, "evaluation": {"every": 0}}
    file.write_text(to_toml(config_of(models, **longer)))
    job = torchrun("llm", "train", file, "--out", folder)
    until = time.monotonic() + 120
    while not checkpoints(folder / "checkpoints") and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(children(job.pid)[victim], signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "SIGKILL" in errors or "lost the others" in errors
    assert not (folder / "policy").exists()
    again = torchrun("resume", folder)
    assert again.communicate(timeout=240) is not None
    assert again.returncode == 0
    uninterrupted = torchrun("llm", "train", file, "--out", whole)
    uninterrupted.communicate(timeout=240)
    assert written(folder) == written(whole)
