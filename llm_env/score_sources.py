"""Where rewards and costs come from: score models on disk in one of three formats, or a service.

A source declares which way its raw number points; what training sees always has higher = better
for rewards and higher = worse for costs. Sources that name one folder with different heads share
one trunk, forwarded once per batch; names of one service share one request.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self
from urllib.parse import urlsplit

import torch
from pydantic import Field, model_validator
from torch import Tensor

from constrained_rl.config import Count, Finite, NonNegative, Positive, Section
from llm_env.collectors import Responses, Score
from llm_env.models import DType
from llm_env.prompts import Prompt, PromptFormat
from llm_env.score_formats import Role
from llm_env.score_reading import TooLong
from llm_env.sign_check import Direction, SignPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llm_env.score_loading import Column, Origin


class ServiceAccess(Section):
    """How long a scoring service is waited for."""

    timeout: Positive = 120.0
    """seconds for one request, from connecting to the last byte"""
    retries: Annotated[int, Field(ge=0)] = 5
    """attempts after the first that failed"""
    backoff: NonNegative = 1.0
    """seconds before the first retry; doubled before each next, at most 60"""


class ScoreSource(Section):
    """A score of responses."""

    path: str | None = None
    """folder of a score model"""
    url: str | None = None
    """or a scoring service (`crl llm serve-scores`), e.g. http://127.0.0.1:8008"""
    format: Literal["auto", "crl", "beaver", "classification"] = "auto"
    """of the folder: ours, PKU's, or a sequence classifier's"""
    head: Annotated[int, Field(ge=0)] | str | None = None
    """which of its scores, by number or name; of a service: the name there (default: this one's)"""
    direction: Direction
    """what a higher raw number means"""
    dtype: DType = "float32"
    """precision of the trunk; the head is float32"""
    offload: bool = False
    """keep the weights in CPU memory, and on the device only while it scores; no effect on a CPU"""
    batch_size: Count = 64
    """responses per forward, or per request"""
    tokenizer: str | None = None
    """folder of its tokenizer, or "policy" for the policy's; default: the model's own folder"""
    prompt_format: PromptFormat = "auto"
    """how prompts become text for it, in the words of a model's prompt_format. auto: beaver for
    Beaver models; else as the folder says; else template for a classifier that has one"""
    append_eos: bool | None = None
    """end every response as in its training (eos, or what its chat template writes); default: yes,
    except what a classifier takes for padding, which transformers never reads"""
    too_long: TooLong = "error"
    """rows beyond its context: an error, or drop the beginning of the prompt"""
    sign_check: SignPolicy = "warn"
    """what follows when a few clear pairs, scored at load, are not in the declared order"""
    sign_pairs: str | None = None
    """file of preference rows for the check; default: a dozen shipped English pairs"""
    service: ServiceAccess = ServiceAccess()
    """of url"""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.url is None):
            found = "neither" if self.path is None else "both"
            raise ValueError(f"found {found} of path and url; a score comes from exactly one")
        if self.url is not None and isinstance(self.head, int):
            raise ValueError('the scores of a service have names; give head = "name"')
        if self.url is not None and not _is_http(self.url):
            raise ValueError(f"url is {self.url!r}, expected http://host:port or https://…")
        return self


class CostSource(ScoreSource):
    """A score to be bounded."""

    limit: Finite | None = None
    """upper bound on E[transform(C)]; default: align.limit"""


def load_scores(
    reward: ScoreSource,
    costs: Mapping[str, CostSource],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> tuple[Score, dict[str, Score]]:
    """The reward (higher = better) and the named costs (higher = worse) as scores of responses.

    Args:
        reward: what is maximised.
        costs: what is bounded, by name.
        tokenizer: the policy's.
        device: where score models compute.

    Raises:
        InputError: a folder, head, tokenizer or service is not what the source says; a sign check
            failed whose `sign_check` is "error".
    """
    from llm_env.score_loading import Wanted, load_columns

    wanted = [Wanted("reward", "reward", reward)]
    wanted += [Wanted(name, "cost", source) for name, source in costs.items()]
    first, *rest = _as_scores(load_columns(wanted, tokenizer, device))
    return first, dict(zip(costs, rest, strict=True))


def load_named_scores(
    sources: Mapping[str, ScoreSource],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> dict[str, Score]:
    """Any number of scores by name: a `CostSource` points up to worse, others up to better."""
    from llm_env.score_loading import Wanted, load_columns

    wanted = [Wanted(name, role_of(source), source) for name, source in sources.items()]
    return dict(zip(sources, _as_scores(load_columns(wanted, tokenizer, device)), strict=True))


def _is_http(url: str) -> bool:
    """Whether a URL names a host, and a port that can be one."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False


def role_of(source: ScoreSource) -> Role:
    """What a source is used as."""
    return "cost" if isinstance(source, CostSource) else "reward"


class TextScores:
    """Scores of texts, without a policy: {name: [B]}, each trunk forwarded once."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = tuple(columns)
        self.directions: dict[str, Direction] = {c.wanted.name: c.wanted.points for c in columns}
        """what a higher number means, by name"""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, Tensor]:
        """Score [B] of each response to its prompt, by name."""
        origins = {id(column.origin): column.origin for column in self._columns}
        found = {key: origin.texts(prompts, responses) for key, origin in origins.items()}
        return {c.wanted.name: c.of(found[id(c.origin)]) for c in self._columns}

    def readable(self, texts: Sequence[str]) -> dict[str, float]:
        """Share of the words of texts that each score's tokenizer keeps."""
        return {c.wanted.name: c.origin.readable(texts) for c in self._columns}


def load_text_scores(
    sources: Mapping[str, ScoreSource],
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> TextScores:
    """Scores of texts by name; `tokenizer` is the policy's, where a source asks for it."""
    from llm_env.score_loading import Wanted, load_columns

    wanted = [Wanted(name, role_of(source), source) for name, source in sources.items()]
    return TextScores(load_columns(wanted, tokenizer, device))


def _as_scores(columns: Sequence[Column]) -> list[Score]:
    """Columns as functions of responses; those of one origin share its computation."""
    shared = {id(column.origin): _OncePerBatch(column.origin) for column in columns}
    return [_score(column, shared[id(column.origin)]) for column in columns]


def _score(column: Column, once: _OncePerBatch) -> Score:
    return lambda responses: column.of(once(responses))


class _OncePerBatch:
    """Remembers the scores of the last batch of responses, for the other columns."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._last: weakref.ref[Responses] | None = None
        self._scores = torch.empty(0)

    def __call__(self, responses: Responses) -> Tensor:  # [B, S]
        if self._last is None or self._last() is not responses:
            self._scores = self._origin.responses(responses)
            self._last = weakref.ref(responses)
        return self._scores
