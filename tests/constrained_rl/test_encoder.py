import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.testing import assert_close
from typer.testing import CliRunner

import constrained_rl as crl
from constrained_rl.checkpoint import load_state, save_state
from constrained_rl.cli import app
from constrained_rl.config import NetworkConfig
from constrained_rl.encoder import RunningNorm
from constrained_rl.networks import MLPPolicy
from tests.constrained_rl.helpers import tiny
from tests.constrained_rl.odd_envs import EASTING, Survey, odd
from tests.constrained_rl.test_cli import TINY
from tests.constrained_rl.test_rollout import make_rollout

BOX4 = spaces.Box(-10, 10, (4,), np.float32)


def policy_on(observation_space):
    torch.manual_seed(0)
    return MLPPolicy(observation_space, spaces.Discrete(2), NetworkConfig(hidden=(8,)))


def trained_on(space, x):
    """A policy whose statistics are those of the observations x [M, D]."""
    policy = policy_on(space)
    for part in np.array_split(x, [1, 10, 300]):
        policy.encoder.norm.merge(policy.encode(part))
    return policy


@given(st.integers(0, 2**31), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_merged_statistics_equal_numpy_over_everything_merged(seed, sizes):
    random = np.random.default_rng(seed)
    parts = [random.normal(100, random.uniform(0.1, 5), (size, 3)) for size in sizes]
    norm = RunningNorm(3)
    for part in parts:
        norm.merge(torch.from_numpy(part))
    everything = np.concatenate(parts)
    assert_close(norm.mean.numpy(), everything.mean(0))
    assert_close(norm.var.numpy(), everything.var(0), atol=1e-9, rtol=1e-9)
    assert norm.count == len(everything)


def test_normalised_values_are_standard_and_clipped_to_10():
    norm = RunningNorm(1)
    norm.merge(torch.tensor([[1.0], [3.0]]))  # mean 2, deviation 1
    assert_close(norm(torch.tensor([[4.0], [-1e6]])), torch.tensor([[2.0], [-10.0]]))


def test_before_any_data_observations_pass_unchanged():
    assert_close(RunningNorm(1)(torch.tensor([3.0])), torch.tensor([3.0]))


def test_only_states_in_which_somebody_decided_enter_the_statistics():
    policy = policy_on(BOX4)
    obs = torch.arange(4.0).reshape(1, 4, 1).expand(1, 4, 4)  # states 0, 1, 2 and the final 3
    policy.update_statistics(
        make_rollout(rows=1, obs=obs, mask=torch.tensor([[True, False, True]]))
    )
    assert policy.encoder.norm.count == 2
    assert policy.encoder.norm.mean.tolist() == [1.0] * 4  # of 0 and 2


def test_neither_acting_nor_scoring_moves_the_statistics():
    policy = policy_on(BOX4)
    before = {name: value.clone() for name, value in policy.named_buffers()}
    policy.act(torch.randn(3, 4), None, False)
    policy(torch.randn(3, 2, 4), torch.zeros(3, 2, dtype=torch.long))
    assert all(torch.equal(value, before[name]) for name, value in policy.named_buffers())


# Offsets and units


@pytest.mark.parametrize("offset", [0.0, 5.4e6, -1.7e9])
def test_an_offset_costs_no_digits(offset):
    x = offset + np.random.default_rng(0).uniform(-0.2, 0.2, (1000, 2))
    policy = trained_on(spaces.Box(-np.inf, np.inf, (2,), np.float64), x)
    y = x - offset  # exact; the spacing of float64 at 1.7e9 is 2.4e-7, 2e-6 deviations
    seen = policy.encoder(policy.encode(x)).numpy()
    assert np.allclose(seen, (y - y.mean(0)) / y.std(0), atol=3e-6)
    action = torch.zeros(1, 1000, dtype=torch.long)
    assert policy(policy.encode(x)[None], action)[0].dtype == torch.float32


@pytest.mark.parametrize("unit", [1e-30, 1e-7, 1e-3, 1.0, 1e12, 1e30])
def test_every_unit_comes_out_with_deviation_1(unit):
    x = unit * np.random.default_rng(0).normal(3, 1, (1000, 1))
    policy = trained_on(spaces.Box(-np.inf, np.inf, (1,), np.float64), x)
    assert policy.encoder(policy.encode(x)).std(correction=0) == pytest.approx(1, abs=1e-6)


def test_large_whole_numbers_are_told_apart():
    x = 1_700_000_000 + np.random.default_rng(0).integers(0, 60, (1000, 1))  # seconds since 1970
    policy = trained_on(spaces.Box(0, 2**40, (1,), np.int64), x)
    expected = (x - x.mean()) / x.std()
    assert np.allclose(policy.encoder(policy.encode(x)).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, EASTING + 0.3, 1e-9])
