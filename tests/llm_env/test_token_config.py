"""Settings of token PPO keep the bounds of the core's."""

import pytest

from constrained_rl.errors import InputError
from constrained_rl.settings import validate
from llm_env.config import TokenPPOConfig


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", -1.0),
        ("critic_learning_rate", 0.0),
        ("kl_coefficient", float("nan")),
        ("gamma", 1.5),
        ("value_clip", -5.0),
        ("betas", (0.9, 2.0)),
        ("schedule", "sometimes"),
    ],
)
def test_values_out_of_bounds_are_refused_by_name(key, value):
    with pytest.raises(InputError, match=key):
        validate(TokenPPOConfig, {key: value}, "test")
