"""What the networks can read and do: observations given to `predict`, bounds of actions."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from typer.testing import CliRunner

import constrained_rl as crl
from constrained_rl.cli import app
from constrained_rl.errors import InputError
from constrained_rl.spaces import observations_of, require_action_space
from tests.constrained_rl.helpers import tiny
from tests.constrained_rl.odd_envs import Walk, odd
from tests.constrained_rl.test_cli import TINY

PLANE = Walk.observation_space


@pytest.mark.parametrize(
    ("space", "obs", "shape", "single"),
    [
        (PLANE, [0.5, 0.25], (1, 2), True),
        (PLANE, torch.zeros(3, 2, requires_grad=True), (3, 2), False),
        (PLANE, np.zeros((0, 2)), (0, 2), False),
        (Discrete(4), 3, (1,), True),
        (Discrete(4), np.array([3, 0, 1]), (3,), False),
        (Box(-1, 1, ()), np.float32(0.5), (1,), True),
        (Box(-1, 1, (2, 3)), np.zeros((4, 2, 3)), (4, 2, 3), False),
        (MultiDiscrete([2, 3]), np.array([1, 2]), (1, 2), True),
        (MultiBinary(3), np.ones((2, 3), bool), (2, 3), False),
    ],
    ids=str,
)
def test_one_observation_is_a_batch_of_one(space, obs, shape, single):
    batch, was_single = observations_of(obs, space)
    assert (batch.shape, was_single) == (shape, single)


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (PLANE, np.zeros(3), r"of shape \(3,\), expected one observation of shape \(2,\)"),
        (PLANE, np.zeros((3, 1)), r"shape \(3, 1\).*\('N', 2\)"),
        (PLANE, np.zeros((1, 3, 2)), r"shape \(1, 3, 2\)"),
        (PLANE, 0.5, r"shape \(\)"),
        (PLANE, (np.zeros(2), {"seed": 3}), r"the pair.*obs, info = env\.reset\(\)"),
        (PLANE, "left", r"dtype <U4, expected numbers"),
        (PLANE, None, "dtype object, expected numbers"),
        (PLANE, {"x": 1.0}, "dtype object, expected numbers"),
        (PLANE, [[0.0, 0.0], [0.0]], r"expected observations of Box"),
        (Discrete(4), 4, "hold 4, which is no category"),
        (Discrete(4, start=1), np.array([1, 0]), "hold 0, which is no category"),
        (MultiDiscrete([2, 3]), [[1, 1], [1, 3]], "hold 3, which is no category"),
        (Box(-1, 1, (2, 3)), np.zeros((2, 2, 2)), r"\(2, 2, 2\).*\('N', 2, 3\)"),
    ],
    ids=str,
)
def test_what_is_no_observation_is_refused(space, obs, message):
    with pytest.raises(InputError, match=message):
        observations_of(obs, space)


def test_an_agent_says_so_and_so_does_a_loaded_one(tmp_path):
    agent = tiny("ppo", "constrained_rl/PointHazard-v0")
    agent.save(tmp_path / "agent")
    env = gymnasium.make("constrained_rl/PointHazard-v0")
    for one in (agent, crl.load(tmp_path / "agent")):
        with pytest.raises(InputError, match="the pair"):
            one.predict(env.reset(seed=0))
        for number in (np.nan, -np.inf, 1e39):  # the last is infinite in float32
            with pytest.raises(InputError, match=r"NaN or infinite in torch\.float32"):
                one.predict(np.full(env.observation_space.shape, number))
    obs = np.stack([env.reset(seed=n)[0] for n in range(4)])
    backwards = agent.predict(obs[::-1])  # a view with negative strides
    assert np.array_equal(backwards, agent.predict(obs)[::-1])
    assert np.array_equal(agent.predict(obs.tolist()), agent.predict(torch.from_numpy(obs)))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("constrained_rl/PointHazard-v0", r"observations of .* are Box.*trained on Box.*\(2,\)"),
        (lambda: seeing(Discrete(2)), r"observations of .* are Discrete\(2\)"),
        (lambda: acting(Discrete(3)), r"actions of .* are Discrete\(3\).*trained on Discrete\(2\)"),
        (lambda: acting(Discrete(2, start=1)), r"actions of .* are Discrete\(2, start=1\)"),
    ],
)
def test_a_policy_is_evaluated_on_the_spaces_that_it_was_trained_on(env, message, tmp_path):
    agent = tiny("ppo", Walk)
    agent.save(tmp_path / "agent")
    for one in (agent, crl.load(tmp_path / "agent", env=Walk)):
        with pytest.raises(InputError, match=message):
            one.evaluate(4, env=env)
    assert len(agent.evaluate(4, env=lambda: Walk(3))) == 4


def acting(space):
    env = Walk()
    env.action_space = space
    return env


def seeing(space):
    env = Walk()
    env.observation_space = space
    return env


# Action boxes

LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    "box",
    [
        Box(-LARGEST, LARGEST, (1,), np.float32),
        Box(0, LARGEST, (2,), np.float32),
        Box(-LARGEST, LARGEST, (1,), np.float64),
        Box(-LARGEST / 2, LARGEST / 2, (1,), np.float32),
        Box(-1, float(np.finfo(np.float64).max), (1,), np.float64),
        Box(-65504, 65504, (1,), np.float16),
        Box(np.array([-1, -LARGEST], np.float32), np.array([1, LARGEST], np.float32)),
        Box(-1, np.inf, (1,)),
    ],
    ids=str,
)
def test_bounds_that_stand_for_none_are_refused(box):
    with pytest.raises(InputError, match=r"unbounded.*TransformAction"):
        require_action_space(box)


@pytest.mark.parametrize(
    "box",
    [
        Box(-1e30, 1e30, (1,), np.float32),
        Box(-1e30, 1e30, (1,), np.float64),
        Box(-3e4, 3e4, (1,), np.float16),
        Box(-1e-30, 1e-30, (1,), np.float32),
    ],
    ids=str,
)
def test_large_boxes_are_used_from_one_end_to_the_other(box):
    class Wide(Walk):
        action_space = box

    agent = tiny("ppo", Wide)
    half = box.high.astype(np.float64)
    for unit in (-2.0, -0.5, 0.0, 1.0):  # the box is symmetric
        done = agent.policy.executed(torch.full((1, *box.shape), unit))
        assert np.allclose(done, np.clip(unit, -1, 1) * half, rtol=1e-3)
        assert done.dtype == box.dtype


def test_a_box_of_no_numbers_has_bounds():
    require_action_space(Box(0, 1, (0,), np.float32))


def test_the_advice_for_an_unbounded_box_works(tmp_path):
    def bounded():
        env = gymnasium.make(odd("Unbounded"))
        box = Box(-1, 1, env.action_space.shape)
        return gymnasium.wrappers.TransformAction(env, lambda action: 2 * action, box)

    assert tiny("ppo", bounded).train(32)["iteration"] == 1
    arguments = ["train", *TINY, f"env.id={odd('Unbounded')}", "limit=1", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert "TransformAction" in str(result.exception)
