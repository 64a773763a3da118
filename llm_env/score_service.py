"""A small scoring service: score models of their own process or machine, behind HTTP and JSON.

    POST /score   {"prompts": [p, …], "responses": [r, …]}       a prompt is a string or messages
             200  {"scores": {"reward": [0.7, …], "harm": [-1.2, …]},
                   "directions": {"reward": "higher_is_better", "harm": "higher_is_worse"}}
             4xx  {"error": …}    the request's fault: it is not worth sending again
             5xx  {"error": …}    ours: it may be
    GET  /health  {"status": "ok", "directions": …, "pending": 0, "scored": 1024}

Scores point the way training sees them: a reward up to better, a cost up to worse. An empty batch is
answered, so that a client can ask what there is. Requests that come at once are scored in one pass.
Any service that answers so can be the `url` of a score source. Absent: encryption and passwords (it
listens on this machine only, unless told otherwise: put a proxy before it), more than one worker.
"""

from __future__ import annotations

import json
import math
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from torch import Tensor

from constrained_rl.config import Count, NonNegative, Positive, Section
from constrained_rl.errors import InputError
from llm_env.prompts import Message, Prompt, checked_prompt
from llm_env.score_sources import CostSource, ScoreSource, load_text_scores
from llm_env.sign_check import Direction

MIB = 2**20
READ_TIMEOUT = 30.0
"""seconds that a client may be silent in the middle of its request"""
Scores: TypeAlias = Callable[[Sequence[Prompt], Sequence[str]], Mapping[str, Tensor]]


class ServeConfig(Section):
    """`crl llm serve-scores`: score sources behind HTTP."""

    reward: ScoreSource | None = None
    """served as "reward", higher = better"""
    costs: dict[str, CostSource] = {}
    """served by their names, higher = worse"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where the models compute"""
    threads: Count = 1
    """torch threads"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 lets every machine of the network ask, without a password"""
    port: Annotated[int, Field(ge=0, le=65535)] = 8008
    """port to listen on; 0: any free one, which is printed"""
    batch: Count = 256
    """responses of all waiting requests that are scored in one pass"""
    wait: NonNegative = 0.01
    """seconds that a request waits for others to join its pass"""
    timeout: Positive = 300.0
    """seconds until a request that was not scored is answered with status 503"""
    max_body: Count = 64
    """largest request in MiB"""

    @model_validator(mode="after")
    def _serves_something(self) -> Self:
        if self.reward is None and not self.costs:
            raise ValueError("there is nothing to serve; give reward or costs")
        if self.reward is not None and "reward" in self.costs:
            raise ValueError('a cost is named "reward" beside the reward; rename it')
        return self

    @property
    def sources(self) -> dict[str, ScoreSource]:
        """All sources by name."""
        reward = {} if self.reward is None else {"reward": self.reward}
        return {**reward, **self.costs}


class ScoreRequest(BaseModel):
    """What a client asks."""

    model_config = ConfigDict(strict=True, extra="forbid")

    prompts: list[Annotated[str | list[Message], PlainValidator(checked_prompt)]]
    responses: list[str]

    @model_validator(mode="after")
    def _in_pairs(self) -> Self:
        if len(self.prompts) != len(self.responses):
            raise ValueError(
                f"{len(self.prompts)} prompts but {len(self.responses)} responses; they go in pairs"
            )
        return self


@dataclass(frozen=True)
class Job:
    """One request on its way."""

    request: ScoreRequest
    scores: Future[dict[str, list[float]]]


