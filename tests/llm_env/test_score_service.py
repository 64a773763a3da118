"""A real server on a free port, and servers that misbehave; time-outs are fractions of a second."""

import http.client
import json
import math
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from constrained_rl.errors import InputError
from llm_env.collectors import Responses
from llm_env.http_json import Patience
from llm_env.score_batching import Batcher, ScoreRequest
from llm_env.score_client import RemoteScores
from llm_env.score_functions import load_scores, load_text_scores
from llm_env.score_service import MIB, ScoreServer, ServeConfig, Service, serve
from llm_env.score_sources import CostSource, ScoreSource
from llm_env.scoring import ScoreModel
from llm_env.sign_check import ScoreWarning
from llm_env.tokens import join, pad
from tests.llm_env.families import family_tokenizer, save_family

CPU = torch.device("cpu")
QUICK = {"timeout": 0.3, "retries": 2, "backoff": 0.01}
BOTH = {"reward": "higher_is_better", "harm": "higher_is_worse"}


def lengths(prompts, responses):
    """Reward: length; harm: minus it."""
    found = torch.tensor([float(len(text)) for text in responses])
    return {"reward": found, "harm": -found}


def words(texts):
    """The reward reads everything, harm half of it."""
    return {"reward": 1.0, "harm": 0.5}


