"""Which texts are the same? 16 bytes of each are kept, and compared all at once."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from llm_env.prompts import Prompt

DIGEST_BYTES = 16


def digest(*texts: str) -> bytes:
    """16 bytes that differ for different texts."""
    found = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.digest()


def prompt_digest(prompt: Prompt) -> bytes:
    """Digest of a prompt after whitespace normalisation: runs of it count as one space.

    A single turn is the same prompt as a string and as a message.
    """
    if isinstance(prompt, str):
        turns = [("user", prompt)]
    else:
        turns = [
            (("user", "assistant")[i % 2], turn)
            if isinstance(turn, str)
            else (turn["role"], turn["content"])
            for i, turn in enumerate(prompt)
        ]
    return digest(json.dumps([(role, " ".join(text.split())) for role, text in turns]))


def first_occurrences(digests: bytes | bytearray) -> NDArray[np.int64]:
    """Index of the first of each different digest, ascending: [distinct]."""
    pairs = np.frombuffer(digests, dtype="<u8").reshape(-1, DIGEST_BYTES // 8)
    order = np.lexsort((pairs[:, 0], pairs[:, 1]))  # stable: equal digests in their own order
    ordered = pairs[order]
    fresh = np.ones(len(pairs), dtype=bool)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.sort(order[fresh])


def share_of(found: bytes) -> float:
    """A number in [0, 1) that is uniform over digests: assigns rows to splits by their text."""
    return int.from_bytes(found[:8], "little") / 2**64
