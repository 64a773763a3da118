"""Scores from a service over HTTP, patiently and for a bounded time.

    POST {url}/score  {"prompts": [...], "responses": [...]}
                      → {"scores": {"harm": [...]}, "directions": {"harm": "higher_is_worse"}}

All scores of one service come with one request per batch. Answers that cannot be used (a status
5xx, garbage, the wrong count, numbers that are none, silence) are tried again with growing pauses;
then the run ends with an error that names the service, and its last checkpoint is intact.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from constrained_rl.errors import InputError
from llm_env.collectors import Responses
from llm_env.http_json import Patience, post_json
from llm_env.prompts import Prompt
from llm_env.sign_check import OTHER, Direction

KEPT = "; nothing is lost: the run's last checkpoint is intact, `crl resume` continues from it"


@dataclass(frozen=True)
class RemoteScores:
    """Named scores of a service."""

    url: str
    names: tuple[str, ...]
    patience: Patience
    batch_size: int = 64

    def texts(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """Scores [B, S] of texts, in the order of the names.

        Raises:
            InputError: every attempt failed; with the URL, their number and the last reason.
        """
        parts = [torch.empty(0, len(self.names))]
        for start in range(0, len(prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            try:
                parts.append(self._ask(prompts[part], responses[part]))
            except InputError as error:
                raise InputError(f"{error}{KEPT}") from error
        return torch.cat(parts)

    def responses(self, responses: Responses) -> Tensor:
        """Scores [B, S] of generated responses, by their texts."""
        return self.texts(responses.prompts, responses.texts)

    def readable(self, texts: Sequence[str]) -> float:
        """Share of the words of texts that the worst of these scores keeps.

        1 where the service does not tell: one of another make is taken to read what it is sent.
        """
        once = replace(self.patience, retries=0)
        try:
            return post_json(
                f"{self.url.rstrip('/')}/readable", {"texts": list(texts)}, once, self._read_shares
            )
        except InputError:
            return 1.0

    def directions(self) -> dict[str, Direction]:
        """What the service says of its scores, asked with an empty batch; {} if it says nothing.

        Raises:
            InputError: it cannot be reached, or does not know one of the names.
        """
        return post_json(
            self._address, {"prompts": [], "responses": []}, self.patience, self._read_directions
        )

    @property
    def _address(self) -> str:
        return f"{self.url.rstrip('/')}/score"

    def _ask(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        body = {"prompts": [as_json(prompt) for prompt in prompts], "responses": list(responses)}
        return post_json(
            self._address, body, self.patience, lambda answer: self._read(answer, len(prompts))
        )

    def _read(self, answer: object, count: int) -> Tensor:  # [count, S]
        """The numbers of an answer."""
        scores = answer.get("scores") if isinstance(answer, Mapping) else None
        if not isinstance(scores, Mapping):
            raise InputError(f'{answer!r:.200}, expected {{"scores": {{name: [number, …]}}}}')
        columns = []
        for name in self.names:
            if name not in scores:
                raise InputError(f"it has no score {name!r}, only {', '.join(map(repr, scores))}")
            columns.append(_numbers(name, scores[name], count))
        return torch.tensor(columns, dtype=torch.float32).reshape(len(columns), count).T

    def _read_shares(self, answer: object) -> float:
        shares = answer.get("readable") if isinstance(answer, Mapping) else None
        if not isinstance(shares, Mapping):
            raise InputError(f'{answer!r:.200}, expected {{"readable": {{name: share}}}}')
        return min(_numbers(name, [shares.get(name)], 1)[0] for name in self.names)

    def _read_directions(self, answer: object) -> dict[str, Direction]:
        self._read(answer, 0)
        told = answer.get("directions", {}) if isinstance(answer, Mapping) else {}
        if not isinstance(told, Mapping) or not set(told.values()) <= set(OTHER):
            raise InputError(f"its directions are {told!r:.200}, expected {' or '.join(OTHER)}")
        return dict(told)


def as_json(prompt: Prompt) -> str | list[str | dict[str, str]]:
    """A prompt as JSON holds it."""
    if isinstance(prompt, str):
        return prompt
    return [turn if isinstance(turn, str) else dict(turn) for turn in prompt]


def _numbers(name: str, values: object, count: int) -> list[float]:
    """One finite number per response."""
    if not isinstance(values, list) or len(values) != count:
        found = f"{len(values)} numbers" if isinstance(values, list) else f"{values!r:.80}"
        raise InputError(f"score {name!r} is {found} for {count} responses")
    for index, value in enumerate(values):
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not (real and abs(value) <= sys.float_info.max):  # NaN, ±∞ and integers beyond float64
            raise InputError(f"score {name!r} of response {index} is {value!r:.80}, not a number")
    return [float(value) for value in values]
