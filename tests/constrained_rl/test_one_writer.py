"""Two processes and one run folder; damaged logs: nothing is lost and one message says what is."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from constrained_rl.errors import InputError, Notice
from constrained_rl.locks import LOCK, sole_writer
from constrained_rl.loggers import read_csv
from constrained_rl.logging import keep_iterations, read_metrics

HOLD = """
import sys, time
from pathlib import Path
from constrained_rl.locks import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    found = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert found.stdout is not None
    assert found.stdout.readline() == "held\n"
    return found


def test_the_second_is_told_of_the_first_and_a_kill_releases(tmp_path: Path) -> None:
    first = holder(tmp_path)
    try:
        with pytest.raises(InputError, match=f"in use: another process .pid {first.pid} on"):
            sole_writer(tmp_path).__enter__()
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    with sole_writer(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"pid {os.getpid()} ")
    with sole_writer(tmp_path):  # and once more: it was released
        pass


def test_within_one_process(tmp_path: Path) -> None:
    with sole_writer(tmp_path), pytest.raises(InputError, match="in use"):
        sole_writer(tmp_path).__enter__()


def test_a_fork_does_not_hold_it(tmp_path: Path) -> None:
    with sole_writer(tmp_path):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
    try:  # released here while the child lives: an environment's process that is left behind
        with sole_writer(tmp_path):
            pass
    finally:
        child.kill()
        child.join()


def log(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"".join(lines))
    return path


ROWS = [json.dumps({"iteration": i, "x": 0.5}).encode() + b"\n" for i in (1, 2, 3)]


@pytest.mark.parametrize("at", [0, 1, 3])
def test_blank_lines_hide_no_rows(tmp_path: Path, at: int) -> None:
    path = log(tmp_path / "metrics.jsonl", [*ROWS[:at], b" \n", *ROWS[at:]])
    assert [row["iteration"] for row in read_metrics(path)] == [1, 2, 3]
    keep_iterations(path, 2)
    assert path.read_bytes() == b"".join(ROWS[:2])


@pytest.mark.parametrize("line", [b"\xff\n", b"5\n", b"[]\n", b'{"iteration": 2, \n', b"[" * 99999])
def test_a_damaged_line_is_named_and_kept(tmp_path: Path, line: bytes) -> None:
    line = line.rstrip() + b"\n"
    path = log(tmp_path / "metrics.jsonl", [ROWS[0], line, *ROWS[1:]])
    with pytest.raises(InputError, match=r"line 2 of .*metrics\.jsonl is no row"):
        keep_iterations(path, 2)
    assert path.read_bytes() == b"".join([ROWS[0], line, *ROWS[1:]])


@pytest.mark.parametrize("cut", [b'{"iteration": 4, "x', b"\0\0\0\0", b"\xff"])
def test_the_last_line_may_be_cut(tmp_path: Path, cut: bytes) -> None:
    path = log(tmp_path / "metrics.jsonl", [*ROWS, cut])
    assert len(read_metrics(path)) == 3


def test_rows_that_are_missing_are_told(tmp_path: Path) -> None:
    path = log(tmp_path / "metrics.jsonl", [ROWS[0], ROWS[2]])
    with pytest.warns(Notice, match="row 2 is of iteration 3, where 2 was expected"):
        keep_iterations(path, 3)
    assert path.read_bytes() == ROWS[0] + ROWS[2]


@pytest.mark.parametrize("row", [b"x,1\n", b"1\n", b"1,2,3\n", b"\xff,1\n", b'"1,2\n3,4\n'])
def test_a_bad_row_of_the_csv(tmp_path: Path, row: bytes) -> None:
    path = log(tmp_path / "metrics.csv", [b"iteration,x\n", row, b"2,.5\n"])
    with pytest.raises(InputError, match=r"metrics\.csv is damaged"):
        read_csv(path)


def test_a_csv_row_cut_by_a_kill(tmp_path: Path) -> None:
    path = log(tmp_path / "metrics.csv", [b"iteration,x\n", b"1,\n", b"2,"])
    assert read_csv(path) == (["iteration", "x"], [{"iteration": "1", "x": ""}])
    assert read_csv(log(tmp_path / "empty.csv", [b""])) == ([], [])
