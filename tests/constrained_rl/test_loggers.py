"""Every logger is read back by other code than wrote it; where a package is missing, by a fake."""

import csv
import importlib
import io
import json
import sqlite3
import struct
import sys
import types

import pytest
from rich.console import Console

from constrained_rl import loggers, run
from constrained_rl.checkpoint import write_tensors
from constrained_rl.errors import InputError
from constrained_rl.loggers import CsvLogger, TrackerLogger, require_loggers, run_id
from constrained_rl.logging import JsonlLogger, RichLogger, read_metrics
from tests.constrained_rl.test_run import config_of, policy_bytes

foreign = pytest.mark.filterwarnings("ignore::Warning")


class Scalars:
    """A SummaryWriter that keeps what it is given."""

    made = ()

    def __init__(self, folder, purge_step):
        self.folder, self.purge, self.rows, self.closed = folder, purge_step, [], False
        self.flushed = 0
        Scalars.made = (*Scalars.made, self)

    def add_scalar(self, name, value, step):
        self.rows.append((step, name, value))

    def flush(self):
        self.flushed = len(self.rows)

    def close(self):
        self.closed = True


class Tracker(types.ModuleType):
    """W&B's interface as far as it is used; runs by id."""

    def __init__(self, name):
        super().__init__(name)
        self.asked, self.rows, self.finished = [], [], 0

    def Settings(self, **settings):  # noqa: N802
        return settings

    def init(self, **settings):
        self.asked.append(settings)
        return self

    def log(self, metrics, step):
        self.rows.append((step, metrics))

    def finish(self):
        self.finished += 1


@pytest.fixture
def fakes(monkeypatch):
    """Fake tensorboard, wandb and trackio."""
    Scalars.made = ()
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Scalars
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    trackers = {name: Tracker(name) for name in ("wandb", "trackio")}
    for name, tracker in trackers.items():
        monkeypatch.setitem(sys.modules, name, tracker)
    monkeypatch.setattr(loggers, "find_spec", lambda name: name)
    return trackers


def interrupted(folder, monkeypatch, names, at=5):
    """A run of six iterations, checkpoint after every second, killed in the fifth and resumed."""
    original = RichLogger.log

    def log(self, step, metrics):
        original(self, step, metrics)
        if step == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RichLogger, "log", log)  # the last logger: the others have this iteration
        with pytest.raises(KeyboardInterrupt):
            run.start(config_of(loggers=names), folder)
    assert run.resume(folder)
    return read_metrics(folder / "metrics.jsonl")


# no parameter depends on a logger


def test_deleting_all_loggers_changes_no_parameter(tmp_path, monkeypatch, fakes):
    names = ["csv", "tensorboard", "wandb", "trackio"]
    every = run.start(config_of(loggers=names), tmp_path / "all")
    for logger in (JsonlLogger, RichLogger):
        monkeypatch.setattr(logger, "__init__", lambda *_: None)
        monkeypatch.setattr(logger, "log", lambda *_: None)
        monkeypatch.setattr(logger, "close", lambda *_: None)
    none = run.start(config_of(), tmp_path / "none")
    assert not (none / "metrics.jsonl").exists()
    assert policy_bytes(none) == policy_bytes(every)
    agent = run.Agent(config_of())
    agent.train()
    write_tensors(tmp_path / "policy.safetensors", agent.policy.state_dict())
    assert policy_bytes(tmp_path) == policy_bytes(every)


