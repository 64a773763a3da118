import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from constrained_rl.advantages import (
    charge_kl,
    gae,
    group_normalized,
    leave_one_out,
    penalized_advantage,
    scale_by_spreads,
    whiten,
)
from constrained_rl.errors import InputError

seeds = st.integers(0, 2**31)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def one_stream(reward, value, terminated, done, gamma=0.5, lam=0.5):
    """GAE of one row and one stream; returns a list."""
    flags = [torch.tensor([[bool(x) for x in xs]]) for xs in (terminated, done)]
    result = gae(
        tensor(reward).unsqueeze(-1),
        tensor(value).unsqueeze(-1),
        *flags,
        tensor(gamma),
        tensor(lam),
    )
    return result[0, :, 0].tolist()


def random_case(seed, rows=3, decisions=7, streams=2):
    """Rewards, values, flags and mask of windows in which episodes end in both ways."""
    g = torch.Generator().manual_seed(seed)
    reward = torch.randn(rows, decisions, streams, generator=g, dtype=torch.float64)
    value = torch.randn(rows, decisions + 1, streams, generator=g, dtype=torch.float64)
    kind = torch.randint(0, 4, (rows, decisions), generator=g)
    terminated, done = kind == 0, kind <= 1
    mask = torch.ones(rows, decisions, dtype=torch.bool)
    for t in range(1, decisions):  # the step after an end only resets
        reset = done[:, t - 1] & mask[:, t - 1]
        mask[reset, t] = False
        terminated[reset, t] = done[reset, t] = False
    return reward, value, terminated, done, mask


def test_gae_inside_an_episode_sums_discounted_errors():
    # γ = λ = ½.  δ_1 = 2 + ½·4 − 2 = 2,  δ_0 = 1 + ½·2 − 1 = 1;  A_1 = 2,  A_0 = 1 + ¼·2 = 1.5
    assert one_stream([1, 2], [1, 2, 4], [0, 0], [0, 0]) == [1.5, 2.0]


def test_termination_has_no_value_after_it():
    # δ_1 = 2 − 2 = 0 (V_2 = 4 is not looked at);  A_0 = 1 + ½·2 − 1 + ¼·0 = 1
    assert one_stream([1, 2], [1, 2, 4], [0, 1], [0, 1]) == [1.0, 0.0]


def test_truncation_bootstraps_from_the_final_observation():
    # The value of the true final state is V_2 = 4:  A_1 = δ_1 = 2 + ½·4 − 2 = 2;  A_0 = 1 + ¼·2
    assert one_stream([1, 2], [1, 2, 4], [0, 0], [0, 1]) == [1.5, 2.0]


def test_nothing_crosses_a_truncation_and_the_reset_step_between_episodes():
    # Decision 0 is truncated, 1 is the masked reset, 2 is the next episode's first decision.
    # A_0 = 1 + ½·2 − 1 = 1 whatever comes later;  A_2 = 5 + ½·8 − 6 = 3
    quiet = one_stream([1, 0, 5], [1, 2, 6, 8], [0, 0, 0], [1, 0, 0])
    loud = one_stream([1, 99, 5], [1, 2, 6, 8], [0, 0, 0], [1, 0, 0])
    assert (quiet[0], quiet[2]) == (loud[0], loud[2]) == (1.0, 3.0)


def test_each_stream_has_its_own_discounts():
    # Stream 0: γ = 1, λ = 1: A_0 = (1 + 1) − V_0 = 2.  Stream 1: γ = ½, λ = 0: A_0 = δ_0 = 1.
    zero = torch.zeros(1, 3, 2, dtype=torch.float64)
    no = torch.zeros(1, 2, dtype=torch.bool)
    ends = torch.tensor([[False, True]])
    found = gae(zero[:, :2] + 1, zero, ends, no | ends, tensor(1, 0.5), tensor(1, 0))
    assert found[0, 0].tolist() == [2.0, 1.0]