@contextmanager
def serving(handler):
    """Run a server in a thread; gives its URL."""
    server = handler if isinstance(handler, ThreadingHTTPServer) else quiet(handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def quiet(handler):
    return ThreadingHTTPServer(("127.0.0.1", 0), handler)


@contextmanager
def service(score=lengths, wait=0.0, batch=64, timeout=5.0, max_body=MIB):
    batcher = Batcher(score, tuple(BOTH), batch, wait)
    server = ScoreServer(Service(batcher, BOTH, words, timeout, max_body), "127.0.0.1", 0)
    with serving(server) as url:
        yield url
    batcher.close()


def remote(url, names=("reward", "harm"), batch_size=2, **patience):
    return RemoteScores(url, names, Patience(**{**QUICK, **patience}), batch_size)


def ask(url, method="POST", path="/score", body=b"", headers=None):
    """One request by hand: status and answer."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    return answer.status, found


def test_a_client_gets_the_numbers_of_the_service_in_order():
    with service() as url:
        client = remote(url)
        assert client.directions() == BOTH
        scores = client.texts(
            ["a", ["b", "c", "d"], [{"role": "user", "content": "e"}]], ["x", "yy", ""]
        )
        assert scores.tolist() == [[1, -1], [2, -2], [0, 0]]
        assert client.texts([], []).shape == (0, 2)
        status, health = ask(url, "GET", "/health")
    assert status == 200
    assert health == {"status": "ok", "directions": BOTH, "pending": 0, "scored": 3}


def test_the_sign_check_of_a_service_asks_what_it_can_read():
    with service() as url:
        assert remote(url).readable(["a"]) == 0.5  # the worst of both
        assert remote(url, ("reward",)).readable(["a"]) == 1.0
        source = CostSource(url=url, direction="higher_is_worse", service=QUICK)
        with pytest.warns(ScoreWarning, match="harm' could not be made: its tokenizer keeps 50%"):
            load_text_scores({"harm": source}, CPU)
    handler, _ = answering((404, "what?"))
    with serving(handler) as url:
        assert remote(url).readable(["a"]) == 1.0  # of another make


def test_requests_that_come_at_once_are_scored_in_one_pass():
    passes, begun = [], threading.Event()

    def score(prompts, responses):
        passes.append(len(responses))
        begun.set()
        time.sleep(0.1)  # the others come while the first is scored
        return lengths(prompts, responses)

    batcher = Batcher(score, tuple(BOTH), batch=5, wait=0.0)
    first = batcher.submit(ScoreRequest(prompts=["a"], responses=["b"]))
    begun.wait(5)
    rest = [
        batcher.submit(ScoreRequest(prompts=["a"] * 2, responses=["b", "cc"])) for _ in range(3)
    ]
    assert first.result(5) == {"reward": [1], "harm": [-1]}
    assert [f.result(5)["reward"] for f in rest] == [[1, 2]] * 3
    batcher.close()
    assert passes == [1, 4, 2]  # never more than 5 together, requests whole
    assert batcher.scored == 7


def test_many_clients_at_once_get_their_own_numbers_at_the_first_attempt():
    with service(wait=0.005) as url:
        clients = [remote(url, retries=0, timeout=10) for _ in range(64)]
        with ThreadPoolExecutor(len(clients)) as pool:
            texts = [["x" * i, "x" * (i + 1)] for i in range(len(clients))]
            found = list(pool.map(lambda c, t: c.texts(["p", "q"], t), clients, texts))
    assert [scores[:, 0].tolist() for scores in found] == [[i, i + 1] for i in range(64)]


@pytest.mark.parametrize(
    "sent", [b"", b"POST /sc", b"POST /score HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"]
)
def test_a_client_that_hangs_up_disturbs_no_other(sent, capfd):
    with service() as url:
        host, port = url.removeprefix("http://").split(":")
        gone = socket.create_connection((host, int(port)))
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.sendall(sent)
        time.sleep(0.05)
        gone.close()  # a reset, not a farewell
        assert remote(url).texts(["a"], ["xyz"]).tolist() == [[3, -3]]
        time.sleep(0.05)
    assert capfd.readouterr().err == ""


def test_one_bad_request_spoils_no_other():
    def score(prompts, responses):
        if "bad" in responses:
            raise InputError("row 0 is too long")
        return lengths(prompts, responses)

    batcher = Batcher(score, tuple(BOTH), batch=64, wait=0.1)
    good, bad = (
        batcher.submit(ScoreRequest(prompts=["a"], responses=[text])) for text in ("good", "bad")
    )
    assert good.result(5)["reward"] == [4]
    with pytest.raises(InputError, match="too long"):
        bad.result(5)
    batcher.close()


def body(**fields):
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("request_", "status", "error"),
    [
        ({"body": b"{"}, 400, "the body is no JSON"),
        ({"body": b"\xff"}, 400, "the body is no JSON"),
        ({"body": b"[]"}, 400, "valid dictionary"),
        ({"body": body(prompts=["a"], responses=[])}, 400, "1 prompts but 0 responses"),
        ({"body": body(prompts=[1], responses=["b"])}, 400, "prompts.0"),
        ({"body": body(prompts=[""], responses=["b"])}, 400, "prompts.0: .*is empty"),
        ({"body": body(prompts=["a"], responses=[None])}, 400, "responses.0"),
        ({"body": body(prompts=["a"], responses=["b"], more=1)}, 400, "more"),
        ({"body": b" " * (MIB + 1)}, 413, "1.0 MiB, the limit is 1 MiB"),
        ({"headers": {"Content-Length": "9" * 30}}, 413, "the limit is 1 MiB"),
        ({"headers": {"Content-Length": "-1"}}, 411, "Content-Length"),
        ({"path": "/"}, 404, "POST /score"),
        ({"method": "GET"}, 404, "GET /health"),
    ],
)
def test_a_request_that_is_none_is_answered_with_what_is_wrong(request_, status, error):
    import re

    with service() as url:
        found, answer = ask(url, **request_)
        assert found == status
        assert re.search(error, answer["error"])
        assert remote(url).texts(["a"], ["b"]).tolist() == [[1, -1]]  # it goes on


@pytest.mark.parametrize(
    ("score", "status", "error"),
    [
        (lambda *_: {"reward": torch.tensor([math.nan])}, 500, "'reward' is nan for 1 of 1"),
        (lambda *_: 1 / 0, 500, "ZeroDivisionError"),
    ],
)
def test_what_goes_wrong_inside_is_a_500(score, status, error, capfd):
    with service(score) as url:
        found, answer = ask(url, body=body(prompts=["a"], responses=["b"]))
    assert (found, error in answer["error"]) == (status, True)
    assert "Traceback" in capfd.readouterr().err


def test_texts_that_a_model_refuses_are_not_sent_again():
    calls = []

    def score(prompts, responses):
        calls.append(1)
        raise InputError("m sees 512 tokens, but row 0 has 600")

    with (
        service(score) as url,
        pytest.raises(InputError, match=r"status 422 .*sees 512 tokens.*crl resume"),
    ):
        remote(url).texts(["a"], ["b"])
    assert len(calls) == 1


def test_a_service_that_is_too_slow_says_so_and_forgets_the_request():
    release, calls = threading.Event(), []

    def score(prompts, responses):
        calls.append(responses)
        release.wait(5)
        return lengths(prompts, responses)

    with service(score, timeout=0.1) as url:
        assert ask(url, body=body(prompts=["a"], responses=["b"]))[0] == 503
        status, answer = ask(url, body=body(prompts=["a"], responses=["later"]))
        release.set()
        assert (status, "not scored within 0.1 s" in answer["error"]) == (503, True)
        assert remote(url).texts(["a"], ["now"]).tolist() == [[3, -3]]
    assert ["later"] not in calls  # it was cancelled


def answering(*answers):
    """A service that gives prepared answers, one after another, the last again and again."""
    given = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            given.append(answers[min(len(given), len(answers) - 1)])
            status, text = given[-1]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    return Handler, given


GOOD = (200, '{"scores": {"reward": [1.5], "harm": [-2]}}')
BAD_ANSWERS = {
    "status 500 .*: out of memory": (500, "out of memory"),
    "Expecting value": (200, "<html>"),
    r"'\[1, 2\]'|\[1, 2\], expected": (200, "[1, 2]"),
    "score 'reward' is 2 numbers for 1 responses": (
        200,
        '{"scores": {"reward": [1, 2], "harm": [1]}}',
    ),
    "is nan, not a number": (200, '{"scores": {"reward": [NaN], "harm": [1]}}'),
    "is 'safe', not a number": (200, '{"scores": {"reward": ["safe"], "harm": [1]}}'),
    "is True, not a number": (200, '{"scores": {"reward": [true], "harm": [1]}}'),
    "it has no score 'harm', only 'reward'": (200, '{"scores": {"reward": [1]}}'),
}


@pytest.mark.parametrize("message", BAD_ANSWERS)
def test_bad_answers_are_tried_again_and_then_end_the_run_with_their_reason(message):
    handler, given = answering(BAD_ANSWERS[message])
    with serving(handler) as url, pytest.raises(InputError, match=message) as caught:
        remote(url).texts(["a"], ["b"])
    assert len(given) == 3  # one attempt, two retries
    for part in (url, "failed 3 times", "last checkpoint is intact", "crl resume"):
        assert part in str(caught.value)


@pytest.mark.parametrize("message", BAD_ANSWERS)
def test_a_service_that_recovers_loses_nothing(message):
    handler, given = answering(BAD_ANSWERS[message], GOOD)
    with serving(handler) as url:
        assert remote(url).texts(["a"], ["b"]).tolist() == [[1.5, -2.0]]
    assert len(given) == 2


def test_a_refused_request_is_not_repeated():
    handler, given = answering((403, "go away"))
    with serving(handler) as url, pytest.raises(InputError, match=r"status 403 .*go away"):
        remote(url).texts(["a"], ["b"])
    assert len(given) == 1


def test_no_service_at_all_is_an_error_after_all_attempts():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(InputError, match=r"failed 3 times, at last with .*[Rr]efused"):
        remote(f"http://127.0.0.1:{port}").directions()


@contextmanager
def raw(talk):
    """A socket that accepts connections and does as it likes with them."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)

        def work():
            threads = []
            while not ended.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                threads.append(threading.Thread(target=talk, args=(connection, ended)))
                threads[-1].start()
            for thread in threads:
                thread.join()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()


def silent(connection, ended):
    with connection:
        ended.wait(5)


def dripping(connection, ended):
    """A byte now and then: no single wait is long."""
    with connection:
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not ended.wait(0.02):
                connection.sendall(b" ")
        except OSError:
            pass


def dripping_headers(connection, ended):
    with connection:
        try:
            while not ended.wait(0.02):
                connection.sendall(b"H")
        except OSError:
            pass


def hanging_up(connection, ended):
    connection.close()


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (silent, "no whole answer within 0.2 s"),
        (dripping, "no whole answer within 0.2 s"),
        (dripping_headers, "no whole answer within 0.2 s"),
        (hanging_up, "closed|reset|without response"),
    ],
)
def test_a_service_that_never_answers_does_not_hold_the_run(talk, reason):
    begun = time.monotonic()
    with raw(talk) as url, pytest.raises(InputError, match=f"failed 2 times.*({reason})"):
        remote(url, timeout=0.2, retries=1).texts(["a"], ["b"])
    assert time.monotonic() - begun < 5  # 2 · 0.2 s, on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A score model of two heads with its tokenizer."""
    home = tmp_path_factory.mktemp("served")
    model = AutoModelForCausalLM.from_pretrained(save_family("llama", home / "lm"))
    generator = torch.Generator().manual_seed(0)
    scores = ScoreModel.from_causal_lm(model, ("help", "harm"), generator=generator)
    scores.save_pretrained(home / "two", family_tokenizer("llama"))
    return str(home / "two")


