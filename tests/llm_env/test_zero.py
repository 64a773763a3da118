"""DeepSpeed's ZeRO on two CPU processes takes the steps of plain torch in one.

Every parameter is sharded (`keep_whole=0`), odd sizes among them: three value heads, 22 tokens.
"""

import warnings

import pytest
import torch
from torch.testing import assert_close

from constrained_rl.distributed import World
from constrained_rl.engines import Optimization
from constrained_rl.errors import InputError
from tests.llm_env.rank_jobs import (
    broken_on_the_last,
    descended_in_bfloat16,
    driven,
    trained,
)
from tests.llm_env.ranks import on_ranks
from tests.llm_env.test_distributed import agree
from tests.llm_env.tiny_alignment import (
    CRITIC_FREE,
    EVERYTHING,
    FEWER_ROWS_THAN_RANKS,
    align_config,
    rows_of,
    tiny_parts,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("deepspeed")

from llm_env.deepspeed_engine import DeepSpeedEngine, deepspeed_engines
from llm_env.deepspeed_setup import ZeRO

# DeepSpeed is made ready once, in one worker
pytestmark = [pytest.mark.xdist_group("deepspeed"), pytest.mark.usefixtures("deepspeed")]

OFFLOAD = {"offload_optimizer": True}


@pytest.fixture(scope="module")
def alone():
    return rows_of(tiny_parts(align_config()), 3)


STAGES = [[2, 3], pytest.param([0, 1], marks=pytest.mark.slow)]  # the two that shard most


@pytest.mark.parametrize("stages", STAGES)
def test_stages_on_two_ranks_take_the_steps_of_one_process(alone, tmp_path, stages):
    check(alone, tmp_path, stages, {})


@pytest.mark.parametrize("stages", STAGES)
def test_all_ranks_refuse_a_gradient_that_is_no_number_on_one(tmp_path, stages):
    for found in on_ranks(broken_on_the_last, 2, tmp_path, stages):
        assert len(found) == len(stages)
        for message, weight in found:
            assert message.startswith("gradient norm: 1 of 1 values are NaN or infinite")
            assert weight == [1.0] * 8


@pytest.mark.slow  # the other tests have buckets that hold everything
@pytest.mark.parametrize("stages", [[2, 3], [1]])
def test_gradients_and_weights_that_exceed_a_bucket_train_alike(
    alone, tmp_path, monkeypatch, stages
):
    monkeypatch.setattr("llm_env.deepspeed_setup.BUCKET", 100)  # of 350 in the embedding alone
    monkeypatch.setattr("llm_env.deepspeed_engine.BUCKET", 100)
    check(alone, tmp_path, stages, {"ppo": {"micro_batch": 2}})


@pytest.mark.slow
def test_micro_batches_and_offload_change_nothing(alone, tmp_path):
    check(alone, tmp_path, [0, 1, 2, 3, (2, OFFLOAD), (3, OFFLOAD)], {"ppo": {"micro_batch": 1}})


def check(alone, folder, kinds, settings):
    found = on_ranks(trained, 2, folder, kinds, [settings] * len(kinds))
    assert found[0] == found[1]
    for rows in found[0]:
        agree(rows, alone)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [EVERYTHING, CRITIC_FREE, FEWER_ROWS_THAN_RANKS])
def test_stages_take_the_steps_of_one_process_whatever_is_switched_on(settings, tmp_path):
    check(rows_of(tiny_parts(align_config(**settings)), 3), tmp_path, [0, 1, 2, 3], settings)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [0, 2, (3, OFFLOAD)])
def test_a_job_resumed_on_two_ranks_ends_in_the_same_bits(kind, tmp_path):
    for name, stops in {"whole": [4], "cut": [2, 4]}.items():
        (tmp_path / name).mkdir()
        for stop in stops:
            job = tmp_path / f"{name}-{stop}"
            found = on_ranks(driven, 2, job, kind, tmp_path / name, stop, {})
        if name == "whole":
            whole = found
    for (one, lam), (other, same_lam) in zip(whole, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert torch.equal(lam, same_lam)


@pytest.mark.slow
def test_a_job_goes_on_with_other_ranks_stages_and_engines(tmp_path):
    for name in ("whole", "moved"):
        (tmp_path / name).mkdir()
    whole, _ = driven("ddp", tmp_path / "whole", 5, {})
    for stop, (kind, size) in enumerate([("ddp", 1), (3, 2), (2, 2), (0, 1), (3, 1)], start=1):
        job = tmp_path / f"{stop}"
        found = on_ranks(driven, size, job, kind, tmp_path / "moved", stop, {})
    for a, b in zip(found[0][0], whole, strict=True):
        assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_small_steps_of_bfloat16_weights_add_up_at_every_stage(tmp_path):
    # 100 steps of 1e-4: 0.99 in the float32 copy, and to the nearest 2^-8 in the weight
    for found in on_ranks(descended_in_bfloat16, 2, tmp_path, ["ddp", 1, 2, 3], tmp_path):
        for weight, master in found:
            assert weight == pytest.approx([0.99] * 8, abs=2**-9)
            assert master == pytest.approx([0.99] * 8, abs=1e-5)  # float32 counts to 6e-8


def test_reduced_precision_at_stage_0_is_refused():
    model = torch.nn.Linear(2, 2).bfloat16()
    with pytest.raises(InputError, match=r"set distributed.zero to 1 or more"):
        DeepSpeedEngine(model, Optimization(0.1, (0.9, 0.999), 1.0), World(), ZeRO(0))


def test_offload_without_sharding_is_refused():
    with pytest.raises(InputError, match=r"offload_optimizer needs distributed.zero ≥ 1"):
        deepspeed_engines(World(), ZeRO(0, offload_optimizer=True))
