"""How are the rows of large files read in any order? By an index of byte offsets.

One pass reads and checks every row; of a good one its place stays in memory (18 bytes), its text
does not. What has no places of its own (archives, parquet, objects from Python) is copied once,
row by row and uncompressed, into a temporary file without a name (in TMPDIR), which the system
removes with the process, however that ends. Plain .jsonl files are read where they are.
Absent: several passes over a generator, Windows (os.pread).
"""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterator
from typing import IO, TypeVar

from pydantic import ValidationError

from constrained_rl.errors import InputError
from llm_env.data.lazy import LazySequence
from llm_env.data.shards import Shard
from llm_env.jsonl import Line
from llm_env.preferences import checked
from llm_env.prompts import FieldError
from llm_env.quarantine import BadRow

T = TypeVar("T")


class RowIndex(LazySequence[T]):
    """Good rows of shards, read and checked again whenever one is asked for."""

    def __init__(self, read: Callable[[Line], T]) -> None:
        self._read = read
        self._files: list[IO[bytes]] = []
        self._names: list[str] = []
        self._spool: IO[bytes] | None = None
        self._end = 0  # of the spool
        self._file, self._offset = array("H"), array("Q")
        self._size, self._number = array("I"), array("I")

    def scan(self, shard: Shard) -> Iterator[T | BadRow]:
        """Read a shard once; its good rows become part of the index as they come by."""
        file = self._add_file(shard)
        spool = self._spool_file() if shard.plain is None else None
        for line in shard.lines():
            row = checked(line, self._read, shard.name)
            if not isinstance(row, BadRow):
                offset = line.offset if spool is None else self._write(spool, line.data)
                self._file.append(file)
                self._offset.append(offset)
                self._size.append(len(line.data))
                self._number.append(line.number)
            yield row
        if spool is not None:
            spool.flush()

    def __len__(self) -> int:
        """Number of good rows."""
        return len(self._offset)

    def at(self, place: int) -> T:
        """A row, read from its file."""
        file = self._files[self._file[place]].fileno()
        data = os.pread(file, self._size[place], self._offset[place])
        try:
            return self._read(Line(self._number[place], data, len(data)))
        except (FieldError, ValidationError) as error:
            raise InputError(
                f"{self.where(place)}: the row was changed since it was read first ({error}); "
                "leave data files alone while they are trained on"
            ) from error

    def where(self, place: int) -> str:
        """File and line of a row."""
        return f"{self._names[self._file[place]]}:{self._number[place]}"

    def _add_file(self, shard: Shard) -> int:
        """Register what the rows of a shard will be read from."""
        file = self._spool_file() if shard.plain is None else self._open(shard)
        self._files.append(file)
        self._names.append(shard.name)
        return len(self._files) - 1

    def _open(self, shard: Shard) -> IO[bytes]:
        assert shard.plain is not None
        try:
            file = shard.plain.open("rb", buffering=0)
        except OSError as error:
            raise InputError(f"{shard.name}: cannot be read ({error.strerror})") from error
        weakref.finalize(self, file.close)
        return file

    def _spool_file(self) -> IO[bytes]:
        if self._spool is None:
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115 — closed with the index
            weakref.finalize(self, self._spool.close)
        return self._spool

    def _write(self, spool: IO[bytes], data: bytes) -> int:
        """Append to the spool; the offset of what was written."""
        try:
            spool.write(data)
        except OSError as error:
            raise InputError(
                f"{tempfile.gettempdir()}: cannot hold a copy of the rows ({error.strerror} after "
                f"{self._end / 2**20:.0f} MiB); free space, set TMPDIR to a larger disk, or give "
                "uncompressed .jsonl files, which are read where they are"
            ) from error
        offset, self._end = self._end, self._end + len(data)
        return offset
