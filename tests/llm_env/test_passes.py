import torch

from llm_env.passes import ShuffledPasses


def test_every_item_comes_once_before_any_comes_twice():
    passes = ShuffledPasses(5, seed=0)
    drawn = torch.cat([passes.draw(3) for _ in range(10)])  # six passes, cut anywhere
    orders = [tuple(order.tolist()) for order in drawn.split(5)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len(set(orders)) > 1


def test_a_draw_may_be_longer_than_a_pass():
    assert ShuffledPasses(2, seed=0).draw(5).bincount().tolist() in ([3, 2], [2, 3])


def test_a_restored_pass_goes_on_where_it_stood():
    original, copy = ShuffledPasses(7, seed=0), ShuffledPasses(7, seed=9)
    original.draw(3)
    copy.load_state_dict(original.state_dict())
    for _ in range(5):
        assert torch.equal(original.draw(4), copy.draw(4))