def test_a_run_scores_through_a_service_as_it_does_by_itself(folder):
    known = {"path": folder, "sign_check": "off"}
    config = ServeConfig(
        reward=ScoreSource(head="help", direction="higher_is_worse", **known),
        costs={"harm": CostSource(head="harm", direction="higher_is_worse", **known)},
    )
    policy = family_tokenizer("llama")
    rows = join(*pad([[65], [65]], 0, left=True), *pad([[70, 71], [72]], 0, left=False))
    batch = Responses(rows, ["hello", "how"], policy)
    expected, costs = load_scores(config.reward, config.costs, policy, CPU)
    calls = []
    local = load_text_scores(config.sources, CPU)

    def counted(prompts, responses):
        calls.append(len(responses))
        return local(prompts, responses)

    with service(counted) as url:
        access = {"url": url, "sign_check": "off", "service": {"timeout": 5.0, "retries": 0}}
        reward = ScoreSource(direction="higher_is_better", **access)
        harm = CostSource(direction="higher_is_worse", **access)
        named = CostSource(direction="higher_is_worse", head="harm", **access)
        score, remote_costs = load_scores(reward, {"harm": harm, "other": named}, policy, CPU)
        torch.testing.assert_close(score(batch), expected(batch))
        torch.testing.assert_close(remote_costs["harm"](batch), costs["harm"](batch))
        torch.testing.assert_close(remote_costs["other"](batch), costs["harm"](batch))
        assert calls == [2]  # three scores, one request
        wrong = harm.model_copy(update={"direction": "higher_is_better"})
        with pytest.raises(InputError, match="says of its score 'harm': higher_is_worse"):
            load_scores(reward, {"harm": wrong}, policy, CPU)
        with pytest.raises(InputError, match="no score 'violence', only 'reward', 'harm'"):
            load_scores(reward, {"violence": harm}, policy, CPU)


