"""Which data: files with a format and a weight in a mixture, and what each use reads of them.

    read_prompts         distinct prompts, for reinforcement learning and evaluation
    read_demonstrations  (prompt, response) pairs, for SFT and PTX
    read_reward_pairs    D_R;   read_cost_pairs   D_C;   read_category_pairs   K costs at once

Rows from Python: `open_source(DataSource(path="a name"), objects)`, wherever a source is expected.

Every row is checked when a source is opened, in one pass; texts stay on disk (data/index.py).
Absent: downloads; a row that is used for several things is read for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from constrained_rl.errors import InputError
from constrained_rl.sections import Positive, Section, Share
from llm_env.category_pairs import CategoryPair, category_pair
from llm_env.data.digests import first_occurrences, prompt_digest, share_of
from llm_env.data.formats import Comparison, Demonstration, Format, Row, detect, reader
from llm_env.data.index import RowIndex
from llm_env.data.lazy import LazySequence, View
from llm_env.data.mixture import Mixture
from llm_env.data.shards import Shard, shard_of_objects, shards_of
from llm_env.jsonl import Line, parse
from llm_env.preferences import (
    CostPair,
    PreferenceRow,
    RewardPair,
    cost_pair,
    reward_pair,
    sift_rows,
)
from llm_env.prompts import FieldError, Prompt
from llm_env.quarantine import BadRow, Tally

T = TypeVar("T")
Objects = Iterable[Mapping[str, Any]]
"""rows from Python: a `datasets.Dataset`, a list or a generator of dicts"""
CHECK_DATA = "`crl llm check-data` says more"


class DataSource(Section):
    """A file or folder of examples."""

    path: str
    """a file: .jsonl, .jsonl.gz, .jsonl.xz, .json, .parquet, .txt; or a folder of such files"""
    format: Literal["auto", Format] = "auto"
    """what its rows look like; auto: by the fields of the first one"""
    weight: Positive | None = None
    """share of this source in a mixture, before normalisation, given for all sources or for none;
    none: one source after another, every row once"""
    compares: Literal["helpfulness", "harmlessness"] | None = None
    """what the preferences of an hh source are about; its rows do not say"""
    max_bad: Share = 0.0
    """share of its rows that may be bad; these are left out"""
    quarantine: str | None = None
    """new file for the bad rows"""


@dataclass(frozen=True)
class OpenSource:
    """A source whose every row was checked."""

    source: DataSource
    format: Format
    rows: RowIndex[Row]
    digests: bytearray
    """16 bytes per row: of its prompt"""


Source: TypeAlias = DataSource | OpenSource


def open_source(source: DataSource, objects: Objects | None = None) -> OpenSource:
    """Check every row of a source and index it.

    Args:
        source: what and how.
        objects: rows from Python instead of `source.path`, which then only names them.

    Raises:
        InputError: the rows are of no known format, too many are bad, or there are none.
    """
    shards = shards_of(source.path) if objects is None else [shard_of_objects(objects, source.path)]
    form, shards = format_of(source, shards)
    rows, digests = RowIndex(reader(form)), bytearray()
    tally = Tally(Path(source.path))
    scanned: Iterable[Row | BadRow] = chain.from_iterable(rows.scan(shard) for shard in shards)
    good: Iterator[Row] = sift_rows(scanned, source.max_bad, source.quarantine, tally)
    for row in good:
        digests += prompt_digest(row.prompt)
    return OpenSource(source, form, rows, digests)


def _opened(sources: Sequence[Source]) -> list[OpenSource]:
    return [s if isinstance(s, OpenSource) else open_source(s) for s in sources]


def read_prompts(sources: Sequence[Source]) -> list[Prompt]:
    """Distinct prompts of all sources; those of weighted sources repeat as their weights ask.

    Prompts that differ in whitespace alone are the same; the first one stays.
    """
    return distinct_prompts(sources)[0]


def distinct_prompts(sources: Sequence[Source]) -> tuple[list[Prompt], int]:
    """Prompts as `read_prompts` gives them, and how many duplicates were left out."""
    opened = _opened(sources)
    kept = first_occurrences(b"".join(bytes(found.digests) for found in opened))
    parts: list[Sequence[Prompt]] = []
    start = 0
    for found in opened:
        own = kept[(kept >= start) & (kept < start + len(found.rows))] - start
        parts.append(View(found.rows, _prompt, [int(i) for i in own]))
        start += len(found.rows)
    return list(_mixed(opened, parts)), start - len(kept)


def read_demonstrations(
    sources: Sequence[Source], keep: Callable[[bytes], bool] | None = None
) -> Sequence[tuple[Prompt, str]]:
    """(prompt, response) pairs of all sources: answers to imitate.

    An hh source gives the preferred answers. PKU's rows give none: a more helpful answer may be a
    harmful one, and the safer of two harmful ones is not to be imitated either.
    """
    return _read(sources, _demonstration_of, keep)


def read_reward_pairs(
    sources: Sequence[Source], keep: Callable[[bytes], bool] | None = None
) -> Sequence[RewardPair]:
    """D_R of all sources: pku by `better_response_id`, hh sources that compare helpfulness."""
    return _read(sources, _reward_of, keep)


def read_cost_pairs(
    sources: Sequence[Source], keep: Callable[[bytes], bool] | None = None
) -> Sequence[CostPair]:
    """D_C of all sources: pku with signs, hh sources that compare harmlessness without (sign 0)."""
    return _read(sources, _cost_of, keep)


def read_category_pairs(
    sources: Sequence[Source],
    categories: Mapping[str, Sequence[str]],
    keep: Callable[[bytes], bool] | None = None,
) -> Sequence[CategoryPair]:
    """One pair per row with a label per category (category_pairs.py): rows of PKU-SafeRLHF v1."""

    def of(found: OpenSource) -> Callable[[Row], CategoryPair]:
        def convert(row: Row) -> CategoryPair:
            if not isinstance(row, PreferenceRow):
                raise _unfit(found, "harm categories are fields of PKU-SafeRLHF's rows alone")
            try:
                return category_pair(row, categories)
            except InputError as error:
                raise InputError(f"{found.source.path}: {error}") from error

        return convert

    return _read(sources, of, keep)


def held_out(share: float) -> tuple[Callable[[bytes], bool], Callable[[bytes], bool]]:
    """Filters of a training and a held-out part, by the prompt: no prompt is in both."""
    return (lambda found: share_of(found) >= share), (lambda found: share_of(found) < share)


def _read(
    sources: Sequence[Source],
    of: Callable[[OpenSource], Callable[[Row], T]],
    keep: Callable[[bytes], bool] | None = None,
) -> Sequence[T]:
    """The mixture of what `of` makes of each source's rows."""
    parts, opened = [], _opened(sources)
    for found in opened:
        convert = of(found)
        convert(found.rows[0])  # a source of the wrong kind shows at its first row
        parts.append(View(found.rows, convert, None if keep is None else _places(found, keep)))
    return _mixed(opened, parts)


