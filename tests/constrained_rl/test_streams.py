"""Episode costs by the critics: corrected, exact on whole episodes; and moved by an update."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from constrained_rl.errors import InputError
from constrained_rl.rollout import Episodes, Rollout, Streams
from constrained_rl.streams import corrected_costs, expected_change


def window(cost, done, first, finished):
    """One row of decisions; the number of episodes that finished in it is given.

    The environment knows what ends: with probability 1 where `done`.
    """
    no = torch.zeros(1, len(cost), dtype=torch.bool)
    zeros = torch.zeros(finished, dtype=torch.long)
    return Rollout(
        obs=torch.zeros(1, len(cost) + 1, 1),
        action=torch.zeros(1, len(cost)),
        reward=torch.zeros(1, len(cost)),
        cost=torch.tensor(cost, dtype=torch.float64).reshape(1, -1, 1),
        terminated=torch.tensor([done]),
        done=torch.tensor([done]),
        mask=~no,
        episodes=Episodes(zeros.double(), zeros.double()[:, None], zeros, zeros, zeros),
        exchangeable=True,
        first=torch.tensor([first]),
        ending=torch.tensor([done]).double(),
        ends=torch.tensor([done]).double(),
    )


def corrected(rollout, value):
    """The estimate under critics that say `value` [T + 1] of the cost, and 9 of the reward."""
    value = torch.tensor(value, dtype=torch.float64).reshape(1, -1, 1)
    value = torch.cat([torch.full_like(value, 9), value], -1)
    return corrected_costs(rollout, rollout.cost, value)


def test_an_unfinished_episode_counts_with_what_the_critic_expects_of_it():
    # Decisions 0–1 are a whole episode, 2–3 the beginning of the next one.
    rollout = window([1, 2, 4, 8], [False, True, False, False], [True, False, True, False], 1)
    # V = 3, 2, 3, 5 and 6 beyond the window: first decisions expect (3 + 3)/2 = 3;
    # δ = 1 + 2 − 3 = 0,  2 + 0 − 2 = 0,  4 + 5 − 3 = 6,  8 + 6 − 5 = 9: together 15 per episode
    assert corrected(rollout, [3, 2, 3, 5, 6]).tolist() == [18]


def test_a_critic_that_knows_leaves_no_noise():
    # Every decision costs 1 and every episode has two of them; the window cuts one in half.
    rollout = window([1, 1, 1], [True, False, True], [False, True, False], finished=2)
    assert corrected(rollout, [1, 2, 1, 2]).tolist() == [2]


values = st.lists(st.floats(-100, 100), min_size=5, max_size=5)


@given(values)
def test_over_whole_episodes_it_is_their_mean_whatever_the_critic_says(value):
    # Episodes 1 + 2 and 4 + 8: mean 7.5. The value beyond the window reaches nobody.
    rollout = window([1, 2, 4, 8], [False, True, False, True], [True, False, True, False], 2)
    assert corrected(rollout, value).item() == pytest.approx(7.5, abs=1e-9)


def test_a_masked_decision_counts_for_nothing():
    rollout = window([1, 2, 4, 8], [False, True, False, True], [True, False, True, False], 2)
    rollout.mask[0, 2:] = False
    rollout.first[0, 2] = False
    # (1 + 2 − V(0)) / 1 end + V(0)
    assert corrected(rollout, [1, 1, 50, 50, 50]).item() == 3


def test_a_known_chance_of_ending_counts_instead_of_its_draw():
    # Every decision costs 1 and ends the episode with ½, so V = 2 knows everything; that three
    # episodes of four ended by chance says nothing more.
    rollout = window([1, 1, 1, 1], [True, True, False, True], [True, True, True, False], 3)
    rollout = replace(rollout, ends=torch.full((1, 4), 0.5))
    assert corrected(rollout, [2, 2, 2, 2, 2]).tolist() == [2]
    # V = 0 knows nothing: 4 paid over 4 · ½ expected ends
    assert corrected(rollout, [0, 0, 0, 0, 0]).tolist() == [2]


@pytest.mark.parametrize("missing", ["first", "end"])
def test_without_a_first_or_a_last_decision_there_is_no_estimate(missing):
    first = [missing != "first", False]
    rollout = window([1, 2], [False, missing != "end"], first, int(missing != "end"))
    assert corrected(rollout, [0, 0, 0]) is None


def test_a_collector_that_does_not_say_where_episodes_begin_is_refused():
    rollout = replace(window([1, 2], [False, True], [True, False], 1), first=None)
    with pytest.raises(InputError, match=r"corrected.*Rollout\.first.*corrected=false"):
        corrected(rollout, [0, 0, 0])


def test_an_environment_that_does_not_know_its_chance_of_ending_is_refused():
    rollout = replace(window([1, 2], [False, True], [True, False], 1), ends=None)
    with pytest.raises(InputError, match=r"corrected.*info\['termination'\].*corrected=false"):
        corrected(rollout, [0, 0, 0])


def test_an_update_is_expected_to_change_costs_by_what_it_made_more_and_less_likely():
    rollout = window([1, 1, 1], [True, True, False], [True, True, True], finished=2)
    rollout.mask[0, 2] = False
    streams = Streams(
        obs=rollout.obs,
        action=rollout.action,
        mask=rollout.mask,
        logp=torch.tensor([[0.5, 0.25, 0.1]], dtype=torch.float64).log(),
        value=torch.zeros(1, 3, 2),
        advantage=torch.tensor([[[9.0, 4.0], [9.0, -2.0], [9.0, 99.0]]], dtype=torch.float64),
        exchangeable=True,
    )
    logp = torch.tensor([[0.75, 0.125, 0.9]], dtype=torch.float64).log()
    # ((1.5 − 1) · 4 + (0.5 − 1) · (−2)) / 2 episodes
    assert expected_change(rollout, streams, logp, counted=9).tolist() == pytest.approx([1.5])
    # of ends that nobody knows, the mean over windows counts, and not the two of this one
    unknown = replace(rollout, ends=None)
    assert expected_change(unknown, streams, logp, counted=4).tolist() == pytest.approx([0.75])