class Batcher:
    """One thread that scores what waits, several requests in one pass.

    Args:
        score: of prompts and responses, by name.
        names: of the scores.
        batch: responses per pass, at most, unless one request has more.
        wait: seconds that the first request of a pass waits for others.
    """

    def __init__(self, score: Scores, names: Sequence[str], batch: int, wait: float) -> None:
        self._score, self._names, self._batch, self._wait = score, tuple(names), batch, wait
        self._queue: queue.Queue[Job | None] = queue.Queue()
        self.scored = 0
        self._thread = threading.Thread(target=self._work, name="scores", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Requests that wait."""
        return self._queue.qsize()

    def submit(self, request: ScoreRequest) -> Future[dict[str, list[float]]]:
        """Scores of a request, when they are there."""
        future: Future[dict[str, list[float]]] = Future()
        self._queue.put(Job(request, future))
        return future

    def close(self) -> None:
        """Finish what was begun and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        held: Job | None = None
        while True:
            first = held or self._queue.get()
            if first is None:
                return
            jobs, held, ended = self._gather(first)
            waiting = [job for job in jobs if job.scores.set_running_or_notify_cancel()]
            if waiting:
                self._answer(waiting)
            if ended:
                return

    def _gather(self, first: Job) -> tuple[list[Job], Job | None, bool]:
        """Requests of one pass, one that no longer fits, and whether the end was asked for."""
        jobs, size = [first], len(first.request.responses)
        until = time.monotonic() + self._wait
        while size < self._batch:
            try:
                job = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                return jobs, None, True
            if size + len(job.request.responses) > self._batch:
                return jobs, job, False
            jobs.append(job)
            size += len(job.request.responses)
        return jobs, None, False

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Score requests together; where that fails, each alone, so that one spoils no other."""
        try:
            prompts = [prompt for job in jobs for prompt in job.request.prompts]
            responses = [response for job in jobs for response in job.request.responses]
            table = self._table(prompts, responses)
        except Exception as error:  # whatever a model raises is its client's to hear
            if len(jobs) > 1:
                for job in jobs:
                    self._answer([job])
            else:
                jobs[0].scores.set_exception(error)
            return
        start = 0
        for job in jobs:
            stop = start + len(job.request.responses)
            job.scores.set_result({name: column[start:stop] for name, column in table.items()})
            start = stop
        self.scored += start

    def _table(self, prompts: list[Any], responses: list[str]) -> dict[str, list[float]]:
        """Finite scores by name."""
        if not responses:
            return {name: [] for name in self._names}
        table = {name: scores.tolist() for name, scores in self._score(prompts, responses).items()}
        for name, column in table.items():
            bad = [index for index, value in enumerate(column) if not math.isfinite(value)]
            if bad:
                raise ArithmeticError(
                    f"score {name!r} is {column[bad[0]]} for {len(bad)} of {len(column)} responses"
                )
        return table


class Refused(Exception):
    """A request that is answered with an error status."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Service:
    """What the handlers of requests share."""

    batcher: Batcher
    directions: Mapping[str, Direction]
    timeout: float
    max_body: int  # bytes

    def health(self) -> dict[str, object]:
        """How it goes."""
        return {
            "status": "ok",
            "directions": dict(self.directions),
            "pending": self.batcher.pending,
            "scored": self.batcher.scored,
        }

    def score(self, body: bytes) -> dict[str, object]:
        """The answer to a request's body."""
        try:
            request = ScoreRequest.model_validate(json.loads(body))
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, problem["loc"]))
            said = f"{place}: {problem['msg']}" if place else problem["msg"]
            raise Refused(HTTPStatus.BAD_REQUEST, said) from error
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST, f"the body is no JSON ({error})") from error
        future = self.batcher.submit(request)
        try:
            scores = future.result(self.timeout)
        except TimeoutError as error:
            future.cancel()
            busy = f"not scored within {self.timeout:g} s; {self.batcher.pending} requests wait"
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, busy) from error
        except InputError as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
        return {"scores": scores, "directions": dict(self.directions)}


def make_server(service: Service, host: str, port: int) -> ThreadingHTTPServer:
    """A server that listens; `serve_forever` answers.

    Raises:
        InputError: the address cannot be listened on.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = READ_TIMEOUT

        def do_GET(self) -> None:  # noqa: N802
            self._reply(service.health if self.path == "/health" else self._unknown)

        def do_POST(self) -> None:  # noqa: N802
            self._reply(self._scored if self.path == "/score" else self._unknown)

        def log_message(self, *_: object) -> None:
            """Say nothing of requests that went well."""

        def _scored(self) -> dict[str, object]:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal():
                raise Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
            if int(length) > service.max_body:
                limit = f"{service.max_body / MIB:g} MiB"
                raise Refused(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"the request has {int(length) / MIB:.1f} MiB, the limit is {limit}; send "
                    "smaller batches",
                )
            return service.score(self.rfile.read(int(length)))

        def _unknown(self) -> dict[str, object]:
            raise Refused(HTTPStatus.NOT_FOUND, "there is POST /score and GET /health")

        def _reply(self, make: Callable[[], dict[str, object]]) -> None:
            try:
                status, answer = HTTPStatus.OK, make()
            except Refused as refused:
                status, answer = refused.status, {"error": str(refused)}
            except OSError:
                return  # the client went away, or was silent for too long
            except Exception as error:
                traceback.print_exc()
                status = HTTPStatus.INTERNAL_SERVER_ERROR
                answer = {"error": f"{type(error).__name__}: {error}"}
            body = json.dumps(answer, allow_nan=False).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # the client went away

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port} ({error}); choose another port, or port=0 for any"
        ) from error
    server.daemon_threads = True
    return server


def serve(config: ServeConfig, say: Callable[[str], None]) -> None:
    """Load the sources and answer until the process is interrupted."""
    import torch

    from constrained_rl.assembly import choose_device

    torch.set_num_threads(config.threads)
    scores = load_text_scores(config.sources, choose_device(config.device))
    batcher = Batcher(scores, tuple(scores.directions), config.batch, config.wait)
    service = Service(batcher, scores.directions, config.timeout, config.max_body * MIB)
    server = make_server(service, config.host, config.port)
    say(f"serving {', '.join(scores.directions)} on http://{config.host}:{server.server_port}")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("stopped")
    finally:
        server.server_close()
        batcher.close()
