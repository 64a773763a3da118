import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from constrained_rl.checkpoint import pack, unpack
from constrained_rl.moments import Moments


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_moments_by_hand():
    moments = Moments(2)
    assert (moments.mean.tolist(), moments.var.tolist()) == ([0, 0], [1, 1])  # nothing yet
    moments.merge(rows([1, 10], [3, 10]))
    assert (moments.mean.tolist(), moments.var.tolist()) == ([2, 10], [1, 0])
    # 1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9)/4 = 5;  10, 10, 0, 20: mean 10, variance 50
    moments.merge(rows([5, 0], [7, 20]))
    assert (moments.mean.tolist(), moments.var.tolist()) == ([4, 10], [5, 50])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 1000))
def test_pieces_merge_to_the_moments_of_the_whole(sizes, seed):
    whole = 5 + 3 * torch.randn(sum(sizes), 2, generator=torch.Generator().manual_seed(seed))
    moments = Moments(2)
    for piece in whole.split(sizes):
        moments.merge(piece)
    if len(whole):
        assert_close(moments.mean, whole.double().mean(0))
        assert_close(moments.var, whole.double().var(0, correction=0))


def test_restored_moments_go_on_bitwise():
    original, copy = Moments(1), Moments(1)
    original.merge(torch.rand(7, 1))
    tensors = {}
    copy.load_state_dict(unpack(pack(original.state_dict(), tensors), tensors))
    more = torch.rand(5, 1)
    for moments in (original, copy):
        moments.merge(more)
    assert torch.equal(original.mean, copy.mean)
    assert torch.equal(original.var, copy.var)
    assert original.count == copy.count == 12
