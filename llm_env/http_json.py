"""One JSON request to a service, patiently: time-outs, bounded retries with growing pauses.

A refused connection, a time-out, a status 429 or 5xx and an answer that cannot be read are tried
again; any other status is the caller's mistake and is reported at once. Absent: authentication,
proxies, streaming.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from constrained_rl.errors import InputError

Result = TypeVar("Result")
LONGEST_PAUSE = 60.0
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
"""statuses that may be gone a moment later"""


@dataclass(frozen=True)
class Patience:
    """How long a service is waited for."""

    timeout: float = 60.0  # seconds per attempt
    retries: int = 5  # attempts after the first
    backoff: float = 1.0  # seconds before the first retry, doubled before each next

    def pause(self, retry: int) -> float:
        """Seconds before retry 0, 1, …"""
        return min(LONGEST_PAUSE, self.backoff * 2.0**retry)


def post_json(
    url: str, body: object, patience: Patience, read: Callable[[object], Result]
) -> Result:
    """What `read` makes of the JSON answer to `body`.

    Raises:
        InputError: every attempt failed, with the last reason; or the service refused the request.
    """
    data = json.dumps(body).encode()
    reason = ""
    for attempt in range(patience.retries + 1):
        if attempt:
            time.sleep(patience.pause(attempt - 1))
        try:
            return read(_answer(url, data, patience.timeout))
        except urllib.error.HTTPError as error:
            reason = f"status {error.code} {error.reason}"
            if error.code not in TRANSIENT:
                raise InputError(f"{url} refused the request ({reason}); check the URL") from error
        except TimeoutError:
            reason = f"no answer within {patience.timeout:g} s"
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        except (InputError, ValueError) as error:  # garbage: no JSON, or not what was asked for
            reason = f"an answer that cannot be used: {error}"
    attempts = patience.retries + 1
    raise InputError(
        f"{url} failed {attempts} time{'s' * (attempts > 1)}, at last with {reason}; check that "
        "the service runs, then continue"
    )


def _answer(url: str, data: bytes, timeout: float) -> object:
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310
        found: object = json.loads(response.read())
    return found
