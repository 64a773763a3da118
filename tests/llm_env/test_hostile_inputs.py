"""Services, rows and names that nobody here wrote: text stays text, and no secret is written."""

from __future__ import annotations

import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest

from constrained_rl.errors import InputError
from constrained_rl.finite import FiniteCMDP, load_cmdp
from constrained_rl.oracle import solve
from constrained_rl.page import inline_svg
from constrained_rl.settings import parse_override, read_toml, validate
from llm_env.data_sources import DataSource, read_prompts
from llm_env.http_json import Patience, checked_address, post_json
from llm_env.jsonl import DECODER
from llm_env.prompts import FieldError
from llm_env.rounds.annotators import read_labels
from llm_env.rounds.config import HTTPAnnotator
from llm_env.score_client import _numbers
from llm_env.score_sources import ScoreSource

SECRETS = [
    "http://ann:pa55@host:80/judge",
    "http://pa55@host/",
    "https://host/judge?token=pa55",
    "http://host/#pa55",
    "http:/ann:pa55@host",
    "ann:pa55@host",
    "http://ann:pa55@host:x",
]


@pytest.mark.parametrize("url", ["http://host?", "http://host/#", "http://host:x", "host:80"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url "):
        checked_address(url)


@pytest.mark.parametrize("url", SECRETS)
def test_an_address_holds_no_secret(url: str) -> None:
    with pytest.raises(ValueError, match="token_env") as refused:
        checked_address(url)
    assert "pa55" not in str(refused.value)
    for kind, more in ((ScoreSource, {"direction": "higher_is_better"}), (HTTPAnnotator, {})):
        with pytest.raises(InputError, match="token_env") as told:
            validate(kind, {"url": url, **more}, "run.toml")
        assert "pa55" not in str(told.value)


class Asked(http.server.BaseHTTPRequestHandler):
    """Answers with the headers it was sent."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"authorization": self.headers["Authorization"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def service() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Asked)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_token_is_sent_by_the_name_of_its_variable(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = Patience(5.0, 0, 0.0, "JUDGE_TOKEN")
    with pytest.raises(InputError, match="JUDGE_TOKEN, which is not set"):
        post_json(service, {}, patience, lambda answer: answer)
    monkeypatch.setenv("JUDGE_TOKEN", "t0ken")
    found = post_json(service, {}, patience, lambda answer: answer)
    assert found == {"authorization": "Bearer t0ken"}
    plain = post_json(service, {}, Patience(5.0, 0, 0.0), lambda answer: answer)
    assert plain == {"authorization": None}
    monkeypatch.setenv("JUDGE_TOKEN", "a\nb")
    with pytest.raises(InputError, match="no header can hold"):
        post_json(service, {}, patience, lambda answer: answer)


def test_a_judge_gives_labels_and_nothing_else() -> None:
    label = {"is_response_0_safe": True, "is_response_1_safe": True}
    label |= {"better_response_id": 1, "safer_response_id": 0}
    texts = {"prompt": "p!", "response_0": "0!", "response_1": "1!", "id": 9}
    (row,) = read_labels({"labels": [{**label, **texts}]}, [("p", "0", "1")], "http://judge")
    assert (row.prompt, *row.responses, row.model_extra) == ("p", "0", "1", {})
    assert row.better_response_id == 1


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), "1", True])
def test_scores_beyond_float64_are_no_numbers(value: object) -> None:
    with pytest.raises(InputError, match="not a number"):
        _numbers("reward", [value], 1)


def test_a_key_that_occurs_twice_among_many_is_found_in_linear_time() -> None:
    """Comparing each with each takes minutes here."""
    many = ", ".join(f'"k{i}": 0' for i in range(60_000))
    with pytest.raises(FieldError, match="k59999"):
        DECODER.decode(f'{{{many}, "k59999": 1}}')


def parquet(path: Path, values: list[object]) -> list[object]:
    arrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(arrow.table({"prompt": values}), path)
    return list(read_prompts([DataSource(path=str(path))]))


def test_bytes_of_parquet_are_text(tmp_path: Path) -> None:
    texts = ["How?", "Wie heiß?"]
    assert parquet(tmp_path / "a.parquet", [t.encode() for t in texts]) == texts
    turns = [[{"role": b"user", "content": t.encode()}] for t in texts]
    plain = [[{"role": "user", "content": t}] for t in texts]
    found = parquet(tmp_path / "b.parquet", turns)
    assert found == parquet(tmp_path / "c.parquet", plain)
    with pytest.raises(InputError):
        parquet(tmp_path / "d.parquet", [b"\xff\xfe\x00"])


@pytest.mark.parametrize("name", [r"a\1", r"x$\frac{$", "$y$", "<b>it"])
def test_names_are_text_in_figures(name: str) -> None:
    figure = matplotlib.figure.Figure()
    axes = figure.subplots()
    axes.set_yscale("log")
    axes.plot([1, 2], [1, 1000], label=name)
    axes.set_xticks([1.0, 2.0], labels=[name, "other"])
    axes.set_title(name)
    axes.legend()
    drawn = str(inline_svg(figure, name))
    assert drawn.startswith("<svg")
    assert "<b>it" not in drawn


def test_deep_nesting_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nested too deeply"):
        parse_override("network.hidden=" + "[" * 5000)
    (tmp_path / "c.toml").write_text("x = " + "[" * 5000)
    with pytest.raises(InputError, match=r"c\.toml: .* nested too deeply"):
        read_toml(tmp_path / "c.toml")


def problem(**changed: object) -> FiniteCMDP:
    rng = np.random.default_rng(3)
    sound = {
        **{"transition": rng.dirichlet(np.ones(4), (4, 2)), "reward": rng.normal(size=(4, 2))},
        **{"cost": rng.uniform(size=(1, 4, 2)), "initial": np.full(4, 0.25)},
        **{"discount": 0.9, "limit": np.array([5.0])},
    }
    return FiniteCMDP(**{**sound, **changed})  # type: ignore[arg-type]


def test_numbers_too_far_apart_are_one_message() -> None:
    with pytest.raises(InputError, match="discount further from 1"):
        solve(problem(discount=0.999999999))
    with pytest.raises(InputError, match="beyond float64; take other units"):
        solve(problem(cost=problem().cost * 1e-310))


def test_an_array_that_claims_more_than_memory(tmp_path: Path) -> None:
    arrays = vars(problem())
    np.savez(tmp_path / "m.npz", **arrays)
    head = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000), }"
    claim = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + head.ljust(117).encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        for name, value in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, value)
            archive.writestr(f"{name}.npy", claim if name == "reward" else buffer.getvalue())
    with pytest.raises(InputError, match=r"m\.npz: an array claims more numbers than fit"):
        load_cmdp(tmp_path / "m.npz")