def _places(found: OpenSource, keep: Callable[[bytes], bool]) -> list[int]:
    digests = bytes(found.digests)
    return [i for i in range(len(found.rows)) if keep(digests[16 * i : 16 * i + 16])]


def _mixed(opened: Sequence[OpenSource], parts: Sequence[Sequence[T]]) -> LazySequence[T]:
    """Parts by the weights of their sources."""
    sources = [found.source for found in opened]
    weights = [source.weight for source in sources if source.weight is not None]
    if weights and len(weights) < len(sources):
        without = next(source.path for source in sources if source.weight is None)
        raise InputError(
            f"{without} has no weight, but other sources of the mixture have one; give every "
            "source a weight, or none"
        )
    for source, part in zip(sources, parts, strict=True):
        if weights and not part:
            raise InputError(
                f"{source.path}: nothing is left of it (its prompts occur in the sources before, "
                "or the held-out share takes all), so it cannot have a share of the mixture"
            )
    return Mixture(parts, weights or None)


def _prompt(row: Row) -> Prompt:
    return row.prompt


def _demonstration_of(found: OpenSource) -> Callable[[Row], tuple[Prompt, str]]:
    def convert(row: Row) -> tuple[Prompt, str]:
        if isinstance(row, Demonstration | Comparison):
            return row.prompt, row.responses[0]
        raise _unfit(found, "demonstrations are rows of alpaca, messages, demonstrations or hh")

    return convert


def _reward_of(found: OpenSource) -> Callable[[Row], RewardPair]:
    def convert(row: Row) -> RewardPair:
        if isinstance(row, PreferenceRow):
            return reward_pair(row)
        if isinstance(row, Comparison) and _about(found, "helpfulness"):
            return RewardPair(row.prompt, row.chosen, row.rejected)
        raise _unfit(found, "a reward model learns from rows of pku, or of hh about helpfulness")

    return convert


def _cost_of(found: OpenSource) -> Callable[[Row], CostPair]:
    def convert(row: Row) -> CostPair:
        if isinstance(row, PreferenceRow):
            return cost_pair(row)
        if isinstance(row, Comparison) and _about(found, "harmlessness"):
            return CostPair(row.prompt, row.rejected, row.chosen, 0, 0)
        raise _unfit(found, "a cost model learns from rows of pku, or of hh about harmlessness")

    return convert


def _about(found: OpenSource, what: str) -> bool:
    """Whether the preferences of an hh source are about `what`, which it must declare."""
    if found.source.compares is None:
        raise InputError(
            f"{found.source.path}: rows of hh do not say what was compared; set compares = "
            "'helpfulness' (helpful-base) or 'harmlessness' (harmless-base) for this source"
        )
    return found.source.compares == what


def _unfit(found: OpenSource, expected: str) -> InputError:
    about = f" about {found.source.compares}" if found.format == "hh" else ""
    return InputError(
        f"{found.source.path}: holds rows of {found.format}{about}, but {expected}; {CHECK_DATA}"
    )


def format_of(source: DataSource, shards: Sequence[Shard]) -> tuple[Format, list[Shard]]:
    """The format of a source and its shards, of which one may have been begun to look inside."""
    if source.format != "auto":
        return source.format, list(shards)
    begun: list[Shard] = []
    for place, shard in enumerate(shards):
        lines, seen = shard.lines(), list[Line]()
        begun.append(Shard(shard.name, partial(chain, seen, lines), shard.plain))
        for line in lines:
            seen.append(line)
            value = _value(line)
            if isinstance(value, Mapping):
                form = detect(value, f"{shard.name}:{line.number}")
                return form, [*begun, *shards[place + 1 :]]
    return "prompts", begun  # no row is an object: the pass over all says what they are


def _value(line: Line) -> object:
    """What a line holds; None of a bad one, which the pass over all rows reports."""
    try:
        return parse(line)
    except FieldError:
        return None
