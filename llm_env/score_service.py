"""A small scoring service: score models of their own process or machine, behind HTTP and JSON.

    POST /score   {"prompts": [p, …], "responses": [r, …]}       a prompt is a string or messages
             200  {"scores": {"reward": [0.7, …], "harm": [-1.2, …]},
                   "directions": {"reward": "higher_is_better", "harm": "higher_is_worse"}}
             4xx  {"error": …}    the request's fault: it is not worth sending again
             5xx  {"error": …}    ours: it may be
    POST /readable  {"texts": [t, …]}      share of their words that each score's tokenizer keeps
             200  {"readable": {"reward": 1.0, "harm": 0.4}}
    GET  /health  {"status": "ok", "directions": …, "pending": 0, "scored": 1024}

Scores point the way training sees them: a reward up to better, a cost up to worse. An empty batch
is answered, so that a client can ask what there is. Requests that come at once are scored in one
pass (score_batching.py). Any service that answers /score so can be the `url` of a score source.
Absent: encryption and passwords. It listens to its own machine only, unless told otherwise.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from constrained_rl.errors import InputError
from constrained_rl.sections import Count, Device, NonNegative, Positive, Section
from llm_env.score_batching import Batcher, ScoreRequest
from llm_env.score_functions import load_text_scores
from llm_env.score_sources import CostSource, ScoreSource
from llm_env.sign_check import Direction

Request = TypeVar("Request", bound=BaseModel)
MIB = 2**20
READ_TIMEOUT = 30.0
"""seconds that a client may be silent in the middle of its request"""
LINGER = 0.5
"""and in the middle of one that is refused"""


class ServeConfig(Section):
    """`crl llm serve-scores`: score sources behind HTTP."""

    reward: ScoreSource | None = None
    """served as "reward", higher = better"""
    costs: dict[str, CostSource] = Field(default_factory=dict)
    """served by their names, higher = worse"""
    device: Device = "auto"
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


class ReadableRequest(BaseModel):
    """Texts to be read."""

    model_config = ConfigDict(strict=True, extra="forbid")

    texts: list[str]


class RefusedError(Exception):
    """A request that is answered with an error status."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Service:
    """What the handlers of requests share."""

    batcher: Batcher
    directions: Mapping[str, Direction]
    readable: Callable[[list[str]], dict[str, float]]
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
        future = self.batcher.submit(_parsed(ScoreRequest, body))
        try:
            scores = future.result(self.timeout)
        except TimeoutError as error:
            future.cancel()
            busy = f"not scored within {self.timeout:g} s; {self.batcher.pending} requests wait"
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, busy) from error
        except InputError as error:
            raise RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
        return {"scores": scores, "directions": dict(self.directions)}

    def words_kept(self, body: bytes) -> dict[str, object]:
        """What of some texts each score can read."""
        return {"readable": self.readable(_parsed(ReadableRequest, body).texts)}


def _parsed(kind: type[Request], body: bytes) -> Request:
    """A request's body; `RefusedError` says what is wrong with it."""
    try:
        return kind.model_validate(json.loads(body))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"]))
        said = f"{place}: {problem['msg']}" if place else problem["msg"]
        raise RefusedError(HTTPStatus.BAD_REQUEST, said) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"the body is no JSON ({error})") from error


class ScoreServer(ThreadingHTTPServer):
    """Listens, and answers each request in a thread of its own."""

    daemon_threads = True
    request_queue_size = 1024  # of socketserver's 5, ranks that ask at once would wait a second

    def __init__(self, service: Service, host: str, port: int) -> None:
        self.service = service
        try:
            super().__init__((host, port), ScoreHandler)
        except OSError as error:
            raise InputError(
                f"cannot listen on {host}:{port} ({error}); choose another port, or port=0 for any"
            ) from error

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that hung up in the middle of its request."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class ScoreHandler(BaseHTTPRequestHandler):
    """One request."""

    timeout = READ_TIMEOUT
    server: ScoreServer

    def do_GET(self) -> None:
        """Health."""
        self._reply(self.server.service.health if self.path == "/health" else self._unknown)

    def do_POST(self) -> None:
        """Scores."""
        service = self.server.service
        actions = {"/score": service.score, "/readable": service.words_kept}
        action = actions.get(self.path)
        self._reply(self._unknown if action is None else lambda: action(self._body()))

    def log_message(self, *_: object) -> None:
        """Say nothing of requests that went well."""

    def _body(self) -> bytes:
        length, limit = self.headers.get("Content-Length", ""), self.server.service.max_body
        if not length.isdecimal():
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
        if int(length) > limit:
            self._discard(min(int(length), 4 * limit))
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the request has {int(length) / MIB:.1f} MiB, the limit is {limit / MIB:g} MiB; "
                "send smaller batches",
            )
        try:
            return self.rfile.read(int(length))
        except OSError as error:  # silent for READ_TIMEOUT, or gone
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, "the body did not come") from error

    def _discard(self, left: int) -> None:
        """Read on for a while: an answer before the end of a request is lost on its way."""
        self.connection.settimeout(LINGER)
        with contextlib.suppress(OSError):
            while left > 0 and (part := self.rfile.read1(min(left, MIB))):
                left -= len(part)

    def _unknown(self) -> dict[str, object]:
        raise RefusedError(HTTPStatus.NOT_FOUND, "there is POST /score and GET /health")

    def _reply(self, make: Callable[[], dict[str, object]]) -> None:
        try:
            status, answer = HTTPStatus.OK, make()
        except RefusedError as refused:
            status, answer = refused.status, {"error": str(refused)}
        except Exception as error:
            traceback.print_exc()
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            answer = {"error": f"{type(error).__name__}: {error}"}
        body = json.dumps(answer, allow_nan=False).encode()
        with contextlib.suppress(OSError):  # the client went away
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)


def serve(config: ServeConfig, say: Callable[[str], None]) -> None:
    """Load the sources and answer until the process is interrupted."""
    import torch

    from constrained_rl.devices import choose_device

    torch.set_num_threads(config.threads)
    scores = load_text_scores(config.sources, choose_device(config.device))
    batcher = Batcher(scores, tuple(scores.directions), config.batch, config.wait)
    service = Service(
        batcher, scores.directions, scores.readable, config.timeout, config.max_body * MIB
    )
    server = ScoreServer(service, config.host, config.port)
    say(f"serving {', '.join(scores.directions)} on http://{config.host}:{server.server_port}")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("stopped")
    finally:
        server.server_close()
        batcher.close()