def test_a_known_chance_of_ending_is_averaged_over():
    # p = ¾ at decision 1, which ended: δ_1 = 2 + ½·(1 − ¾)·4 − 2 = ½;  δ_0 = 1;  A_0 = 1 + ¼·½
    zero = torch.zeros(1, 1, dtype=torch.float64)
    found = gae(
        tensor([1, 2]).unsqueeze(-1),
        tensor([1, 2, 4]).unsqueeze(-1),
        torch.cat([zero, zero + 0.75], 1),
        torch.tensor([[False, True]]),
        tensor(0.5),
        tensor(0.5),
    )
    assert found.flatten().tolist() == [1.125, 0.5]


def per_episode(reward, value, terminated, done, mask, gamma, lam):
    """GAE by cutting each row into episodes and summing (γλ)^i δ_{t+i} for every decision."""
    result = torch.zeros_like(reward)
    for row in range(len(reward)):
        for t in range(reward.shape[1]):
            weight, u = torch.ones_like(gamma), t
            while mask[row, t] and u < reward.shape[1]:
                future = 0 if terminated[row, u] else gamma * value[row, u + 1]
                result[row, t] += weight * (reward[row, u] + future - value[row, u])
                if done[row, u]:
                    break
                weight, u = weight * gamma * lam, u + 1
    return result


@given(seeds)
def test_one_vectorised_pass_equals_the_sum_over_each_episode(seed):
    reward, value, terminated, done, mask = random_case(seed)
    discounts = tensor(0.9, 1.0), tensor(0.8, 0.95)
    found = gae(reward, value, terminated, done, *discounts) * mask.unsqueeze(-1)
    assert_close(found, per_episode(reward, value, terminated, done, mask, *discounts))


@given(seeds, st.floats(-3, 3))
def test_gae_is_linear_in_rewards_and_values_together(seed, factor):
    reward, value, *flags, _ = random_case(seed)
    other, other_value, *_ = random_case(seed + 1)
    discounts = tensor(0.9, 1.0), tensor(0.8, 0.95)

    def advantage(r, v):
        return gae(r, v, *flags, *discounts)

    assert_close(
        advantage(reward + factor * other, value + factor * other_value),
        advantage(reward, value) + factor * advantage(other, other_value),
    )


@given(seeds)
def test_permuting_rows_permutes_advantages(seed):
    reward, value, terminated, done, _ = random_case(seed)
    discounts = tensor(0.9, 1.0), tensor(0.8, 0.95)
    order = [2, 0, 1]
    found = gae(reward[order], value[order], terminated[order], done[order], *discounts)
    assert torch.equal(found, gae(reward, value, terminated, done, *discounts)[order])


# charge_kl and penalized_advantage


def test_kl_is_subtracted_from_reward_and_added_to_cost():
    stream, kl = tensor([[1.0, 2.0]]), tensor([3.0])
    # β = 0.1: β·kl = 0.3
    assert_close(charge_kl(stream, kl, 0.1, "reward"), tensor([[0.7, 2.0]]))
    assert_close(charge_kl(stream, kl, 0.1, "both"), tensor([[0.7, 2.3]]))
    assert_close(charge_kl(stream, kl, 0.1, "paper"), tensor([[0.85, 2.15]]))


@given(st.floats(0, 1e3), st.floats(0.01, 10), st.floats(-5, 5))
def test_kl_weight_after_mixing_is_what_the_three_placements_promise(lam, beta, kl):
    nothing = torch.zeros(1, 1, 2, dtype=torch.float64)
    # Both streams are zero, so what is left after mixing is −weight · kl.
    promised = {"both": beta, "reward": beta / (1 + lam), "paper": beta / 2}
    for placement, weight in promised.items():
        charged = charge_kl(nothing, tensor([kl]), beta, placement)
        mixed = penalized_advantage(charged, tensor(lam))
        assert_close(mixed, tensor([-weight * kl]))


