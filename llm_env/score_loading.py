"""From score sources to loaded models and services, every check before the first weight is read.

Folders are looked into, tokenizers loaded and services asked first; then each trunk is loaded once;
then every score's sign is checked (sign_check.py).
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from constrained_rl.errors import InputError
from llm_env.collectors import Responses
from llm_env.http_json import Patience
from llm_env.prompts import Prompt, prompt_format
from llm_env.score_client import RemoteScores
from llm_env.score_formats import Role, detect_format, folder_read_as, load_score_model
from llm_env.score_kinds import POINTS, require_direction, require_one_direction, stated_kind
from llm_env.score_reading import Reader, load_tokenizer_of
from llm_env.score_rows import Format, ReadAs, Rows, in_own_format, note, score_rows, tell_of_old
from llm_env.score_sources import ScoreSource
from llm_env.scoring import ScoreModel
from llm_env.sign_check import Direction, check_sign, enforce, sign_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

PERSONAL = {"head", "direction", "limit", "sign_check", "sign_pairs"}
"""what sources of one trunk or service may differ in"""


class Origin(Protocol):
    """Where S scores come from at once."""

    def texts(self, prompts: Sequence[Prompt], responses: Sequence[str], /) -> Tensor:
        """Scores [B, S] of texts."""

    def responses(self, responses: Responses, /) -> Tensor:
        """Scores [B, S] of generated responses."""

    def readable(self, texts: Sequence[str], /) -> float:
        """Share of the words of texts that it can read."""


@dataclass(frozen=True)
class Wanted:
    """A score that was asked for."""

    name: str
    role: Role
    source: ScoreSource

    @property
    def points(self) -> Direction:
        """What a higher number means to training."""
        return POINTS[self.role]

    @property
    def sign(self) -> int:
        """−1 where the raw number points the other way."""
        return 1 if self.source.direction == self.points else -1


@dataclass(frozen=True)
class Column:
    """A wanted score, and which number of its origin it is."""

    wanted: Wanted
    origin: Origin
    index: int

    def of(self, scores: Tensor) -> Tensor:  # [B, S] -> [B]
        """This score as training sees it."""
        return self.wanted.sign * scores[:, self.index]


class ReaderOrigin:
    """A score model on disk: response ids as they are where the tokens are the policy's."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._shares: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, bool] = (
            weakref.WeakKeyDictionary()  # comparing two vocabularies takes longer than a batch
        )

    def texts(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """Scores [B, S] of texts."""
        return self.reader.texts(prompts, responses)

    def responses(self, responses: Responses) -> Tensor:
        """Scores [B, S] of generated responses."""
        tokenizer = responses.tokenizer
        if tokenizer not in self._shares:
            self._shares[tokenizer] = self.reader.shares_tokens(tokenizer)
        if self._shares[tokenizer]:
            return self.reader.tokens(responses.prompts, responses.rows)
        return self.reader.texts(responses.prompts, responses.texts)

    def readable(self, texts: Sequence[str]) -> float:
        """Share of the words of texts that survive tokenization."""
        return self.reader.readable(texts)


def load_columns(
    wanted: Sequence[Wanted], tokenizer: PreTrainedTokenizerBase | None, device: torch.device
) -> list[Column]:
    """Every wanted score, loaded and its sign checked; `tokenizer` is the policy's."""
    require_one_direction(wanted)
    groups: dict[str, list[Wanted]] = {}
    for item in wanted:
        groups.setdefault(_shared_part(item.source), []).append(item)
    # what is quick to check in every group comes before the weights of any
    loaders = {key: _prepare(group, tokenizer, device) for key, group in groups.items()}
    origins = {key: load() for key, load in loaders.items()}
    columns = []
    for item in wanted:
        origin = origins[_shared_part(item.source)]
        columns.append(Column(item, origin, _index(item, origin)))
    for column in columns:
        _check(column)
    return columns


def _shared_part(source: ScoreSource) -> str:
    """What sources must have in common to be computed together."""
    common = source.model_dump(mode="json", exclude=PERSONAL)
    if source.path is not None:
        common["path"] = str(Path(source.path).resolve())
    return json.dumps(common)


def _prepare(
    group: Sequence[Wanted], tokenizer: PreTrainedTokenizerBase | None, device: torch.device
) -> Callable[[], Origin]:
    """Check what is quick to check; the result loads the rest."""
    source = group[0].source
    if source.url is not None:
        remote = _remote(source.url, group)
        return lambda: remote
    assert source.path is not None
    folder, kind = Path(source.path), _kind(source)
    if not folder.is_dir():
        detect_format(folder)  # says so
    for item in group:
        require_direction(item, stated_kind(folder, kind))
    own = own_tokenizer(source, tokenizer)
    if folder_read_as(folder, kind) is None:
        tell_of_old(folder, own)
    roles = {item.role for item in group}
    role = group[0].role if len(roles) == 1 else None  # None: as the model's config says
    return lambda: _load(source, kind, role, own, device)


def own_tokenizer(
    source: ScoreSource, policy: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a score model on disk, in the format that the model wants of prompts."""
    assert source.path is not None
    folder = Path(source.path)
    read_as = folder_read_as(folder, _kind(source)) or ReadAs()
    return in_own_format(read_as, _tokenizer(source, folder, policy), source.prompt_format)


def rows_of(
    source: ScoreSource, trunk: PreTrainedConfig, policy: PreTrainedTokenizerBase | None
) -> Rows:
    """How a score model on disk reads, known before its weights are; `trunk` is its config."""
    note(trunk, folder_read_as(str(source.path), _kind(source)) or ReadAs())
    return score_rows(own_tokenizer(source, policy), trunk, source.prompt_format, source.append_eos)


def _kind(source: ScoreSource) -> Format:
    """The format of a source's folder."""
    return detect_format(str(source.path)) if source.format == "auto" else source.format


def _remote(url: str, group: Sequence[Wanted]) -> RemoteScores:
    """A service that answers, knows the names, and gives no score the other way than declared."""
    access = group[0].source.service
    remote = RemoteScores(
        url=url,
        names=tuple(dict.fromkeys(_served_name(item) for item in group)),
        patience=Patience(access.timeout, access.retries, access.backoff, access.token_env),
        batch_size=group[0].source.batch_size,
    )
    announced = remote.directions()
    for item in group:
        told = announced.get(_served_name(item), item.source.direction)
        if told != item.source.direction:
            raise InputError(
                f"{url} says of its score {_served_name(item)!r}: {told}; the source of "
                f"{item.role} {item.name!r} declares {item.source.direction}. A service turns its "
                f'scores the way training sees them: declare direction = "{told}"'
            )
    return remote


def _served_name(item: Wanted) -> str:
    """The name of a score at its service."""
    return item.name if item.source.head is None else str(item.source.head)


def _tokenizer(
    source: ScoreSource, folder: Path, policy: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """The tokenizer that a score model was trained with."""
    if source.tokenizer != "policy":
        home = folder if source.tokenizer is None else Path(source.tokenizer)
        return load_tokenizer_of(home, source.template_date)
    if policy is None:
        raise InputError(
            f'{folder}: tokenizer = "policy", but there is no policy here; give the folder of the '
            "tokenizer"
        )
    return policy


def _load(
    source: ScoreSource,
    kind: Format,
    role: Role | None,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> ReaderOrigin:
    """Read the weights."""
    assert source.path is not None
    model = load_score_model(source.path, kind, getattr(torch, source.dtype), role)
    _require_vocabulary(model, tokenizer, source.path)
    form = prompt_format(tokenizer)
    rows = score_rows(tokenizer, model.backbone.config, form, source.append_eos)
    if not source.offload:
        model = model.to(device)
    elif device.type == "cuda":
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.pin_memory()
    return ReaderOrigin(
        Reader(model, rows, source.batch_size, device, source.too_long, source.path)
    )


def _require_vocabulary(model: ScoreModel, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Refuse a tokenizer with ids that the trunk has no embedding of, padding aside."""
    rows = model.backbone.get_input_embeddings().weight.shape[0]
    largest = max(id_ for id_ in tokenizer.get_vocab().values() if id_ != tokenizer.pad_token_id)
    if largest >= rows:
        raise InputError(
            f"the tokenizer of score model {path} has token ids up to {largest}, but its trunk "
            f"knows 0 … {rows - 1}; give the tokenizer that it was trained with"
        )


def _index(item: Wanted, origin: Origin) -> int:
    """Which number of its origin a wanted score is."""
    if isinstance(origin, RemoteScores):
        return origin.names.index(_served_name(item))
    assert isinstance(origin, ReaderOrigin)
    model, head = origin.reader.model, item.source.head
    known = ", ".join(model.names) if model.names else f"0 … {model.heads - 1}"
    if head is None and model.heads > 1:
        raise InputError(
            f"score model {item.source.path} has {model.heads} scores ({known}); say which one "
            f"{item.role} {item.name!r} is: head = …"
        )
    index = 0 if head is None else head
    if isinstance(index, str):
        index = model.names.index(index) if index in model.names else model.heads
    if index >= model.heads:
        raise InputError(
            f"{item.role} {item.name!r} asks for head {head!r} of score model {item.source.path}, "
            f"which has {model.heads}: {known}"
        )
    return index


def _check(column: Column) -> None:
    """The sign check of one score."""
    item, source = column.wanted, column.wanted.source
    if source.sign_check == "off":
        return
    found = check_sign(
        item.name,
        item.role,
        source.direction,
        lambda prompts, responses: column.of(column.origin.texts(prompts, responses)),
        column.origin.readable,
        sign_pairs(item.role, source.sign_pairs),
    )
    enforce(found, source.sign_check)
