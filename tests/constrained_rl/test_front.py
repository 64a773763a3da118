from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_rl.errors import InputError
from constrained_rl.front import pareto_front
from constrained_rl.oracle import Average, Horizon, multiplier_ranges, solve
from tests.constrained_rl.small_cmdps import coin, leave, random_cmdp

# Prices 3 (action 0 for 1 of cost) and 1 (action 1 instead, 4 for 2): the best mixture at cost d.
TWO_PRICES = {
    "transition": np.ones((1, 3, 1)),
    "reward": [[0.0, 3.0, 4.0]],
    "cost": [[[0.0, 1.0, 2.0]]],
}


def test_the_front_of_two_prices_has_three_corners():
    # discounted visits sum to 2
    front = pareto_front(coin(**TWO_PRICES))
    assert front.limit == pytest.approx([0, 2, 4], abs=1e-8)
    assert front.value == pytest.approx([0, 6, 8], abs=1e-8)
    assert front.price == pytest.approx([3, 1])
    assert front.value_at(1.0) == pytest.approx(3)
    assert front.value_at(9.0) == pytest.approx(8)
    assert np.isnan(front.value_at(-1.0))


@pytest.mark.parametrize(("criterion", "visits"), [(Average(), 1), (Horizon(5), 5)])
def test_the_front_of_other_criteria_has_the_same_prices(criterion, visits):
    front = pareto_front(coin(**TWO_PRICES), 0, criterion)
    assert front.limit == pytest.approx([0, visits, 2 * visits], abs=1e-8)
    assert front.price == pytest.approx([3, 1])


def test_the_other_limits_hold_along_the_front():
    # Channel 1 costs as much as channel 0 and is limited to 2: the front ends there.
    cost = [[[0.0, 1.0, 2.0]], [[0.0, 1.0, 2.0]]]
    front = pareto_front(coin(**{**TWO_PRICES, "cost": cost}, limit=[9.0, 2.0]))
    assert front.limit == pytest.approx([0, 2], abs=1e-8)
    assert front.price == pytest.approx([3])


def test_a_cost_that_buys_nothing_has_a_front_of_one_point():
    front = pareto_front(coin(cost=[[[0.0, 1.0]]]))
    assert (front.limit.tolist(), front.value.tolist(), front.price.tolist()) == ([0], [2], [])


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.05, 0.95))
def test_the_front_is_what_solving_at_every_limit_gives(seed, share):
    cmdp = random_cmdp(seed, states=4, actions=3, channels=2)
    front = pareto_front(cmdp, 1)
    assert (np.diff(front.limit) > 0).all()
    assert (np.diff(front.price) < 0).all()
    limit = front.limit[0] + share * (front.limit[-1] - front.limit[0])
    moved = replace(cmdp, limit=np.array([cmdp.limit[0], limit]))
    assert solve(moved).value == pytest.approx(front.value_at(limit), abs=1e-6)
    if len(front.price):
        piece = int(np.searchsorted(front.limit, limit)) - 1
        ranges = multiplier_ranges(moved)
        price = front.price[piece]
        assert ranges.least[1] - 1e-4 * (1 + price) <= price
        assert price <= ranges.greatest[1] + 1e-4 * (1 + price)


def test_what_has_no_front_is_refused():
    with pytest.raises(InputError, match="constraint 1 does not exist: the problem has K = 1"):
        pareto_front(coin(), 1)
    cost = [[[0.0, 1.0]], [[1.0, 1.0]]]
    with pytest.raises(InputError, match="other than 0 are infeasible by themselves"):
        pareto_front(coin(cost=cost, limit=[1.0, 1.0]), 0)
    with pytest.raises(InputError, match="the problem is unbounded"):
        pareto_front(leave(), 0)  # totals: staying for ever pays for ever
