"""Two processes are one: the same Safe RLHF steps, with DDP."""

import pytest
import torch
from ranks import on_ranks
from tiny_alignment import align_config, rows_of, tiny_parts

from constrained_rl.distributed import connect, joined
from constrained_rl.engines import Engines


def ddp(settings, iterations):
    with joined(connect(torch.device("cpu"), 60.0)) as world:
        parts = tiny_parts(align_config(**settings), Engines(world))
        return rows_of(parts, iterations)


def agree(found, expected, tolerance=2e-4):
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=tolerance, abs=tolerance)


@pytest.fixture(scope="module")
def alone():
    return rows_of(tiny_parts(align_config()), 3)


def test_two_ranks_take_the_steps_of_one(alone, tmp_path):
    assert len({row["lambda/cost"] for row in alone}) == 3  # λ moves
    found = on_ranks(ddp, 2, tmp_path, {}, 3)
    assert found[0] == found[1]
    agree(found[0], alone)
