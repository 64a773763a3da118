"""Scoring requests that come at once in one pass, by one thread.

A pass begins with the first request that waits and takes others for a moment, up to a number of
responses. Where a pass fails, each of its requests is scored alone, so that one spoils no other.
Absent: priorities, more than one worker.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, PlainValidator, model_validator
from torch import Tensor

from llm_env.prompts import Message, Prompt, checked_prompt

Scores: TypeAlias = Callable[[Sequence[Prompt], Sequence[str]], Mapping[str, Tensor]]
"""Scores [B] of responses to prompts, by name"""


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
