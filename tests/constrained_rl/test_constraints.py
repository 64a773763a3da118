import math

import pytest
import torch
from torch.testing import assert_close

from constrained_rl.checkpoint import pack, unpack
from constrained_rl.constraints import (
    EMA,
    Constraint,
    Constraints,
    Mean,
    Signal,
    Window,
    transform_cost,
)
from constrained_rl.errors import InputError, NonFiniteError
from constrained_rl.rollout import Episodes, Rollout, Streams


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def episodes(cost, row=None, end=None):
    """Episodes with the given costs [E][K]."""
    count = len(cost)
    zeros = [0] * count
    return Episodes(
        return_=torch.zeros(count, dtype=torch.float64),
        cost=torch.tensor(cost, dtype=torch.float64).reshape(count, len(cost[0]) if cost else 1),
        length=torch.ones(count, dtype=torch.long),
        row=torch.tensor(zeros if row is None else row, dtype=torch.long),
        end=torch.tensor(zeros if end is None else end, dtype=torch.long),
    )


def streams(channels=1, corrected=None):
    """Streams of three decisions whose advantages are 0, 1, 2 times the channel's number + 1."""
    advantage = torch.arange(3.0).reshape(1, 3, 1) * torch.arange(1.0, channels + 2)
    none = torch.zeros(1, 3)
    mask = torch.ones(1, 3, dtype=torch.bool)
    value = torch.zeros_like(advantage)
    return Streams(none, none, mask, none, value, advantage, False, corrected=corrected)


def restored(state):
    """A state after its way through a checkpoint."""
    tensors = {}
    packed = pack(state, tensors)
    return unpack(packed, tensors)


# transforms


def test_identity_bounds_the_cost_itself():
    assert transform_cost(tensor(-2, 3), "identity").tolist() == [-2, 3]


def test_probability_reads_the_cost_as_a_logit():
    # σ(0) = ½, σ(ln 3) = ¾
    logits = tensor(0, math.log(3))
    assert_close(transform_cost(logits, "probability"), tensor(0.5, 0.75))


def test_indicator_counts_costs_above_0_only():
    assert transform_cost(tensor(-1, 0, 0.1), "indicator").tolist() == [0, 0, 1]


# estimators


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


@pytest.mark.parametrize("make", [Mean, lambda: Window(3), lambda: EMA(0.5)])
def test_a_restored_estimator_continues_as_the_original(make):
    original, copy = make(), make()
    for _ in range(2):  # once empty, once with a past
        copy.load_state_dict(restored(original.state_dict()))
        assert original.update(tensor(1, 2)) == copy.update(tensor(1, 2))
        assert original.update(tensor(7)) == copy.update(tensor(7))


# constraints


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), -float("inf")])
def test_a_limit_that_is_no_number_is_refused(limit):
    with pytest.raises(InputError, match=r"'risk'.*finite"):
        Constraint("risk", limit)


def test_the_signal_holds_one_estimate_and_limit_per_constraint():
    constraints = Constraints(
        [Constraint("a", 1.0, channel=1), Constraint("b", -3.0, channel=0, transform="indicator")],
        [Mean(), Mean()],
    )
    # channel 1: (2 + 4)/2 = 3;  channel 0: P(C > 0) = ½
    signal = constraints.signal(episodes([[-1, 2], [5, 4]]), streams(2))
    assert signal.cost.tolist() == [3, 0.5]
    assert signal.violation.tolist() == [2, 3.5]
    assert signal.cost.dtype == torch.float64


def test_without_a_finished_episode_there_is_no_signal_and_no_memory_of_it():
    constraints = Constraints([Constraint("a", 0.0)], [Window(4)])
    assert constraints.signal(episodes([]), streams()) is None
    assert constraints.signal(episodes([[2.0]]), streams()).cost.item() == 2


def test_an_infinite_estimate_stops_the_run():
    constraints = Constraints([Constraint("a", 0.0)], [Mean()])
    with pytest.raises(NonFiniteError, match="episode cost"):
        constraints.signal(episodes([[float("inf")]]), streams())


def test_a_constraint_on_a_missing_channel_is_refused_by_name():
    constraints = Constraints([Constraint("risk", 0.0, channel=1)], [Mean()])
    constraints.check_channels(2)
    with pytest.raises(InputError, match=r"'risk'.*channel 1.*1 cost"):
        constraints.check_channels(1)


def test_constraints_restore_every_estimator():
    def make():
        return Constraints([Constraint("a", 0.0), Constraint("b", 0.0, 1)], [Window(5), EMA(0.5)])

    original, copy = make(), make()
    original.signal(episodes([[1, 2], [3, 4]]), streams(2))
    copy.load_state_dict(restored(original.state_dict()))
    new = episodes([[10, 20]])
    assert torch.equal(copy.signal(new, streams(2)).cost, original.signal(new, streams(2)).cost)


def window(finished):
    """2 rows × 3 decisions with step costs 1…6 on channel 0 and 10…60 on channel 1."""
    steps = torch.arange(1.0, 7).reshape(2, 3, 1)
    no = torch.zeros(2, 3, dtype=torch.bool)
    return Rollout(
        obs=torch.zeros(2, 4, 1),
        action=torch.zeros(2, 3),
        reward=torch.zeros(2, 3),
        cost=torch.cat([steps, 10 * steps], -1),
        terminated=no,
        done=no,
        mask=~no,
        episodes=finished,
        exchangeable=True,
    )


def test_untransformed_streams_are_the_step_costs_of_their_channel():
    constraints = Constraints([Constraint("b", 0.0, 1), Constraint("a", 0.0, 0)], [Mean(), Mean()])
    stream = constraints.streams(window(episodes([])))
    assert stream[..., 0].tolist() == [[10, 20, 30], [40, 50, 60]]
    assert stream[..., 1].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_transformed_episode_costs_are_paid_at_the_last_decision():
    # Two episodes ended in row 0 (at 0 and 2), one in row 1 (at 1); the middle one was safe.
    finished = episodes([[5.0], [-1.0], [2.0]], row=[0, 0, 1], end=[0, 2, 1])
    constraints = Constraints([Constraint("a", 0.1, 0, "indicator")], [Mean()])
    stream = constraints.streams(window(finished))
    assert stream[..., 0].tolist() == [[1, 0, 0], [0, 1, 0]]


def test_the_violation_is_cost_minus_limit():
    one = tensor(1, 1)
    assert Signal(tensor(3, 1), tensor(1, 4), one, one, 1.0).violation.tolist() == [2, -3]
