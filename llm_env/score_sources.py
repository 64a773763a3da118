"""Where rewards and costs come from: score models on disk in one of three formats, or a service.

A source declares which way its raw number points; what training sees always has higher = better
for rewards and higher = worse for costs. Sources that name one folder with different heads share
one trunk, forwarded once per batch; names of one service share one request.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from constrained_rl.sections import Count, Finite, NonNegative, Positive, Section
from llm_env.http_json import checked_address
from llm_env.models import DType
from llm_env.prompts import PromptFormat
from llm_env.score_formats import Role
from llm_env.score_reading import TooLong
from llm_env.sign_check import Direction, SignPolicy


class ServiceAccess(Section):
    """How long a scoring service is waited for."""

    timeout: Positive = 120.0
    """seconds for one request, from connecting to the last byte"""
    retries: Annotated[int, Field(ge=0)] = 5
    """attempts after the first that failed"""
    backoff: NonNegative = 1.0
    """seconds before the first retry; doubled before each next, at most 60"""
    token_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """name of an environment variable whose value is sent as a bearer token; it is never written"""


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
    Beaver models; else as the folder says; else template where its tokenizer has one"""
    template_date: date | None = None
    """the day that its chat template is given, if that writes the date; default: as the folder
    says, else that on which the run began"""
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
        if self.url is not None:
            checked_address(self.url)
        return self


class CostSource(ScoreSource):
    """A score to be bounded."""

    limit: Finite | None = None
    """upper bound on E[transform(C)]; default: align.limit"""


def role_of(source: ScoreSource) -> Role:
    """What a source is used as."""
    return "cost" if isinstance(source, CostSource) else "reward"
