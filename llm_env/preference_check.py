"""What a file or folder of training data holds, in any format: `crl llm check-data`.

One pass over all rows. Lengths are whole numbers, so their counts give exact quantiles; duplicates
are found by 16-byte digests, 32 bytes of memory per row, sorted at the end. Nothing else grows with
the file. Absent: token counts, which need a tokenizer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_env.category_pairs import FIELD
from llm_env.data.digests import digest, first_occurrences, prompt_digest
from llm_env.data.formats import Row, reader
from llm_env.data.shards import shards_of
from llm_env.data_sources import DataSource, format_of
from llm_env.preferences import PreferenceRow, checked, sift_rows
from llm_env.prompts import Prompt, turns
from llm_env.quarantine import Tally

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Lengths:
    """Quantiles of whole numbers: the smallest with at least that share at or below it."""

    smallest: int
    q05: int
    median: int
    q95: int
    largest: int


@dataclass(frozen=True)
class Statistics:
    """Data in numbers; shares are of good rows unless said otherwise.

    None: the format has no such thing (labels, responses), or none of its rows.
    """

    file: str
    format: str
    rows: int  # good ones
    bad_rows: int
    bad_share: float  # of all rows
    bad_reasons: dict[str, int]  # bad rows by their first problem, the most frequent first
    agreement: float | None  # better_response_id == safer_response_id
    safe_responses: float | None  # share of all responses
    both_safe: float | None
    both_unsafe: float | None
    mixed: float | None  # one of each
    categories: dict[str, int] | None  # harmful responses by category, as labelled
    empty_responses: int
    duplicate_rows: int  # rows beyond the first with the same prompt, responses and labels
    duplicate_prompts: int  # rows beyond the first with the same prompt but for whitespace
    turns: dict[str, int]  # rows by the number of turns in their prompt
    prompt_words: Lengths
    prompt_characters: Lengths
    response_words: Lengths | None
    response_characters: Lengths | None

    def to_json(self) -> str:
        """One JSON object; what is None is left out."""
        return json.dumps(self.known(), ensure_ascii=False)

    def known(self) -> dict[str, Any]:
        """All numbers that there are."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Collected:
    """Counts over rows seen one at a time."""

    def __init__(self) -> None:
        self.labels: Counter[tuple[bool, int]] = Counter()  # (orders agree, safe responses 0 … 2)
        self.categories: Counter[str] = Counter()
        self.turns: Counter[int] = Counter()
        self.words: dict[str, Counter[int]] = {"prompt": Counter(), "response": Counter()}
        self.characters: dict[str, Counter[int]] = {"prompt": Counter(), "response": Counter()}
        self.row_digests, self.prompt_digests = bytearray(), bytearray()

    def add(self, row: Row) -> None:
        """Count one row."""
        self.turns[turns(row.prompt)] += 1
        self._measure("prompt", _spoken(row.prompt))
        for response in row.responses:
            self._measure("response", response)
        of_prompt = prompt_digest(row.prompt)
        self.prompt_digests += of_prompt
        labels = self._label(row) if isinstance(row, PreferenceRow) else ()
        self.row_digests += digest(of_prompt.hex(), *row.responses, repr(labels))

    def _label(self, row: PreferenceRow) -> tuple[int, ...]:
        """Count the labels of a row, and return those that make it another row."""
        self.labels[row.better_response_id == row.safer_response_id, sum(row.safe)] += 1
        for which in (0, 1):
            found = (row.model_extra or {}).get(FIELD.format(which))
            if isinstance(found, Mapping):
                self.categories.update({name: int(bool(value)) for name, value in found.items()})
        return (*row.safe, row.better_response_id, row.safer_response_id)

    def _measure(self, part: str, text: str) -> None:
        self.words[part][len(text.split())] += 1
        self.characters[part][len(text)] += 1

    def statistics(self, tally: Tally, form: str) -> Statistics:
        """The numbers of all rows so far, of which there is at least one."""
        rows, labelled = sum(self.turns.values()), sum(self.labels.values())
        safe = [sum(n for (_, s), n in self.labels.items() if s == count) for count in range(3)]
        agree = sum(n for (agree, _), n in self.labels.items() if agree)

        def share(count: float) -> float | None:
            return count / labelled if labelled else None

        def lengths(counts: Mapping[int, int]) -> Lengths | None:
            return quantiles(counts) if counts else None

        return Statistics(
            file=str(tally.path),
            format=form,
            rows=rows,
            bad_rows=tally.bad,
            bad_share=tally.share,
            bad_reasons=dict(tally.reasons.most_common()),
            agreement=share(agree),
            safe_responses=share(safe[1] / 2 + safe[2]),
            both_safe=share(safe[2]),
            both_unsafe=share(safe[0]),
            mixed=share(safe[1]),
            categories=dict(self.categories.most_common()) or None,
            empty_responses=self.words["response"][0],
            duplicate_rows=rows - len(first_occurrences(self.row_digests)),
            duplicate_prompts=rows - len(first_occurrences(self.prompt_digests)),
            turns={str(count): self.turns[count] for count in sorted(self.turns)},
            prompt_words=quantiles(self.words["prompt"]),
            prompt_characters=quantiles(self.characters["prompt"]),
            response_words=lengths(self.words["response"]),
            response_characters=lengths(self.characters["response"]),
        )


def check_preferences(
    path: str | Path, max_bad: float = 0.0, quarantine: str | Path | None = None
) -> Statistics:
    """Read a file or folder of any format as training does and count what it holds.

    Raises:
        InputError: more than the share `max_bad` of all rows is bad; see `sift_rows`.
    """
    return check_source(DataSource(path=str(path)), max_bad, quarantine)


def check_source(
    source: DataSource, max_bad: float = 0.0, quarantine: str | Path | None = None
) -> Statistics:
    """As `check_preferences`, in the format that the source names."""
    form, shards = format_of(source, shards_of(source.path))
    tally, collected = Tally(Path(source.path)), Collected()
    several = len(shards) > 1
    rows = (
        checked(line, reader(form), shard.name if several else None)
        for shard in shards
        for line in shard.lines()
    )
    good: Iterator[Row] = sift_rows(rows, max_bad, quarantine, tally)
    for row in good:
        collected.add(row)
    return collected.statistics(tally, form)


def quantiles(counts: Mapping[int, int]) -> Lengths:
    """Exact quantiles of whole numbers from their counts.

    >>> quantiles({1: 1, 2: 1, 9: 2})
    Lengths(smallest=1, q05=1, median=2, q95=9, largest=9)
    """
    values = sorted(value for value, count in counts.items() if count)
    below = list(accumulate(counts[value] for value in values))

    def quantile(percent: int) -> int:
        return next(v for v, n in zip(values, below, strict=True) if 100 * n >= percent * below[-1])

    return Lengths(values[0], quantile(5), quantile(50), quantile(95), values[-1])


def key_values(statistics: Statistics) -> Iterator[tuple[str, str]]:
    """Flat names and values, nested ones as `section.name`."""
    for name, value in statistics.known().items():
        for key, part in value.items() if isinstance(value, dict) else [("", value)]:
            text = f"{part:.4f}" if isinstance(part, float) else str(part)
            yield f"{name}.{key}" if key else name, text


def table(statistics: Statistics) -> Table:
    """The same for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    found = Table("what", "value", show_header=False)
    for name, value in key_values(statistics):
        found.add_row(escape(name.replace("_", " ")), escape(value))
    return found


def _spoken(prompt: Prompt) -> str:
    """All turns of a prompt as one text."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(turn if isinstance(turn, str) else turn["content"] for turn in prompt)