def test_constants_stay_0(value, dtype):
    space = spaces.Box(-np.inf, np.inf, (1,), dtype)
    x = np.full((1000, 1), value, dtype)
    assert not trained_on(space, x).encoder(torch.from_numpy(x)).any()
    # also those whose last digit is rounded one way or the other, as in sin² + cos²
    x[::3] = np.nextafter(x[::3], np.asarray(9e9, dtype))
    if value != 0:  # next to 0 the smallest number is a unit of its own
        assert not trained_on(space, x).encoder(torch.from_numpy(x)).any()


def test_a_saved_agent_sees_what_it_saw(tmp_path):
    agent = tiny("ppo", Survey)
    agent.train(8 * 4 * 6)
    agent.save(tmp_path / "agent")
    x = np.array([[EASTING + 0.1, 1e-7, EASTING + 0.1], [EASTING - 0.1, -1e-7, EASTING + 0.1]])
    state = {k: v.numpy() for k, v in agent.policy.state_dict().items()}
    mean, var = state["encoder.norm.mean"], state["encoder.norm.var"]
    assert var[:2] == pytest.approx([0.04 / 3, 0.04e-12 / 3], rel=0.3)
    hidden = (x - mean) / np.sqrt(np.where(var > 0, var, np.inf))
    for layer in (0, 2):
        hidden = hidden @ state[f"net.{layer}.weight"].T + state[f"net.{layer}.bias"]
        hidden = np.tanh(hidden) if layer == 0 else hidden
    loaded = crl.load(tmp_path / "agent", env=Survey)
    logits = loaded.policy._outputs(loaded.policy.encode(x)).T.detach().numpy()
    assert np.allclose(logits, hidden, atol=1e-6)
    assert loaded.predict(x).tolist() == hidden.argmax(1).tolist()


def test_a_run_of_the_command_line_writes_statistics_of_every_unit(tmp_path):
    settings = [*TINY, f"env.id={odd('Survey')}", "evaluation.every=0"]
    arguments = ["train", "--preset", "ppo", *settings, "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    norm = load_file(tmp_path / "run/policy.safetensors")
    mean, var = norm["encoder.norm.mean"], norm["encoder.norm.var"]
    assert abs(float(mean[0]) - EASTING) < 0.1  # 64 uniform numbers: deviation 0.2 / √3 / 8
    assert float(var[0]) == pytest.approx(0.04 / 3, rel=0.4)
    assert float(var[1]) == pytest.approx(0.04e-12 / 3, rel=0.4)
    assert (float(mean[2]), float(var[2])) == (EASTING + 0.1, 0.0)


def test_a_policy_saved_with_an_epsilon_acts_as_it_did():
    policy = policy_on(spaces.Box(-np.inf, np.inf, (1,), np.float64))
    state = policy.state_dict()
    del state["encoder.norm.epsilon"]  # as in folders of versions that added 1e-8 to each variance
    state["encoder.norm.mean"], state["encoder.norm.var"] = torch.tensor(
        [[2.0], [1e-8]], dtype=torch.float64
    )
    policy.load_state_dict(state)
    x = torch.tensor([[2.0001]], dtype=torch.float64)
    assert policy.encoder(x).item() == pytest.approx(1e-4 / np.sqrt(2e-8))
    again = policy_on(spaces.Box(-np.inf, np.inf, (1,), np.float64))
    again.load_state_dict(policy.state_dict())
    assert torch.equal(again.encoder(x), policy.encoder(x))


def without_epsilon(state):
    """A state as versions wrote it that added 1e-8 to each variance."""
    if not isinstance(state, dict):
        return state
    kept = {name: x for name, x in state.items() if not str(name).endswith("norm.epsilon")}
    return {name: without_epsilon(x) for name, x in kept.items()}


def test_a_folder_of_then_is_loaded_and_goes_on(tmp_path):
    agent = tiny("ppo", Survey, average=0.5)
    agent.train(8 * 4 * 4)
    agent.save(tmp_path / "new")
    old = without_epsilon(load_state(tmp_path / "new"))
    save_state(tmp_path / "old", old)
    loaded = crl.load(tmp_path / "old", env=Survey)
    x = np.array([[EASTING + 0.1, 1e-7, EASTING + 0.1]])
    norm = {k: v.numpy() for k, v in agent.policy.encoder.norm.state_dict().items()}
    expected = (x - norm["mean"]) / np.sqrt(norm["var"] + 1e-8)
    assert np.allclose(loaded.policy.encoder(loaded.policy.encode(x)).numpy(), expected)
    assert loaded.train(8 * 4 * 2)["iteration"] == 6
    again = tmp_path / "again"
    loaded.save(again)
    assert crl.load(again, env=Survey).policy.encoder.norm.epsilon == 1e-8
