"""A rank that dies, fails or hangs ends the job with an error that says so; nothing is lost."""

import errno
import os
import signal
import time

import pytest
import torch

from constrained_rl import run
from constrained_rl.checkpoint import checkpoints
from constrained_rl.config import CheckpointConfig
from constrained_rl.distributed import World, connect, joined
from constrained_rl.engines import Engines
from constrained_rl.errors import InputError
from constrained_rl.stopping import Stopped, stoppable
from llm_env.collectors import by_model
from tests.llm_env.rank_jobs import CPU, weights
from tests.llm_env.ranks import on_ranks, start_ranks, wait_for
from tests.llm_env.tiny_alignment import align_config, score_model, tiny_parts


def job(folder, misfortune, timeout):
    """Five iterations; during the third, `misfortune(rank)` happens while responses are scored."""
    calls, score = [], by_model(score_model(1))
    with joined(connect(CPU, timeout)) as world:

        def reward(responses):
            calls.append(1)
            if len(calls) == 3:
                misfortune(world.rank)
            return score(responses)

        parts = tiny_parts(align_config(), Engines(world), reward=reward)
        run.drive(parts, 5, folder, CheckpointConfig(every=1))


def die(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def fail(rank):
    if rank == 1:
        raise ZeroDivisionError("this rank's scorer")


def hang(rank):
    if rank == 1:
        time.sleep(3600)


def happen(misfortune, tmp_path, timeout=60.0):
    """Exit codes, messages by rank, and the checkpoints that stand."""
    folder = tmp_path / "run"
    folder.mkdir()
    ranks = start_ranks(job, 2, tmp_path, folder, misfortune, timeout)
    codes = wait_for(ranks, 100)
    errors = {int(p.stem): p.read_text() for p in tmp_path.glob("*.error")}
    return codes, errors, [int(p.name) for p in checkpoints(folder / "checkpoints")]


def test_a_killed_rank_ends_the_other_at_once(tmp_path):
    codes, errors, stand = happen(die, tmp_path, timeout=3600.0)
    assert codes == [1, -signal.SIGKILL]
    assert "RankError: rank 0 of 2 lost the others" in errors[0]
    assert stand[-1] == 2


def test_a_failing_rank_shows_its_traceback_and_ends_the_other(tmp_path):
    codes, errors, _ = happen(fail, tmp_path, timeout=3600.0)
    assert codes == [1, 1]
    assert "ZeroDivisionError: this rank's scorer" in errors[1]
    assert "lost the others" in errors[0]


def test_a_rank_that_hangs_is_waited_for_until_the_time_is_over(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    ranks = start_ranks(job, 2, tmp_path, folder, hang, 5.0)
    ranks[0].join(100)
    assert ranks[0].exitcode == 1
    ranks[1].kill()
    ranks[1].join()
    said = (tmp_path / "0.error").read_text()
    assert "longer than 5 s (distributed.timeout)" in said


def test_a_full_disk_on_the_first_rank_ends_all_with_its_error(tmp_path, monkeypatch):
    def full(root, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(root))

    monkeypatch.setattr(run, "save_checkpoint", full)
    codes, errors, stand = happen(lambda _: None, tmp_path)
    assert codes == [1, 1]
    assert "OSError: [Errno 28] No space left on device" in errors[0]
    assert "RankError: rank 0 failed, and with it the job: OSError: [Errno 28]" in errors[1]
    assert stand == []


def stopped_job(folder):
    """SIGTERM reaches one rank alone, in its second iteration."""
    calls, score = [], by_model(score_model(1))
    with joined(connect(CPU, 60.0)) as world:

        def reward(responses):
            calls.append(1)
            if len(calls) == 2 and world.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return score(responses)

        parts = tiny_parts(align_config(), Engines(world), reward=reward)
        try:
            with stoppable():
                run.drive(parts, 5, folder, CheckpointConfig(every=4))
        except Stopped:
            return parts.iteration, weights(parts)
    return None


def test_a_wish_to_stop_reaches_all_ranks_and_the_last_step_is_kept(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    found = on_ranks(stopped_job, 2, tmp_path, folder)
    assert [iteration for iteration, _ in found] == [2, 2]
    assert [int(p.name) for p in checkpoints(folder / "checkpoints")] == [2]
    parts = tiny_parts(align_config())
    run.restore(parts, folder)
    assert all(torch.equal(a, b) for a, b in zip(weights(parts), found[0][1], strict=True))


@pytest.mark.parametrize("missing", ["MASTER_PORT", "LOCAL_RANK"])
def test_an_incomplete_environment_of_a_launcher_is_named(missing, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv(missing)
    with pytest.raises(InputError, match=rf"WORLD_SIZE is 2, but {missing} is not set"):
        connect(CPU, 1.0)


def test_ranks_that_never_come_are_named_within_the_time(monkeypatch):
    from tests.llm_env.ranks import environment, free_port

    for name, value in environment(0, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"rank 0 of 2 could not join the others .* within 1 s"):
        connect(CPU, 1.0)


def test_one_process_needs_no_process_group(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert connect(CPU, 1.0) == World(timeout=1.0)
    assert not torch.distributed.is_initialized()
