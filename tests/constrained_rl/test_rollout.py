from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from constrained_rl.errors import InputError, NonFiniteError
from constrained_rl.rollout import Batch, Episodes, Rollout, Streams, decision_weights

NONE = torch.zeros(0, dtype=torch.long)
NO_EPISODES = Episodes(NONE.double(), NONE.double().reshape(0, 1), NONE, NONE, NONE)


def make_rollout(rows=2, decisions=3, **changes):
    flags = torch.zeros(rows, decisions, dtype=torch.bool)
    fields = {
        "obs": torch.zeros(rows, decisions + 1, 4),
        "action": torch.zeros(rows, decisions, dtype=torch.long),
        "reward": torch.zeros(rows, decisions),
        "cost": torch.zeros(rows, decisions, 1),
        "terminated": flags,
        "done": flags,
        "mask": ~flags,
        "episodes": NO_EPISODES,
        "exchangeable": True,
    }
    return Rollout(**fields | changes)


def make_batch(mask, loss_mean="token"):
    """A batch in which `logp` numbers the decisions: row · T + t."""
    rows, decisions = mask.shape
    number = torch.arange(rows * decisions, dtype=torch.float64).reshape(rows, decisions)
    states = torch.arange(rows * (decisions + 1)).reshape(rows, decisions + 1)
    return Batch(
        obs=states.unsqueeze(-1),
        action=number.unsqueeze(-1),
        weight=decision_weights(mask, loss_mean, torch.float64),
        logp=number,
        advantage=number + 0.5,
        value=number.unsqueeze(-1).expand(-1, -1, 2),
        target=number.unsqueeze(-1).expand(-1, -1, 2),
    )


def masks(seed, rows=5, decisions=4):
    mask = torch.rand(rows, decisions, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[:, 0] = True
    return mask


# decision_weights

TWO_ROWS = torch.tensor([[True, True, True], [True, False, False]])


def test_token_mean_counts_every_decision_alike():
    # 4 decisions: ¼ each
    expected = torch.tensor([[0.25, 0.25, 0.25], [0.25, 0, 0]])
    assert torch.equal(decision_weights(TWO_ROWS, "token", torch.float32), expected)


def test_sequence_mean_counts_every_row_alike():
    # 2 rows of ½: the first shares it among 3 decisions, the second gives it to one
    expected = torch.tensor([[1 / 6, 1 / 6, 1 / 6], [0.5, 0, 0]])
    assert_close(decision_weights(TWO_ROWS, "sequence", torch.float32), expected)


def test_a_row_without_decisions_has_no_share_in_either_mean():
    mask = torch.cat([TWO_ROWS, torch.zeros(1, 3, dtype=torch.bool)])
    for mean in ("token", "sequence"):
        weight = decision_weights(mask, mean, torch.float32)
        assert torch.equal(weight[:2], decision_weights(TWO_ROWS, mean, torch.float32))
        assert weight[2].sum() == 0


@given(st.integers(0, 2**31), st.sampled_from(["token", "sequence"]))
def test_weights_sum_to_1_and_are_0_exactly_where_masked(seed, loss_mean):
    mask = masks(seed)
    weight = decision_weights(mask, loss_mean, torch.float64)
    assert_close(weight.sum().item(), 1.0)
    assert torch.equal(weight > 0, mask)


# flatten, minibatches, microbatches


def test_flattening_keeps_each_decision_with_its_own_observation():
    flat = make_batch(TWO_ROWS).flatten()
    # Rows hold T + 1 = 4 states: decision (0, t) sees state t, decision (1, 0) sees state 4.
    assert flat.obs.flatten().tolist() == [0, 1, 2, 4]
    assert flat.logp.flatten().tolist() == [0, 1, 2, 3]
    assert flat.action.shape == (4, 1, 1)
    assert flat.target.shape == (4, 1, 2)


@given(
    st.integers(0, 2**31),
    st.integers(1, 8),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from(["token", "sequence"]),
)
def test_splitting_visits_every_decision_once_with_weights_that_sum_to_1(
    seed, count, size, flatten, loss_mean
):
    mask = masks(seed)
    batch = make_batch(mask, loss_mean)
    batch = batch.flatten() if flatten else batch
    assert_close(batch.weight.sum().item(), 1.0)
    seen = []
    minibatches = list(batch.minibatches(count, torch.Generator().manual_seed(seed)))
    assert len(minibatches) == min(count, len(batch))
    for minibatch in minibatches:
        assert_close(minibatch.weight.sum().item(), 1.0)
        pieces = list(minibatch.microbatches(size))
        assert all(len(piece) <= size for piece in pieces)
        assert_close(sum(float(piece.weight.sum()) for piece in pieces), 1.0)
        seen += [x for piece in pieces for x in piece.logp[piece.weight > 0].tolist()]
    assert sorted(seen) == make_batch(mask).logp[mask].tolist()


def test_minibatches_are_equally_many_as_asked_and_differ_by_at_most_one_row():
    batch = make_batch(torch.ones(10, 1, dtype=torch.bool))
    sizes = [len(part) for part in batch.minibatches(8, torch.Generator())]
    assert sorted(sizes) == [1, 1, 1, 1, 1, 1, 2, 2]


def test_minibatch_order_is_the_generators():
    batch = make_batch(torch.ones(8, 1, dtype=torch.bool))

    def order(seed):
        generator = torch.Generator().manual_seed(seed)
        return [x for part in batch.minibatches(2, generator) for x in part.logp.flatten().tolist()]

    assert order(0) == order(0) != order(1)


def test_no_micro_batch_size_means_one_piece():
    batch = make_batch(TWO_ROWS)
    (piece,) = batch.microbatches(None)
    assert torch.equal(piece.logp, batch.logp)


def test_opaque_observations_are_not_flattened():
    batch = replace(make_batch(TWO_ROWS), obs=["prompt", "prompt"])
    with pytest.raises(InputError, match="observations are tensors"):
        batch.flatten()


# Rollout and Streams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("terminated", torch.zeros(2, 4, dtype=torch.bool)),
        ("done", torch.zeros(3, 3, dtype=torch.bool)),
        ("mask", torch.ones(2, dtype=torch.bool)),
        ("action", torch.zeros(2)),
        ("action", torch.zeros(2, 2, 5)),
        ("cost", torch.zeros(2, 3)),
        ("cost", torch.zeros(1, 3, 1)),
        ("reward", torch.zeros(6)),
        ("obs", torch.zeros(3, 4, 4)),
        ("behaviour_logp", torch.zeros(2, 2)),
        ("group", torch.zeros(3)),
    ],
)
def test_a_wrong_shape_is_refused_by_name(field, value):
    with pytest.raises(InputError, match=field):
        make_rollout(**{field: value})


def test_a_rollout_without_any_decision_is_refused():
    with pytest.raises(InputError, match="no decision"):
        make_rollout(mask=torch.zeros(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("field", ["reward", "cost"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_with_name_and_count(field, bad):
    value = torch.zeros(2, 3, *([1] if field == "cost" else []))
    value[1, 2] = bad
    with pytest.raises(NonFiniteError, match=f"rollout {field}: 1 of 6"):
        make_rollout(**{field: value})


def test_regression_targets_are_advantage_plus_old_value():
    x = torch.ones(1, 1, 2)
    streams = Streams(
        x, x, x[..., 0] > 0, x[..., 0], value=2 * x, advantage=3 * x, exchangeable=True
    )
    assert streams.target.tolist() == [[[5.0, 5.0]]]
