"""Which of how many processes is this, and what do they tell each other?

Every rank holds the whole rollout; ranks divide forwards and generation. What is computed from the
rollout (λ, whitening, the order of minibatches) is therefore equal on all ranks without a word
between them. Collectives are few: rows are gathered, sums added, a wish to stop is shared.
One process needs none of it, and torch.distributed is not touched then.
Absent: tensor and pipeline parallelism, elastic numbers of ranks within one job.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from constrained_rl.errors import InputError, RankError

Value = TypeVar("Value")
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and deepspeed put into the environment of each process they start."""


@dataclass(frozen=True)
class World:
    """This process among `size`; rows of a batch are divided in contiguous, balanced slices."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    timeout: float = 600.0

    @property
    def first(self) -> bool:
        """Whether this rank logs and writes."""
        return self.rank == 0

    def slice(self, rows: int) -> slice:
        """The rows of a batch that are this rank's; no two ranks differ by more than one."""
        return slice(*self._bounds(rows, self.rank))

    def padded(self, rows: int) -> tuple[Tensor, Tensor]:
        """This rank's rows, repeated to the longest slice: index and whether it is real, [b] each.

        Ranks that shard weights must run the same number of forwards.
        """
        start, end = self._bounds(rows, self.rank)
        place = torch.arange(self._longest(rows))
        return (start + place).clamp_max(rows - 1), place < end - start

    def gather(self, mine: Tensor, rows: int) -> Tensor:
        """All `rows` of a batch in order, from every rank's slice; extra rows of it are left out.

        `mine` [≥ own rows, …] has one shape on all ranks but for its rows, and any dtype.
        """
        if self.size == 1:
            return mine
        own, longest = self.slice(rows), self._longest(rows)
        sent = mine.new_zeros(longest, *mine.shape[1:])
        sent[: own.stop - own.start] = mine[: own.stop - own.start]
        # gloo and NCCL do not know bool; the bytes are the same
        wire = sent.view(torch.uint8) if sent.dtype == torch.bool else sent
        wire = wire.to(self.device)
        parts = [torch.empty_like(wire) for _ in range(self.size)]
        dist.all_gather(parts, wire)
        kept = []
        for rank, part in enumerate(parts):
            start, end = self._bounds(rows, rank)
            kept.append(part.to(mine.device).view(mine.dtype)[: end - start])
        return torch.cat(kept)

    def sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars added over ranks, on the CPU in float64; the same names on every rank."""
        if self.size == 1:
            return dict(values)
        total = torch.stack([value.detach().double().cpu() for value in values.values()])
        total = total.to(self.device)
        dist.all_reduce(total)
        return dict(zip(values, total.cpu().unbind(), strict=True))

    def maximum(self, value: int) -> int:
        """The largest of the ranks' numbers."""
        if self.size == 1:
            return value
        found = torch.tensor(value, device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        return bool(self.maximum(int(flag)))

    def same(self, value: Value) -> Value:
        """Rank 0's value: a text, a list of numbers, whatever can be pickled."""
        if self.size == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0, device=self.device)
        return said[0]

    def together(self, mine: list[Value]) -> list[Value]:
        """All ranks' lists as one, in the order of ranks."""
        if self.size == 1:
            return mine
        parts: list[list[Value]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, mine)
        return [value for part in parts for value in part]

    def on_first(self, action: Callable[[], None]) -> None:
        """Let rank 0 act while the others wait; they raise `RankError` when it fails there."""
        if self.size == 1:
            action()
            return
        failed: list[str | None] = [None]
        if self.first:
            try:
                action()
            except BaseException as error:
                failed[0] = f"{type(error).__name__}: {error}"
                dist.broadcast_object_list(failed, src=0, device=self.device)
                raise
        dist.broadcast_object_list(failed, src=0, device=self.device)
        if failed[0] is not None:
            raise RankError(f"rank 0 failed, and with it the job: {failed[0]}")

    def _bounds(self, rows: int, rank: int) -> tuple[int, int]:
        return rows * rank // self.size, rows * (rank + 1) // self.size

    def _longest(self, rows: int) -> int:
        return -(-rows // self.size)


def speaks() -> bool:
    """Whether this process prints what the job has to say; known without joining it."""
    return os.environ.get("RANK", "0") == "0"


def connect(device: torch.device, timeout: float) -> World:
    """Join the job that a launcher started, or be the only process.

    gloo on CPUs, NCCL on GPUs, one GPU per rank. `InputError` where the launcher's environment is
    incomplete or the other ranks do not come within `timeout` seconds.
    """
    size, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if size == 1:
        return World(device=device, timeout=timeout)
    missing = [name for name in LAUNCHER if name not in os.environ]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise InputError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} {are} not set; start the job with "
            f"torchrun --nproc-per-node {size} -m llm_env …, or unset WORLD_SIZE for one process"
        )
    if ":" in str(device):
        raise InputError(
            f"device is '{device}', but each of {size} ranks takes a GPU of its own; set "
            "device=cuda, and choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    if device.type == "cuda":
        device = _own_gpu()
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend, timeout=timedelta(seconds=timeout), rank=rank, world_size=size
        )
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(
            f"rank {rank} of {size} could not join the others at {where} within {timeout:g} s "
            f"(distributed.timeout): {error}"
        ) from error
    return World(rank, size, device, timeout)


def _own_gpu() -> torch.device:
    local, found = _number("LOCAL_RANK", 0), torch.cuda.device_count()
    if local >= found:
        raise InputError(
            f"local rank {local} has no GPU: torch sees {found}; start at most {found} processes "
            "per node, or set device='cpu'"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise InputError(f"environment variable {name} is {text!r}, expected a number")
    return int(text)


@contextmanager
def joined(world: World) -> Iterator[World]:
    """Leave the job in good order; a broken collective becomes a `RankError` that says what to do.

    After an error nothing is said to the other ranks: they notice the closed connection at once
    (or after `timeout`), and waiting for them here would be the hang that is to be avoided.
    """
    try:
        yield world
    except RuntimeError as error:
        if world.size == 1 or not _is_of_a_collective(error):
            raise
        raise RankError(
            f"rank {world.rank} of {world.size} lost the others: one of them ended with an error "
            f"of its own, was killed, or kept it waiting longer than {world.timeout:g} s "
            f"(distributed.timeout). Checkpoints that were written are intact: continue with the "
            f"same launcher and `-m llm_env resume FOLDER`. [{_first_line(error)}]"
        ) from error
    finally:
        if dist.is_initialized():
            _never_destruct_groups()
    if dist.is_initialized():
        dist.destroy_process_group()


def _never_destruct_groups() -> None:
    """Keep the objects behind process groups until the process ends.

    Without this, finished jobs on gloo hung now and then where their last objects were released,
    one thread in that release and one outside Python; none did in a dozen jobs with it. Probably
    the destructor waits for gloo's workers with Python's lock held, which a worker wants.
    """
    for group in list(dist.distributed_c10d._world.pg_map):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


SIGNS = ("connection closed", "connection reset", "timed out", "timeout", "broken pipe", "nccl")
"""How gloo and NCCL say that a peer is gone; only NCCL's have a class of their own."""


def _is_of_a_collective(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(sign in text for sign in SIGNS)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
