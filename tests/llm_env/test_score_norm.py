import pytest
import torch
from torch.testing import assert_close

from constrained_rl.config import CheckpointConfig
from constrained_rl.errors import InputError
from constrained_rl.ppo import train
from constrained_rl.run import drive
from llm_env.score_norm import ScoreNorm
from tests.llm_env.test_safe_rlhf import counting, parts_of, same, snapshot


def scores(*values):
    return torch.tensor(values, dtype=torch.float32)


def test_reference_statistics_are_those_of_the_first_batch_for_ever():
    norm = ScoreNorm("reference")
    # 1, 5: μ = 3, σ = 2
    assert norm.standardize(scores(1, 5)).tolist() == [-1, 1]
    assert norm.standardize(scores(7, 7)).tolist() == [2, 2]
    assert norm.standardize(scores(3)).tolist() == [0]


def test_running_statistics_are_those_of_all_batches_before():
    norm = ScoreNorm("running")
    assert norm.standardize(scores(1, 5)).tolist() == [-1, 1]
    assert norm.standardize(scores(7, 7)).tolist() == [2, 2]  # still μ = 3, σ = 2
    # 1, 5, 7, 7: μ = 5, σ² = (16 + 0 + 4 + 4)/4 = 6
    assert_close(norm.standardize(scores(5, 11)), scores(0, 6) / 6**0.5)


def test_running_scores_that_do_not_vary_are_only_centred():
    norm = ScoreNorm("running")
    assert norm.standardize(scores(4, 4)).tolist() == [0, 0]
    assert norm.standardize(scores(6)).tolist() == [2]


def test_a_starting_model_whose_responses_are_all_worth_the_same_is_no_reference():
    with pytest.raises(InputError, match="all 3 responses of the starting model are worth 4"):
        ScoreNorm("reference").standardize(scores(4, 4, 4))


@pytest.mark.parametrize("kind", ["reference", "running"])
def test_only_the_reward_stream_is_standardised_and_returns_stay_raw(kind):
    reward = counting("bread", "fox", "cat")
    parts = parts_of(reward=reward, normalize_scores=kind, ppo={"kl_coefficient": 0.0})
    plain = parts_of(reward=reward, ppo={"kl_coefficient": 0.0})
    rollout, raw = parts.collector.collect(), plain.collector.collect()
    assert torch.equal(rollout.action, raw.action)
    assert torch.equal(rollout.cost, raw.cost)
    assert torch.equal(rollout.episodes.return_, raw.episodes.return_)
    assert torch.equal(rollout.episodes.cost, raw.episodes.cost)
    returns = raw.episodes.return_
    expected = (returns - returns.mean()) / returns.std(correction=0)
    assert_close(rollout.reward.sum(1), expected)


@pytest.mark.parametrize("kind", ["reference", "running"])
def test_a_reward_of_another_scale_and_offset_trains_the_same_policy(kind):
    def scaled(factor, offset):
        inner = counting("bread", "fox", "cat")
        return lambda responses: factor * inner(responses) + offset

    runs = []
    for reward in (scaled(1.0, 0.0), scaled(64.0, 0.0), scaled(0.5, 8.0)):
        parts = parts_of(reward=reward, normalize_scores=kind)
        runs.append((list(train(parts, 3)), snapshot(parts.policy)))
    (rows, policy), *others = runs
    for (other, moved), (factor, offset) in zip(others, [(64, 0), (0.5, 8)], strict=True):
        for name, value in policy.items():
            assert_close(moved[name], value, atol=2e-4, rtol=1e-3)
        assert other[0]["return/mean"] == pytest.approx(factor * rows[0]["return/mean"] + offset)


@pytest.mark.parametrize("kind", ["reference", "running"])
def test_a_resumed_run_goes_on_with_the_same_statistics(tmp_path, kind):
    settings = {"normalize_scores": kind, "ppo": {"normalize_values": True, "critic_warmup": 1}}
    reward, every = counting("bread", "fox", "cat"), CheckpointConfig(every=2)
    whole, first, second = (parts_of(reward=reward, **settings) for _ in range(3))
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    drive(whole, 4, tmp_path / "whole", every)
    drive(first, 2, tmp_path / "cut", every)
    drive(second, 4, tmp_path / "cut", every)
    assert same(second.policy, snapshot(whole.policy))
    assert same(second.critic, snapshot(whole.critic))