def test_mixing_is_reward_minus_priced_costs_over_one_plus_the_prices():
    advantage = tensor([[3.0, 1.0, 2.0]])  # A_r, A_c1, A_c2
    # (3 − 2·1 − 1·2) / (1 + 2 + 1) = −¼
    assert penalized_advantage(advantage, tensor(2, 1)).tolist() == [[-0.25]]
    assert penalized_advantage(advantage, tensor(2, 1), divide=False).tolist() == [[-1.0]]


@given(seeds)
def test_without_price_the_mix_is_the_reward_and_at_a_huge_price_minus_the_cost(seed):
    g = torch.Generator().manual_seed(seed)
    advantage = torch.randn(2, 3, 2, generator=g, dtype=torch.float64)
    assert torch.equal(penalized_advantage(advantage, tensor(0.0)), advantage[..., 0])
    huge = penalized_advantage(advantage, tensor(1e12))
    assert_close(huge, -advantage[..., 1], atol=1e-9, rtol=0)


def test_an_unconstrained_problem_mixes_to_its_reward():
    advantage = tensor([[3.0], [4.0]])
    assert penalized_advantage(advantage, torch.zeros(0)).tolist() == [[3.0, 4.0]]


# whiten


def test_whitening_uses_chosen_decisions_only_and_zeroes_the_others():
    # Chosen 1 and 3: mean 2, deviation 1 → −1 and 1; the masked 100 becomes 0.
    mask = torch.tensor([[True, False, True]])
    assert whiten(tensor([1.0, 100.0, 3.0]), mask).tolist() == [[-1.0, 0.0, 1.0]]


def test_streams_are_whitened_each_on_its_own():
    mask = torch.tensor([[True, True]])
    found = whiten(tensor([[1.0, 10.0], [3.0, 50.0]]), mask)
    assert found.tolist() == [[[-1.0, -1.0], [1.0, 1.0]]]


@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0]])
def test_without_spread_whitening_only_centers(values):
    mask = torch.ones(1, len(values), dtype=torch.bool)
    assert whiten(tensor(values), mask).tolist() == [[0.0] * len(values)]


@given(seeds, st.floats(0.1, 1e4), st.floats(-10, 10))
def test_whitening_forgets_scale_and_offset(seed, scale, offset):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, generator=g, dtype=torch.float64)
    mask = torch.rand(3, 4, generator=g) < 0.7
    mask[0, :2] = True
    assert_close(whiten(scale * x + offset, mask), whiten(x, mask), atol=1e-8, rtol=1e-6)


# without critics

GROUPS = torch.tensor([7, 3, 7, 3, 7])


def returns(seed, rows=5, streams=2):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, streams, generator=g, dtype=torch.float64)


def test_leave_one_out_subtracts_the_mean_of_the_others_of_the_group():
    # group 7 holds 6, 0, 3:  6 − 3/2,  0 − 9/2,  3 − 6/2;  group 3 holds 10, 4:  10 − 4,  4 − 10
    found = leave_one_out(tensor(6, 10, 0, 4, 3).unsqueeze(1), GROUPS)
    assert found[:, 0].tolist() == [4.5, 6.0, -4.5, -6.0, 0.0]


def test_group_normalisation_divides_by_the_deviation_of_the_group():
    # group 7 holds 6, 0, 3: mean 3, deviation √(18/3) = √6;  group 3 holds 10, 4: mean 7, 3
    found = group_normalized(tensor(6, 10, 0, 4, 3).unsqueeze(1), GROUPS)
    root = 6**0.5
    assert_close(found[:, 0], tensor(3 / root, 1, -3 / root, -1, 0))


def test_streams_are_compared_each_on_its_own():
    both = torch.stack([tensor(6, 10, 0, 4, 3), tensor(1, 1, 1, 5, 7)], -1)
    for rule in (leave_one_out, group_normalized):
        alone = [rule(both[:, s : s + 1], GROUPS) for s in (0, 1)]
        assert_close(rule(both, GROUPS), torch.cat(alone, -1))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_a_group_that_agrees_teaches_nothing(value):
    same = torch.full((5, 1), value)
    for rule in (leave_one_out, group_normalized):
        assert_close(rule(same, GROUPS), torch.zeros(5, 1), atol=1e-2 * value / 1e4, rtol=0)
    assert torch.equal(group_normalized(same, GROUPS), torch.zeros(5, 1))


