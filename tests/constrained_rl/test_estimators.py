import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from constrained_rl.estimators import EMA, Mean, Tail, Upper, Window
from tests.constrained_rl.helpers import restored


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_mean_forgets_the_iteration_before():
    estimator = Mean()
    assert estimator.update(tensor(1, 3)) == 2
    assert estimator.update(tensor(10)) == 10


def test_window_averages_the_last_episodes_across_iterations():
    estimator = Window(3)
    assert estimator.update(tensor(1, 3)) == 2
    # 1 falls out: (3 + 4 + 8) / 3
    assert estimator.update(tensor(4, 8)) == 5


def test_ema_starts_at_its_first_observation():
    estimator = EMA(0.75)
    assert estimator.update(tensor(8)) == 8
    # ¾·8 + ¼·mean(0, 8) = 7
    assert estimator.update(tensor(0, 8)) == 7


def test_upper_adds_students_margin_to_the_mean():
    # mean 2, s = 1, n = 3, t of two degrees of freedom at 95 % is 2.919986
    assert Upper(0.95).update(tensor(1, 2, 3)) == pytest.approx(2 + 2.919986 / math.sqrt(3))
    # at 50 % there is no margin
    assert Upper(0.5).update(tensor(1, 2, 3)) == pytest.approx(2)


def test_upper_has_no_bound_for_one_episode_unless_others_came_before():
    alone, window = Upper(0.95), Upper(0.95, size=3)
    for estimator in (alone, window):
        assert estimator.update(tensor(1)) is None
    assert alone.update(tensor(3)) is None
    # mean 2, s = √2, t of one degree of freedom 6.313752: 2 + 6.313752 · √2 / √2
    assert window.update(tensor(3)) == pytest.approx(8.313752)
    # 1 falls out of the last three; 3, 3, 3 have no spread
    assert window.update(tensor(3, 3)) == 3


@given(
    st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(0.5, 0.999, exclude_max=True)
)
def test_upper_is_at_least_the_mean(costs, confidence):
    bound = Upper(confidence).update(tensor(*costs))
    assert bound >= sum(costs) / len(costs) - 1e-9


@pytest.mark.parametrize(
    "make", [Mean, lambda: Window(3), lambda: EMA(0.5), lambda: Upper(0.9), lambda: Upper(0.9, 3)]
)
def test_a_restored_estimator_continues_as_the_original(make):
    original, copy = make(), make()
    for _ in range(2):  # once empty, once with a past
        copy.load_state_dict(restored(original.state_dict()))
        assert original.update(tensor(1, 2)) == copy.update(tensor(1, 2))
        assert original.update(tensor(7)) == copy.update(tensor(7))


def test_a_tail_begins_at_the_quantile_of_the_last_twenty_episodes_at_one_half():
    tail = Tail(0.5)  # 10 / (1 − ½) = 20 episodes
    first = torch.arange(1.0, 5.0)
    assert tail.t(first) == 2
    assert tail.t(first) == 2  # asking changes nothing
    tail.merge(first)
    # eleven of 15: 4 old ones below, the median is the eighth, the fourth of the new
    assert tail.t(torch.arange(11.0, 22.0)) == 14
    # twenty or more of an iteration count alone: the 15th of 30
    assert tail.t(torch.arange(101.0, 131.0)) == 115


def test_a_restored_tail_remembers_its_episodes():
    original, copy = Tail(0.9), Tail(0.9)
    original.merge(tensor(5, 1, 9))
    copy.load_state_dict(restored(original.state_dict()))
    assert copy.t(tensor(2)) == original.t(tensor(2)) == 9
