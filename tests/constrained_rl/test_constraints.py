import pytest
import torch

from constrained_rl.constraints import Constraint, Constraints, Signal
from constrained_rl.errors import InputError, NonFiniteError
from constrained_rl.estimators import EMA, Mean, Upper, Window
from constrained_rl.rollout import Episodes, Rollout, Streams
from tests.constrained_rl.helpers import restored


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


def streams(channels=1, corrected=None, group=None):
    """Streams of three decisions whose advantages are 0, 1, 2 times the channel's number + 1."""
    advantage = torch.arange(3.0).reshape(1, 3, 1) * torch.arange(1.0, channels + 2)
    none = torch.zeros(1, 3)
    mask = torch.ones(1, 3, dtype=torch.bool)
    value = torch.zeros_like(advantage)
    return Streams(none, none, mask, none, value, advantage, False, None, group, corrected)


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), -float("inf")])
def test_a_limit_that_is_no_number_is_refused(limit):
    with pytest.raises(InputError, match=r"'risk'.*finite"):
        Constraint("risk", limit)


def test_the_signal_holds_one_estimate_and_limit_per_constraint():
    constraints = Constraints(
        [Constraint("a", 1.0, channel=1), Constraint("b", 0.1, channel=0, transform="indicator")],
        [Mean(), Mean()],
    )
    # channel 1: (2 + 4)/2 = 3;  channel 0: P(C > 0) = ½
    signal = constraints.signal(episodes([[-1, 2], [5, 4]]), streams(2))
    assert signal.cost.tolist() == [3, 0.5]
    assert signal.violation.tolist() == [2, 0.4]
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


def window(finished, group=None):
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
        group=group,
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
    assert Signal(tensor(3, 1), tensor(1, 4), one, one, 1.0, 1.0).violation.tolist() == [2, -3]


# CVaR, confidence bounds, groups


def test_cvar_charges_and_estimates_by_the_same_tail():
    # α = ½: t = 4, the third of six; (C − 4)⁺ / ½ + 4 is 4, 4, 4, 6, 8, 16, their mean 7 is that
    # of 5, 6 and 10
    finished = episodes([[1], [4], [2], [5], [6], [10]], row=[0, 0, 0, 1, 1, 1], end=[0, 1, 2] * 2)
    constraints = Constraints([Constraint("a", 3.0, transform="cvar", alpha=0.5)], [Mean()])
    paid = constraints.streams(window(finished))[..., 0]
    assert paid.tolist() == [[4, 4, 4], [6, 8, 16]]
    assert constraints.signal(finished, streams()).cost.tolist() == [7]
    # the tail now knows six episodes: of 1, 2, 4, 5, 6, 10 and 7 the fourth is 5
    assert constraints.streams(window(episodes([[7.0]])))[0, 0].tolist() == [9]


def test_a_restored_tail_charges_as_the_original():
    def make():
        return Constraints([Constraint("a", 3.0, transform="cvar", alpha=0.5)], [Mean()])

    original, copy = make(), make()
    original.signal(episodes([[1], [4], [20]]), streams())
    copy.load_state_dict(restored(original.state_dict()))
    rollout = window(episodes([[30.0]]))
    assert torch.equal(copy.streams(rollout), original.streams(rollout))
    assert not torch.equal(make().streams(rollout), original.streams(rollout))


def test_while_a_bound_has_too_few_episodes_the_multiplier_holds():
    constraints = Constraints([Constraint("a", 0.0)], [Upper(0.95)])
    assert constraints.signal(episodes([[2.0]]), streams()) is None
    assert constraints.signal(episodes([[2.0], [2.0]]), streams()).cost.tolist() == [2]


def test_a_bound_of_corrected_costs_lies_above_the_corrected_mean():
    # costs 1, 2, 3 are moved to a mean of 5 with their spread: 5 + 2.919986 / √3
    constraints = Constraints([Constraint("a", 0.0)], [Upper(0.95)], corrected=True)
    known = streams(corrected=tensor(5))
    found = constraints.signal(episodes([[1], [2], [3]]), known)
    assert found.cost.item() == pytest.approx(6.685861)


def test_ends_are_averaged_over_windows_also_those_without_any():
    original, copy = (Constraints([Constraint("a", 0.0)], [Mean()]) for _ in range(2))
    assert original.signal(episodes([[1]] * 4), streams()).cost.tolist() == [1]
    assert original.signal(episodes([]), streams()) is None
    copy.load_state_dict(restored(original.state_dict()))
    for one in (original, copy):
        assert one.ends == 2
        one.signal(episodes([[1]] * 2), streams())
        assert one.ends == pytest.approx((4 + 0 + 2) / 3)


def test_groups_are_bounded_by_their_mean_excess_and_pay_for_it_at_the_last_decision():
    # rows 0 and 1 answer one prompt, with a mean of −3; rows 2 and 3 another, with a mean of 2
    finished = episodes([[-8], [2], [1], [3]], row=[0, 1, 2, 3], end=[0, 0, 0, 0])
    group = torch.tensor([0, 0, 1, 1])
    rollout = Rollout(
        obs=torch.zeros(4, 2, 1),
        action=torch.zeros(4, 1),
        reward=torch.zeros(4, 1),
        cost=finished.cost.unsqueeze(1),
        terminated=torch.ones(4, 1, dtype=torch.bool),
        done=torch.ones(4, 1, dtype=torch.bool),
        mask=torch.ones(4, 1, dtype=torch.bool),
        episodes=finished,
        exchangeable=False,
        group=group,
    )
    constraints = Constraints([Constraint("harm", 0.5, per="group")], [Mean()])
    # 2·0 − (2)⁺ = −2 and 2·0 − (−8)⁺ = 0 in the first group: its harmful answer is excused
    assert constraints.streams(rollout).flatten().tolist() == [-2, 0, 1, 3]
    signal = constraints.signal(finished, streams(group=group))
    assert signal.cost.tolist() == [1]  # (0 + 2) / 2
    assert signal.cost_spread.tolist() == [1]  # of the groups


@pytest.mark.parametrize(
    ("group", "message"),
    [(None, "names no group"), (torch.tensor([0, 1]), "2 of 2 groups have a single member")],
)
def test_a_constraint_per_group_needs_groups_of_two(group, message):
    finished = episodes([[1.0], [2.0]], row=[0, 1], end=[2, 2])
    constraints = Constraints([Constraint("harm", 0.5, per="group")], [Mean()])
    with pytest.raises(InputError, match=rf"'harm'.*{message}.*constraint\.transform=excess"):
        constraints.streams(window(finished, group))


def test_episodes_of_unknown_groups_are_bounded_one_by_one():
    assert Constraint("harm", 0.5, per="group").value(tensor(-4, 2)).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("settings", "quantity"),
    [
        ({"transform": "indicator"}, "P(C > 0)"),
        ({"transform": "excess", "threshold": 2.5}, "E[(C − 2.5)⁺]"),
        ({"transform": "probability", "threshold": -1.0}, "E[σ(C + 1)]"),
        ({"per": "group", "transform": "indicator", "threshold": 0.2},
         "E[(share of C > 0 − 0.2)⁺ per prompt]"),
    ],
)  # fmt: skip
def test_what_is_never_negative_has_no_negative_limit(settings, quantity):
    assert Constraint("harm", 0.0, **settings).quantity == quantity
    with pytest.raises(InputError, match=r"'harm' is -1, but .* is never negative"):
        Constraint("harm", -1.0, **settings)