@given(seeds)
def test_advantages_without_critics_sum_to_0_in_every_group(seed):
    for rule in (leave_one_out, group_normalized):
        found = rule(returns(seed), GROUPS)
        for label in (3, 7):
            assert_close(found[label == GROUPS].sum(0), tensor(0, 0))


@given(seeds, st.permutations(range(5)))
def test_advantages_without_critics_follow_their_rows_and_ignore_the_numbers_of_groups(seed, order):
    x, renamed = returns(seed), 100 - GROUPS
    for rule in (leave_one_out, group_normalized):
        assert_close(rule(x[order], renamed[order]), rule(x, GROUPS)[order])


@given(seeds, st.floats(-50, 50))
def test_what_a_whole_prompt_pays_more_changes_no_advantage(seed, shift):
    x = returns(seed)
    harder = x + shift * (GROUPS == 7).unsqueeze(1)
    for rule in (leave_one_out, group_normalized):
        assert_close(rule(harder, GROUPS), rule(x, GROUPS), atol=1e-9, rtol=1e-7)


@given(seeds, st.floats(0.1, 20))
def test_lambda_is_a_price_for_leave_one_out_and_none_for_group_normalisation(seed, unit):
    # The same costs counted in another unit: a price must be divided by it.
    x, scale = returns(seed), tensor(1, unit)
    lam = tensor(3)
    priced = [
        penalized_advantage(leave_one_out(y, GROUPS), price, divide=False)
        for y, price in ((x, lam), (x * scale, lam / unit))
    ]
    assert_close(*priced)
    assert_close(group_normalized(x, GROUPS), group_normalized(x * scale, GROUPS))


@pytest.mark.parametrize("rule", [leave_one_out, group_normalized])
def test_a_group_of_one_row_is_refused(rule):
    with pytest.raises(InputError, match="1 of 2 groups hold one row"):
        rule(torch.zeros(3, 1), torch.tensor([0, 0, 1]))


# scale


def test_the_mixture_is_measured_by_its_streams_spreads():
    # Reward ±4, cost ±2: at λ = 2 the mixture is 0 for certain, and stays 0.
    advantage = tensor([4, 2], [-4, -2]).unsqueeze(0)
    mask = torch.ones(1, 2, dtype=torch.bool)
    lam = tensor(2)
    mixed = penalized_advantage(advantage, lam)
    assert scale_by_spreads(mixed, advantage, lam, mask).tolist() == [[0, 0]]
    # At λ = 1: (4 − 2)/2 = ±1, and the unit is (4 + 2)/2 = 3.
    lam = tensor(1)
    mixed = penalized_advantage(advantage, lam)
    found = scale_by_spreads(mixed, advantage, lam, mask)
    assert_close(found, tensor([1 / 3, -1 / 3]))


@given(seeds, st.floats(0, 10), st.booleans())
def test_spreads_keep_the_mixture_within_a_deviation_of_1(seed, price, divide):
    # σ(A_r − λ A_c) ≤ σ_r + λ σ_c
    g = torch.Generator().manual_seed(seed)
    advantage = torch.randn(4, 5, 2, generator=g, dtype=torch.float64)
    mask = torch.rand(4, 5, generator=g) < 0.8
    mask[0, :2] = True
    lam = torch.tensor([price], dtype=torch.float64)
    mixed = penalized_advantage(advantage, lam, divide)
    found = scale_by_spreads(mixed, advantage, lam, mask, divide)
    assert found[mask].std(correction=0) <= 1 + 1e-9
    assert abs(found[mask].mean()) < 1e-9
    assert (found[~mask] == 0).all()