def test_the_command_serves_what_it_is_told(folder, monkeypatch, capsys):
    from llm_env import score_service

    running = {}

    def make(*arguments):
        running["server"] = ScoreServer(*arguments)
        return running["server"]

    monkeypatch.setattr(score_service, "ScoreServer", make)
    source = ScoreSource(path=folder, head=1, direction="higher_is_better", sign_check="off")
    config = ServeConfig(costs={"harm": source.model_dump() | {"limit": 0.0}}, port=0)
    said, threads = [], torch.get_num_threads()
    thread = threading.Thread(target=serve, args=(config, said.append))
    thread.start()
    while not said:
        assert thread.is_alive()
        time.sleep(0.01)
    url = said[0].removeprefix("serving harm on ")
    status, answer = ask(url, body=body(prompts=["hello"], responses=["no"]))
    running["server"].shutdown()
    thread.join()
    torch.set_num_threads(threads)
    own = load_text_scores({"x": source}, CPU)(["hello"], ["no"])["x"]
    assert status == 200
    assert answer["scores"]["harm"] == pytest.approx([-float(own[0])])
    assert answer["directions"] == {"harm": "higher_is_worse"}


def test_a_port_in_use_is_said():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(InputError, match=r"cannot listen on .* choose another port"),
    ):
        ScoreServer(None, "127.0.0.1", taken.getsockname()[1])


def test_serve_scores_is_a_command(crl):
    code, out, _ = crl("llm", "serve-scores", "--help")
    assert (code, "Serve score models over HTTP" in out) == (0, True)
    code, _, err = crl("llm", "serve-scores", "port=8009")
    assert (code, "there is nothing to serve" in err) == (2, True)


def test_a_cost_may_not_take_the_rewards_name(folder):
    source = {"path": folder, "head": 0, "direction": "higher_is_better"}
    with pytest.raises(ValidationError, match="rename it"):
        ServeConfig(reward=source, costs={"reward": source})
