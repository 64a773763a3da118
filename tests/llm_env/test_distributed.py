"""Two processes are one: whole Safe RLHF steps with DDP, on the CPU."""

import pytest
import torch
from torch.testing import assert_close

from constrained_rl.distributed import World
from constrained_rl.errors import InputError
from tests.llm_env.rank_jobs import broken_on_the_last, driven, trained
from tests.llm_env.ranks import on_ranks
from tests.llm_env.tiny_alignment import (
    CRITIC_FREE,
    EVERYTHING,
    FEWER_ROWS_THAN_RANKS,
    align_config,
    rows_of,
    tiny_parts,
)


def agree(found, expected, tolerance=1e-4):
    """Every metric of every iteration, within a relative or absolute 1e-4: float32's rounding."""
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=tolerance, abs=tolerance)
        assert row["lambda/cost"] == pytest.approx(other["lambda/cost"], rel=1e-5)


@pytest.fixture(scope="module")
def alone():
    """One process, all rows in one forward and backward."""
    return rows_of(tiny_parts(align_config()), 3)


def test_the_run_that_all_are_compared_with_is_no_trivial_one(alone):
    assert len({row["lambda/cost"] for row in alone}) == 3  # λ moves
    assert all(row["kl/approx"] > 1e-5 and row["loss/ptx"] > 0 for row in alone)
    lengths = tiny_parts(align_config()).collector.collect().episodes.length
    assert lengths[:5].max() != lengths[5:].max()  # the ranks' longest responses differ


def test_two_ranks_take_the_steps_of_one_whatever_the_micro_batch(alone, tmp_path):
    settings = [{"ppo": {"micro_batch": size}} for size in (1, 4)]
    found = on_ranks(trained, 2, tmp_path, ["ddp"] * 2, settings)
    assert found[0] == found[1]  # every rank knows the same numbers, to the last bit
    for rows in found[0]:
        agree(rows, alone)


def test_two_ranks_take_the_steps_of_one_whatever_is_switched_on(tmp_path):
    settings = [EVERYTHING, CRITIC_FREE, FEWER_ROWS_THAN_RANKS]
    found = on_ranks(trained, 2, tmp_path, ["ddp"] * 3, settings)
    assert found[0] == found[1]
    for rows, one in zip(found[0], settings, strict=True):
        agree(rows, rows_of(tiny_parts(align_config(**one)), 3))


@pytest.mark.parametrize("size", [1, 4, 16])
def test_one_process_takes_the_same_steps_whatever_the_micro_batch(alone, size):
    agree(rows_of(tiny_parts(align_config(ppo={"micro_batch": size})), 3), alone)


@pytest.mark.parametrize("most", [1, 3, 10])
def test_what_is_sampled_does_not_depend_on_how_many_rows_are_decoded_together(most):
    whole = tiny_parts(align_config()).collector
    pieces = tiny_parts(align_config(generation_batch=most)).collector
    for _ in range(2):  # the generator stands where it would
        one, other = whole.collect(), pieces.collect()
        assert torch.equal(one.action, other.action)
        assert torch.equal(one.mask, other.mask)
        assert_close(one.behaviour_logp, other.behaviour_logp)
        assert_close(one.reward, other.reward)


@pytest.mark.slow
def test_three_ranks_of_which_one_has_fewer_rows(alone, tmp_path):
    found = on_ranks(trained, 3, tmp_path, ["ddp"], [{"ppo": {"micro_batch": 1}}])
    agree(found[2][0], alone)


def test_a_job_resumed_on_two_ranks_ends_in_the_same_bits(tmp_path):
    # schedules span to where a job is told to end, which differs here
    constant = {"schedule": "constant", "warmup": 0.0, "entropy_schedule": "constant"}
    settings = EVERYTHING | {"ppo": EVERYTHING["ppo"] | constant}
    for name, stops in {"whole": [4], "cut": [2, 4]}.items():
        (tmp_path / name).mkdir()
        for stop in stops:
            job = tmp_path / f"{name}-{stop}"
            found = on_ranks(driven, 2, job, "ddp", tmp_path / name, stop, settings)
        if name == "whole":
            whole = found
    for (one, lam), (other, same_lam) in zip(whole, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert torch.equal(lam, same_lam)


def test_a_job_goes_on_with_another_number_of_ranks(tmp_path):
    (tmp_path / "whole").mkdir()
    whole, _ = driven("ddp", tmp_path / "whole", 4, {})
    for first, second in ((1, 2), (2, 1)):
        folder = tmp_path / f"{first}-{second}"
        folder.mkdir()
        on_ranks(driven, first, tmp_path / f"{first}", "ddp", folder, 2, {})
        found = on_ranks(driven, second, tmp_path / f"then{second}", "ddp", folder, 4, {})
        for a, b in zip(found[0][0], whole, strict=True):
            assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_all_ranks_refuse_a_gradient_that_is_no_number_on_one(tmp_path):
    for found in on_ranks(broken_on_the_last, 2, tmp_path, ["ddp"]):
        ((message, weight),) = found
        assert message.startswith("gradient norm: 1 of 1 values are NaN or infinite")
        assert weight == [1.0] * 8


def test_rows_are_divided_evenly_and_in_order():
    worlds = [World(rank, 3) for rank in range(3)]
    assert [world.slice(7) for world in worlds] == [slice(0, 2), slice(2, 4), slice(4, 7)]
    index, real = worlds[0].padded(7)
    assert (index.tolist(), real.tolist()) == ([0, 1, 2], [True, True, False])
    index, real = World(0, 3).padded(2)  # a rank without a row runs one that weighs nothing
    assert (index.tolist(), real.tolist()) == ([0], [False])


def test_a_rank_without_a_response_to_generate_is_refused():
    from constrained_rl.engines import Engines

    with pytest.raises(InputError, match=r"align.prompts gives 10, but there are 11 ranks"):
        tiny_parts(align_config(ppo={"minibatches": 1}), Engines(World(0, 11)))
