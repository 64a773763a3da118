"""Scoring services and launchers that fail `crl llm train`, before it begins and while it runs."""

import os
import socket
from contextlib import closing
from unittest import mock

from tests.bad_input.case import Case
from tests.bad_input.project import TRAIN, crl_at, project, written
from tests.llm_env.judging_service import service

TRAINED = ("llm", "train", "served.toml")


def served(patience):
    """A setup: the cost comes from a service at PORT."""
    place = f'url = "http://127.0.0.1:PORT", service = {{ {patience}, backoff = 0.01 }}'
    return project(written("served.toml", TRAIN.replace('path = "cost"', place)))


def train(url):
    """Train with the service at a URL."""
    port = int(url.rsplit(":", 1)[1])
    crl_at(port, *TRAINED, f"costs.harm.url={url}", "--out", "run")


def answered(*answers):
    """Train with a service that gives these answers in turn."""

    def run():
        with service(*answers) as (url, _):
            train(url)

    return run


def never():
    with closing(socket.create_server(("127.0.0.1", 0))) as deaf:
        train(f"http://127.0.0.1:{deaf.getsockname()[1]}")


def scores(request):
    """A sound answer."""
    return {"scores": {"harm": [0.5] * len(request["responses"])}}


def one_too_few(request):
    return {"scores": {"harm": [0.5] * (len(request["responses"]) - 1)}}


def no_numbers(request):
    return {"scores": {"harm": [None] * len(request["responses"])}}


def incomplete_launcher():
    with mock.patch.dict(os.environ, {"WORLD_SIZE": "2", "RANK": "0"}):
        crl_at(0, "llm", "train", "train.toml", "--out", "run")


PATIENT, IMPATIENT = served("timeout = 2.0, retries = 1"), served("timeout = 0.3, retries = 0")
INTACT = "nothing is lost: the run's last checkpoint is intact"
CASES = (
    Case(
        "service without the score",
        "a scoring service without the score that is wanted",
        answered((200, '{"scores": {"reward": []}}')),
        ("it has no score 'harm', only 'reward'",),
        PATIENT,
    ),
    Case(
        "service never answers",
        "a scoring service that never answers",
        never,
        ("failed 1 time, at last with no whole answer within 0.3 s", "check that the service runs"),
        IMPATIENT,
    ),
    Case(
        "service breaks down",
        "a scoring service that answers 500 while training",
        answered((200, scores), (500, "out of memory")),
        ("failed 2 times, at last with status 500", "out of memory", INTACT),
        PATIENT,
        seen="training",
    ),
    Case(
        "service answers garbage",
        "a scoring service that answers garbage while training",
        answered((200, scores), (200, "<html>")),
        ("an answer that cannot be used: Expecting value", INTACT),
        PATIENT,
        seen="training",
    ),
    Case(
        "service miscounts",
        "a scoring service that answers too few numbers",
        answered((200, scores), (200, one_too_few)),
        ("score 'harm' is 1 numbers for 2 responses", INTACT),
        PATIENT,
        seen="training",
    ),
    Case(
        "service answers no numbers",
        "a scoring service that answers null",
        answered((200, scores), (200, no_numbers)),
        ("score 'harm' of response 0 is None, not a number", INTACT),
        PATIENT,
        seen="training",
    ),
    Case(
        "launcher incomplete",
        "an environment that only half a launcher made",
        incomplete_launcher,
        ("WORLD_SIZE is 2, but LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set", "torchrun"),
        project(),
    ),
)
