"""What a file of preference rows holds: `crl llm check-data`.

One pass over the file. Lengths are whole numbers, so their counts give exact quantiles; duplicates
are found by 16-byte digests, 32 bytes of memory per row, sorted at the end. Nothing else grows with
the file. Absent: token counts, which need a tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_env.preferences import PreferenceRow, sift
from llm_env.prompts import Prompt, turns
from llm_env.quarantine import Tally

if TYPE_CHECKING:
    from rich.table import Table

DIGEST_BYTES = 16


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
    """A file of preference rows in numbers; shares are of good rows unless said otherwise."""

    file: str
    rows: int  # good ones
    bad_rows: int
    bad_share: float  # of all rows
    bad_reasons: dict[str, int]  # bad rows by their first problem, the most frequent first
    agreement: float  # better_response_id == safer_response_id
    safe_responses: float  # share of all responses
    both_safe: float
    both_unsafe: float
    mixed: float  # one of each
    empty_responses: int
    duplicate_rows: int  # rows beyond the first with the same prompt, responses and labels
    duplicate_prompts: int  # rows beyond the first with the same prompt
    turns: dict[str, int]  # rows by the number of turns in their prompt
    prompt_words: Lengths
    prompt_characters: Lengths
    response_words: Lengths
    response_characters: Lengths

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False)


class Collected:
    """Counts over rows seen one at a time."""

    def __init__(self) -> None:
        self.labels: Counter[tuple[bool, int]] = Counter()  # (orders agree, safe responses 0 … 2)
        self.turns: Counter[int] = Counter()
        self.words: dict[str, Counter[int]] = {"prompt": Counter(), "response": Counter()}
        self.characters: dict[str, Counter[int]] = {"prompt": Counter(), "response": Counter()}
        self.row_digests, self.prompt_digests = bytearray(), bytearray()

    def add(self, row: PreferenceRow) -> None:
        """Count one row."""
        self.labels[row.better_response_id == row.safer_response_id, sum(row.safe)] += 1
        self.turns[turns(row.prompt)] += 1
        prompt = row.prompt if isinstance(row.prompt, str) else json.dumps(row.prompt)
        self._measure("prompt", _spoken(row.prompt))
        for response in row.responses:
            self._measure("response", response)
        of_prompt = _digest(prompt)
        self.prompt_digests += of_prompt
        labels = (*row.safe, row.better_response_id, row.safer_response_id)
        self.row_digests += _digest(of_prompt.hex(), *row.responses, repr(labels))

    def _measure(self, part: str, text: str) -> None:
        self.words[part][len(text.split())] += 1
        self.characters[part][len(text)] += 1

    def statistics(self, tally: Tally) -> Statistics:
        """The numbers of all rows so far, of which there is at least one."""
        safe = [sum(n for (_, s), n in self.labels.items() if s == count) for count in range(3)]
        rows = sum(safe)
        return Statistics(
            file=str(tally.path),
            rows=rows,
            bad_rows=tally.bad,
            bad_share=tally.share,
            bad_reasons=dict(tally.reasons.most_common()),
            agreement=sum(n for (agree, _), n in self.labels.items() if agree) / rows,
            safe_responses=(safe[1] + 2 * safe[2]) / (2 * rows),
            both_safe=safe[2] / rows,
            both_unsafe=safe[0] / rows,
            mixed=safe[1] / rows,
            empty_responses=self.words["response"][0],
            duplicate_rows=_duplicates(self.row_digests),
            duplicate_prompts=_duplicates(self.prompt_digests),
            turns={str(count): self.turns[count] for count in sorted(self.turns)},
            prompt_words=quantiles(self.words["prompt"]),
            prompt_characters=quantiles(self.characters["prompt"]),
            response_words=quantiles(self.words["response"]),
            response_characters=quantiles(self.characters["response"]),
        )


def check_preferences(
    path: str | Path, max_bad: float = 0.0, quarantine: str | Path | None = None
) -> Statistics:
    """Read a file as training does and count what it holds.

    Raises:
        InputError: more than the share `max_bad` of all rows is bad; see `sift`.
    """
    tally, collected = Tally(Path(path)), Collected()
    for row in sift(path, max_bad, quarantine, tally):
        collected.add(row)
    return collected.statistics(tally)


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
    for name, value in asdict(statistics).items():
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


def _digest(*texts: str) -> bytes:
    """16 bytes that differ for different texts."""
    found = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for text in texts:
        data = text.encode("utf-8")
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.digest()


def _duplicates(digests: bytearray) -> int:
    """Number of digests that occurred before."""
    pairs = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
    ordered = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    return int((ordered[1:] == ordered[:-1]).all(axis=1).sum())
