"""The mean of the last policies' weights takes the last one's place, and training never sees it."""

import pytest
import torch

from constrained_rl import scale_free
from constrained_rl.weight_average import WeightAverage
from tests.constrained_rl.helpers import restored

HAZARD = "constrained_rl/PointHazard-v0"


def one(value):
    """A module of one weight."""
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(value)
    return module


def passed(average, module, values, iterations, start=0):
    """The weight after each iteration that sets it to one of the values."""
    found = []
    for iteration, value in enumerate(values, start + 1):
        module.weight.data.fill_(value)
        average.observe(iteration, iterations)
        found.append(module.weight.item())
    return found


def untimed(row):
    return {name: value for name, value in row.items() if not name.startswith("time/")}


def test_the_mean_of_the_last_share_takes_the_place_of_the_last():
    module = one(0.0)
    average = WeightAverage(module, 0.5)
    assert passed(average, module, [8, 8, 1, 3, 5, 7], 6) == [8, 8, 1, 3, 5, (3 + 5 + 7) / 3]


@pytest.mark.parametrize(("share", "last"), [(0.01, 4.0), (1.0, 2.5), (0.26, 3.5)])
def test_a_share_counts_the_iterations_that_lie_in_it(share, last):
    module = one(0.0)
    assert passed(WeightAverage(module, share), module, [1, 2, 3, 4], 4)[-1] == last


def test_it_goes_on_where_a_checkpoint_stopped_it():
    module, other = one(0.0), one(0.0)
    average, copy = WeightAverage(module, 1.0), WeightAverage(other, 1.0)
    passed(average, module, [1, 2], 4)
    copy.load_state_dict(restored(average.state_dict()))
    assert passed(copy, other, [6, 7], 4, start=2)[-1] == 4


def test_a_training_that_goes_on_begins_a_new_mean():
    module = one(0.0)
    average = WeightAverage(module, 0.5)
    passed(average, module, [1, 3], 2)
    assert passed(average, module, [9, 5, 4], 5, start=2) == [9, 5, 6]


def test_training_never_sees_the_mean_and_its_end_gives_it():
    settings = {"total_steps": 8 * 64 * 64, "ppo": {"horizon": 64, "epochs": 1}}
    plain, mean = (scale_free(HAZARD, average=share, **settings) for share in (0.0, 0.5))
    weights, rows = [], []
    for row in plain.iterate():
        weights.append({name: x.clone() for name, x in plain.policy.state_dict().items()})
        rows.append(untimed(row))
    assert [untimed(row) for row in mean.iterate()] == rows
    for name, value in mean.policy.state_dict().items():  # weights, statistics of observations
        last = torch.stack([w[name] for w in weights[len(weights) // 2 :]])
        torch.testing.assert_close(value, last.mean(0))
        constant = name.endswith("epsilon")  # added to variances; 0
        assert torch.equal(value, weights[-1][name]) == constant
