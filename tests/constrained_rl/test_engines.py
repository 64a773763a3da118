import pytest
import torch
from torch import nn

from constrained_rl.engines import Optimization, TorchEngine, feed
from constrained_rl.errors import InputError

ADAM = Optimization(1e-4, (0.9, 0.999), 1e9)


class Weight(nn.Module):
    """One trainable weight w = 1, one frozen, one buffer."""

    def __init__(self, dtype=torch.float32, size=1):
        super().__init__()
        self.w = nn.Parameter(torch.ones(size, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self):
        return self.w.sum()


def descend(engine, steps):
    """Steps along the constant slope 1; Adam moves by its learning rate, 1e-4, in each."""
    for _ in range(steps):
        engine.accumulate(lambda: (engine.forward(), {}), last=True)
        engine.step()


def test_steps_smaller_than_the_spacing_of_bfloat16_add_up():
    # Below 1 bfloat16 numbers are 2^-8 ≈ 0.0039 apart: one step of 1e-4 alone is rounded away.
    module = Weight(torch.bfloat16)
    engine = TorchEngine(module, ADAM)
    descend(engine, 1)
    assert module.w.item() == 1.0
    descend(engine, 99)
    # 100 steps of 1e-4 (ε = 1e-5 takes a hundred-thousandth of it): 0.99, to the nearest 2^-8
    assert module.w.item() == pytest.approx(0.99, abs=2**-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_engine_goes_on_in_the_same_bits(dtype):
    whole, first, second = (TorchEngine(Weight(dtype), ADAM) for _ in range(3))
    descend(whole, 60)
    descend(first, 30)
    second.load_state_dict(first.state_dict())
    descend(second, 30)
    (_, a), (_, b) = *whole.full_parameters(), *second.full_parameters()
    assert torch.equal(a, b)
    assert a.item() < 1.0


def test_a_checkpoint_holds_what_training_changes():
    state = TorchEngine(Weight(), ADAM).state_dict()
    assert sorted(state["module"]) == ["seen", "w"]
    assert "master" not in state


def test_a_state_of_another_shape_is_refused_by_name():
    with pytest.raises(InputError, match=r"of another shape: w \(2,\) for \(1,\)"):
        TorchEngine(Weight(), ADAM).load_state_dict(TorchEngine(Weight(size=2), ADAM).state_dict())


def test_a_state_without_a_trained_weight_is_refused_by_name():
    state = TorchEngine(Weight(), ADAM).state_dict()
    del state["module"]["w"]
    with pytest.raises(
        InputError, match=r"another model than the settings describe \(missing: w\)"
    ):
        TorchEngine(Weight(), ADAM).load_state_dict(state)


def test_training_float16_weights_without_scaling_is_refused():
    with pytest.raises(InputError, match="dtype = 'bfloat16' or 'float32'"):
        TorchEngine(Weight(torch.float16), ADAM)


def test_a_replica_is_fed_what_is_trained():
    module, replica = Weight(), Weight()
    engine = TorchEngine(module, ADAM)
    descend(engine, 3)
    feed(replica, engine)
    assert torch.equal(replica.w, module.w)
    assert replica.w.item() < 1.0
