"""Where are the token ids of a million examples while a model is fitted to them?

In a temporary file without a name (in memory up to 64 MiB): 4 bytes per token there, 16 per example
in memory. Examples are tokenized once, in order, so their texts are neither kept nor read again.
What does not fit the context is an error that counts, or is left out and counted.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
import weakref
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Generic, Literal, TypeAlias, TypeVar

import numpy as np

from constrained_rl.errors import InputError
from llm_env.data.lazy import LazySequence
from llm_env.prompts import Prompt
from llm_env.tokens import TokenPair

E = TypeVar("E")
OverLength = Literal["error", "drop"]
Encode: TypeAlias = Callable[[Sequence[Prompt], Sequence[str]], list[TokenPair]]
"""Ids of prompts and of their responses"""
IN_MEMORY = 64 * 2**20  # bytes
CHUNK = 256  # examples tokenized together


class DroppedWarning(UserWarning):
    """Examples were left out."""


class TokenStore(LazySequence[TokenPair]):
    """Prompt ids and response ids with their eos, appended once and read in any order."""

    def __init__(self) -> None:
        # closed with the store; a context manager would end with this function
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._start = array("Q", [0])  # tokens before each example, and after the last
        self._prompt = array("I")  # tokens of each prompt
        self._digest = hashlib.blake2b(digest_size=16)

    def append(self, pair: TokenPair) -> None:
        """Add an example."""
        prompt, answer = pair
        data = np.asarray([*prompt, *answer], dtype="<i4").tobytes()
        try:
            self._file.write(data)
        except OSError as error:
            raise InputError(
                f"{tempfile.gettempdir()}: cannot hold the token ids ({error.strerror} after "
                f"{self._start[-1] / 2**18:.0f} MiB); free space, or set TMPDIR to a larger disk"
            ) from error
        self._digest.update(len(prompt).to_bytes(4, "little") + len(data).to_bytes(4, "little"))
        self._digest.update(data)
        self._start.append(self._start[-1] + len(prompt) + len(answer))
        self._prompt.append(len(prompt))

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._prompt)

    def at(self, place: int) -> TokenPair:
        """Ids of an example's prompt and of its response."""
        start, end, prompt = self._start[place], self._start[place + 1], self._prompt[place]
        self._file.seek(4 * start)
        ids: list[int] = np.frombuffer(self._file.read(4 * (end - start)), dtype="<i4").tolist()
        return ids[:prompt], ids[prompt:]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [after - before for before, after in pairwise(self._start)]

    @property
    def answer_lengths(self) -> list[int]:
        """Tokens of each response, eos included."""
        return [n - p for n, p in zip(self.lengths, self._prompt, strict=True)]

    @property
    def digest(self) -> str:
        """Tells examples from others."""
        return self._digest.hexdigest()


@dataclass(frozen=True)
class Encoded(Generic[E]):
    """Tokenized examples: one store per response."""

    stores: tuple[TokenStore, ...]
    dropped: int


@dataclass(frozen=True)
class Texts(Generic[E]):
    """What is tokenized of an example, and who is told of those that are kept."""

    of: Callable[[E], tuple[Prompt, Sequence[str]]]
    keep: Callable[[E], object] = lambda _: None


def encode_examples(
    encode: Encode,
    examples: Iterable[E],
    texts: Texts[E],
    limit: int | None,
    over_length: OverLength = "error",
) -> Encoded[E]:
    """Tokenize examples chunk by chunk.

    Raises:
        InputError: examples have more than `limit` tokens and may not be dropped, or all have; the
            message counts them.
    """
    stores: tuple[TokenStore, ...] = ()
    seen = dropped = 0
    first = ""
    source = iter(examples)
    while chunk := list(islice(source, CHUNK)):
        for example, pairs in zip(chunk, _encode(encode, chunk, texts), strict=True):
            stores = stores or tuple(TokenStore() for _ in pairs)
            longest = max(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
            if limit is not None and len(longest[0]) + len(longest[1]) > limit:
                first = first or (
                    f"pair {seen} has {len(longest[0])} + {len(longest[1])} tokens (prompt, "
                    "response with eos)"
                )
                dropped += 1
            else:
                texts.keep(example)
                for store, pair in zip(stores, pairs, strict=True):
                    store.append(pair)
            seen += 1
    if dropped:
        found = f"{dropped} of {seen} examples do not fit the limit of {limit} tokens: {first}"
        if over_length == "error" or dropped == seen:
            raise InputError(
                f"{found}; shorten them, raise max_tokens (at most to the model's context), or "
                "leave them out with over_length = 'drop'"
            )
        warnings.warn(f"{found}; they are left out", DroppedWarning, stacklevel=2)
    return Encoded(stores, dropped)


def _encode(encode: Encode, chunk: Sequence[E], texts: Texts[E]) -> list[list[TokenPair]]:
    """Token pairs of each example, one per response."""
    parts = [texts.of(example) for example in chunk]
    prompts = [prompt for prompt, _ in parts]
    by_response = [
        encode(prompts, [responses[which] for _, responses in parts])
        for which in range(len(parts[0][1]))
    ]
    return [list(pairs) for pairs in zip(*by_response, strict=True)]