def test_a_missing_package_is_said_before_a_folder_exists(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"asks for tensorboard.*pip install tensorboard"):
        run.start(config_of(loggers=["csv", "tensorboard"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    require_loggers(["csv"])


def test_an_unknown_logger_is_refused():
    with pytest.raises(InputError, match="loggers"):
        config_of(loggers=["mlflow"])


# CSV


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_holds_the_numbers_of_the_jsonl_file(tmp_path, monkeypatch):
    rows = interrupted(tmp_path / "run", monkeypatch, ["csv"])
    found = read(tmp_path / "run" / "metrics.csv")
    assert [{k: float(v) for k, v in row.items() if v} for row in found] == rows
    assert [int(row["iteration"]) for row in found] == [1, 2, 3, 4, 5, 6]


def test_a_metric_that_appears_later_becomes_a_column(tmp_path):
    logger = CsvLogger(tmp_path / "m.csv", 0)
    logger.log(1, {"iteration": 1, "a": 0.1})
    logger.log(2, {"iteration": 2, "a": 0.2, "b,c": float("inf")})
    logger.log(3, {"iteration": 3})
    logger.close()
    assert (tmp_path / "m.csv").read_text() == (
        'iteration,a,"b,c"\n1,0.1,\n2,0.2,inf\n3,,\n'  # 0.1 + 0.2 need all digits; these do not
    )


def test_a_csv_continues_after_the_iterations_that_stand_without_a_torn_row(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("iteration,a\n1,0.5\n2,0.25\n3,0.12")  # the last was to be 0.125
    logger = CsvLogger(path, 3)
    logger.log(3, {"iteration": 3, "a": 0.125})
    logger.close()
    assert path.read_text() == "iteration,a\n1,0.5\n2,0.25\n3,0.125\n"
    CsvLogger(path, 1).close()
    assert path.read_text() == "iteration,a\n1,0.5\n"


# TensorBoard


def test_tensorboard_is_given_every_metric_at_its_iteration(tmp_path, monkeypatch, fakes):
    rows = interrupted(tmp_path / "run", monkeypatch, ["tensorboard"])
    first, second = Scalars.made
    # the reader drops what the first process wrote from iteration 5 on
    assert (first.purge, second.purge) == (1, 5)
    assert {step for step, _, _ in first.rows} == {1, 2, 3, 4, 5}
    kept = [row for row in first.rows if row[0] < second.purge] + second.rows
    assert kept == [(int(row["iteration"]), name, row[name]) for row in rows for name in row]
    for writer in (first, second):
        assert writer.closed
        assert writer.flushed == len(writer.rows)


@foreign
def test_tensorboard_files_are_read_by_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = interrupted(tmp_path / "run", monkeypatch, ["tensorboard"])
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("entropy", "time/collect", "decisions"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["iteration"], pytest.approx(row[name])) for row in rows]


# W&B and trackio


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_is_given_every_metric_and_a_resumed_run_its_name(
    tmp_path, monkeypatch, fakes, name
):
    monkeypatch.setenv("SECRET", "do not tell")
    rows = interrupted(tmp_path / "run", monkeypatch, [name])
    tracker, identity = fakes[name], run_id(tmp_path / "run")
    assert [step for step, _ in tracker.rows] == [1, 2, 3, 4, 5, 5, 6]
    times = {key for key in rows[0] if key.startswith("time/")}
    assert {k: v for k, v in tracker.rows[4][1].items() if k not in times} == {
        k: v for k, v in tracker.rows[5][1].items() if k not in times
    }
    assert [tracker.rows[i][1] for i in (0, 1, 2, 3, 5, 6)] == rows
    assert tracker.finished == 2
    first, second = tracker.asked
    assert first == second
    assert first["resume"] == "allow"
    assert first["name"] == f"run-{identity}"
    assert first["config"]["ppo"]["horizon"] == 16
    assert first.get("id") == (identity if name == "wandb" else None)
    assert "do not tell" not in json.dumps(first)


def test_two_runs_have_two_names(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert run_id(tmp_path / "a") == run_id(tmp_path / "a") != run_id(tmp_path / "b")


def test_a_tracker_that_does_not_start_is_one_message(tmp_path, fakes, monkeypatch):
    def fails(**_):
        raise RuntimeError("no API key")

    monkeypatch.setattr(fakes["wandb"], "init", fails)
    with pytest.raises(InputError, match=r"wandb does not start: no API key.*WANDB_MODE=offline"):
        TrackerLogger(fakes["wandb"], tmp_path, config_of())


@foreign
def test_an_offline_wandb_run_is_read_from_its_file(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    records = importlib.import_module("wandb.proto.wandb_internal_pb2")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("SECRET", "do-not-tell-this")
    rows = interrupted(tmp_path / "run", monkeypatch, ["wandb"])
    history, ids = {}, set()
    for path in sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")):
        for data in leveldb_records(path.read_bytes()):
            record = records.Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                history[row["_step"]] = {k: v for k, v in row.items() if not k.startswith("_")}
    assert ids == {run_id(tmp_path / "run")}
    assert [history[step] for step in sorted(history)] == rows
    written = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert not [p for p in written if b"do-not-tell-this" in p.read_bytes()]


def leveldb_records(data):
    """Records of a file in LevelDB's log format: blocks of 32 KiB, pieces with a header."""
    place, record = 7, b""
    while place + 7 <= len(data):
        rest = 32768 - place % 32768
        if rest < 7:
            place += rest
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, last piece
            yield record
            record = b""


@foreign
def test_a_trackio_run_is_read_from_its_database(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    folder = importlib.import_module("trackio.utils").TRACKIO_DIR
    rows = interrupted(tmp_path / "run", monkeypatch, ["trackio"])
    query = "select step, metrics from metrics where run_name = ? order by id"
    with sqlite3.connect(folder / "constrained-rl.db") as database:
        found = list(database.execute(query, [f"run-{run_id(tmp_path / 'run')}"]))
    history = {step: json.loads(text) for step, text in found}
    assert [history[step] for step in sorted(history)] == rows


@pytest.mark.parametrize("terminal", [True, False])
def test_a_cost_with_brackets_in_its_name_is_shown_whole(terminal):
    out = io.StringIO()
    logger = RichLogger(1, "run", {}, Console(file=out, force_terminal=terminal, width=80))
    logger.log(1, {"cost/[red]": 1.0})
    logger.close()
    assert "cost/[red]" in out.getvalue()
