from functools import partial

import pytest
import torch

from constrained_rl.config import RunConfig
from constrained_rl.constraints import Signal
from constrained_rl.errors import InputError
from constrained_rl.multiplier_config import GradientConfig
from constrained_rl.multipliers import Gradient
from constrained_rl.optimizers import find_optimizer, make_optimizer
from constrained_rl.settings import validate

STEPPING = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "Adagrad", "ASGD")
STEPPING = (*STEPPING, "RMSprop", "Rprop", "Adafactor")


def made(choice, **options):
    return make_optimizer(choice, torch.zeros(2, dtype=torch.float64), 0.1, options)[0]


@pytest.mark.parametrize("name", ["sgd", "SGD", "adamw", "RMSprop", "rmsPROP"])
def test_a_name_in_any_case_finds_its_class(name):
    assert find_optimizer(name).__name__.lower() == name.lower()


@pytest.mark.parametrize("name", STEPPING)
def test_every_optimizer_of_dense_gradients_drives_lambda(name):
    # Whatever its moments, the first step on a violated constraint raises λ.
    multiplier = Gradient(1, 0.1, initial=0.5, optimizer=name)
    number = torch.tensor([2.0], dtype=torch.float64)
    assert multiplier.update(Signal(number, number - 1, number, number, 1.0, 1.0)) > 0.5


def test_learning_rate_and_options_reach_the_optimizer():
    group = made("AdamW", betas=[0.5, 0.9], weight_decay=0.25).param_groups[0]
    assert (group["lr"], list(group["betas"]), group["weight_decay"]) == (0.1, [0.5, 0.9], 0.25)


@pytest.mark.parametrize("factory", [torch.optim.Adam, partial(torch.optim.Adam, eps=1e-3)])
def test_a_factory_is_called_with_the_learning_rate(factory):
    assert made(factory).param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamm", {}, "'adamm' is not in torch.optim .* did you mean adam"),
        ("optimizer", {}, "not in torch.optim"),  # the abstract base
        ("zzz", {}, "adadelta, adafactor"),  # nothing is near: all of them
        ("adam", {"beta": [0.5, 0.9]}, "Adam has no option 'beta'; did you mean betas"),
        ("adam", {"betas": [0.5, 1.5]}, r"refuses optimizer_options .*1\.5"),
        ("adam", {"lr": 1.0}, "set multiplier.learning_rate"),
        ("sgd", {"maximize": True}, "ascent into descent"),
        ("LBFGS", {}, "LBFGS cannot drive λ.*closure"),
        ("SparseAdam", {}, "SparseAdam cannot drive λ.*dense gradients"),
    ],
)
def test_what_cannot_drive_lambda_is_refused_with_the_reason(name, options, message):
    with pytest.raises(InputError, match=message):
        made(name, **options)


def test_a_factory_of_something_else_is_refused():
    with pytest.raises(InputError, match="made a list"):
        made(lambda params, lr: [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamm"}, "multiplier: optimizer 'adamm'"),
        ({"optimizer": "lbfgs"}, "closure"),
        ({"optimizer_options": {"betas": [0.5, 0.9]}}, "SGD has no option 'betas'"),
        ({"parameterization": "softplus"}, "initial > 0"),
    ],
)
def test_a_config_is_refused_before_anything_is_built(settings, message):
    tree = {"multiplier": {"kind": "gradient"} | settings}
    with pytest.raises(InputError, match=message):
        validate(RunConfig, tree, "test")


def test_a_config_holds_the_options_as_they_were_given():
    tree = {"optimizer": "NAdam", "optimizer_options": {"betas": [0.5, 0.9]}}
    config = validate(GradientConfig, tree, "test")
    assert config.model_dump()["optimizer_options"] == {"betas": [0.5, 0.9]}
