"""One JSON request to a service, patiently: time-outs, bounded retries with growing pauses.

A refused connection, a time-out, a status 429 or 5xx and an answer that cannot be read are tried
again; any other status is the caller's mistake and is reported at once. A secret is a token in an
environment variable, named by the settings; an address holds none. Absent: proxies, redirections,
streaming.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from constrained_rl.errors import InputError

Result = TypeVar("Result")
LONGEST_PAUSE = 60.0
LARGEST_ANSWER = 2**28
"""bytes; what is cut off here is no JSON"""
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
"""statuses that may be gone a moment later"""


@dataclass(frozen=True)
class Patience:
    """How long a service is waited for."""

    timeout: float = 60.0  # seconds per attempt
    retries: int = 5  # attempts after the first
    backoff: float = 1.0  # seconds before the first retry, doubled before each next
    token_env: str | None = None  # environment variable whose value goes along as a bearer token

    def pause(self, retry: int) -> float:
        """Seconds before the first retry (0), the second (1) and so on."""
        return min(LONGEST_PAUSE, self.backoff * 2.0**retry)


def checked_address(url: str) -> str:
    """The address of a service; `ValueError`, which shows no secret, if it cannot be one."""
    if any(sign in url for sign in "@?#"):  # before it is parsed: a malformed one has no user name
        raise ValueError(
            "url holds a name, a password, or something behind ? or #, which would be written into "
            "the run's files; give http://host:port/path, and for a token the name of an "
            "environment variable as token_env"
        )
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        raise ValueError("url has no valid port, expected http://host:port or https://…") from None
    if not good:
        raise ValueError(f"url is {url!r}, expected http://host:port or https://…")
    return url


def _headers(patience: Patience) -> dict[str, str]:
    """The headers of a request; `InputError` if the token is not there."""
    kind = {"Content-Type": "application/json"}
    if patience.token_env is None:
        return kind
    token = os.environ.get(patience.token_env, "")
    if not token or not (token.isascii() and token.isprintable()):
        found = "is not set" if not token else "holds characters that no header can hold"
        raise InputError(
            f"token_env names the environment variable {patience.token_env}, which {found}; "
            f"export it: {patience.token_env}=…"
        )
    return {**kind, "Authorization": f"Bearer {token}"}


def post_json(
    url: str, body: object, patience: Patience, read: Callable[[object], Result]
) -> Result:
    """What `read` makes of the JSON answer to `body`.

    Raises:
        InputError: every attempt failed, with the last reason; or the service refused the request.
    """
    data, headers = json.dumps(body).encode(), _headers(patience)
    reason = ""
    for attempt in range(patience.retries + 1):
        if attempt:
            time.sleep(patience.pause(attempt - 1))
        try:
            return read(_answer(url, data, headers, patience.timeout))
        except _StatusError as error:
            reason = str(error)
            if error.status not in TRANSIENT:
                raise InputError(f"{url} refused the request ({reason}); check the URL") from error
        except TimeoutError:
            reason = f"no whole answer within {patience.timeout:g} s"
        except (http.client.HTTPException, OSError) as error:
            reason = str(error) or type(error).__name__
        except (
            InputError,
            ValueError,
            RecursionError,
        ) as error:  # garbage: no JSON, or not what was asked for
            reason = f"an answer that cannot be used: {error}"
    attempts = patience.retries + 1
    raise InputError(
        f"{url} failed {attempts} time{'s' * (attempts > 1)}, at last with {reason}; check that "
        "the service runs, then continue"
    )


class _StatusError(Exception):
    """An answer whose status is not 200, with the beginning of what it says."""

    def __init__(self, status: int, reason: str, body: bytes) -> None:
        said = " ".join(body.decode(errors="replace").split())
        super().__init__(f"status {status} {reason}" + (f": {said:.300}" if said else ""))
        self.status = status


def _answer(url: str, data: bytes, headers: dict[str, str], timeout: float) -> object:
    """The JSON answer; `TimeoutError` unless all of it comes in time.

    A socket's own time-out starts again with every byte, so a service that drips would hold a run
    for ever: a watch hangs up when the time is over.
    """
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    over = threading.Event()
    begun = time.monotonic()
    connection.connect()
    hung = threading.Timer(
        max(0.0, begun + timeout - time.monotonic()), _hang_up, (connection.sock, over)
    )
    hung.daemon = True
    hung.start()
    try:
        where = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        # a service may refuse before it has read everything; what it says is still to be read
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", where, data, headers)
        with connection.getresponse() as response:
            body = response.read(LARGEST_ANSWER)
    except (http.client.HTTPException, OSError) as error:
        if over.is_set():
            raise TimeoutError from error
        raise
    finally:
        hung.cancel()
        connection.close()
    if over.is_set():
        raise TimeoutError
    if response.status != http.HTTPStatus.OK:
        raise _StatusError(response.status, response.reason, body)
    found: object = json.loads(body)
    return found


def _hang_up(sock: socket.socket, over: threading.Event) -> None:
    """Make every wait on a socket end now."""
    over.set()
    with contextlib.suppress(OSError):  # the other side was quicker
        sock.shutdown(socket.SHUT_RDWR)
