import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform
from torch.testing import assert_close

from constrained_rl.config import NetworkConfig
from constrained_rl.errors import InputError
from constrained_rl.networks import MLPPolicy, StackedCritic

PLAIN = NetworkConfig(hidden=(8,), normalize_observations=False)
BOX4 = spaces.Box(-10, 10, (4,), np.float32)
SKEWED = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float64)


def policy_on(action_space, observation_space=BOX4, config=PLAIN):
    torch.manual_seed(0)
    policy = MLPPolicy(observation_space, action_space, config)
    with torch.no_grad():  # the last layer starts near 0: make its outputs differ
        policy.net[-1].weight.mul_(100)
    return policy


def test_categorical_log_probabilities_and_entropy_are_those_of_torch():
    policy = policy_on(spaces.Discrete(3))
    obs, action = torch.randn(2, 5, 4), torch.randint(3, (2, 5))
    logp, entropy = policy(obs, action)
    expected = Categorical(logits=policy.net(obs))
    assert_close(logp, expected.log_prob(action))
    assert_close(entropy, expected.entropy())


def test_gaussian_log_probabilities_and_entropy_are_those_of_torch():
    policy = policy_on(SKEWED)
    obs, action = torch.randn(2, 5, 4), 3 * torch.randn(2, 5, 2)
    logp, entropy = policy(obs, action)
    expected = Normal(policy.net(obs), policy.log_std.exp())
    assert_close(logp, expected.log_prob(action).sum(-1))
    assert_close(entropy, expected.entropy().sum(-1))


@pytest.mark.parametrize("space", [spaces.Discrete(3), SKEWED])
def test_the_state_after_the_last_decision_is_not_scored(space):
    policy = policy_on(space)
    obs = torch.randn(2, 6, 4)
    action = policy.act(obs[:, :5].flatten(0, 1), None, False).unflatten(0, (2, 5))
    assert torch.equal(policy(obs, action)[0], policy(obs[:, :5], action)[0])


def test_discrete_actions_are_drawn_with_their_probabilities():
    policy = policy_on(spaces.Discrete(3))
    obs = torch.randn(1, 4).expand(20_000, 4)
    drawn = policy.act(obs, torch.Generator().manual_seed(0), False)
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    # standard error of a share ≤ ½/√20000 = 0.0035
    assert_close(share, policy.net(obs[0]).softmax(-1), atol=0.015, rtol=0)


def test_gaussian_actions_are_drawn_with_their_mean_and_deviation():
    policy = policy_on(SKEWED)
    obs = torch.randn(1, 4).expand(20_000, 4)
    drawn = policy.act(obs, torch.Generator().manual_seed(0), False)
    assert_close(drawn.mean(0), policy.net(obs[0]), atol=0.02, rtol=0)
    assert_close(drawn.std(0), torch.full((2,), math.exp(-0.5)), atol=0.02, rtol=0)


def test_the_deterministic_action_is_the_mode():
    obs = torch.randn(7, 4)
    discrete, box = policy_on(spaces.Discrete(3)), policy_on(SKEWED)
    assert torch.equal(discrete.act(obs, None, True), discrete.net(obs).argmax(-1))
    assert_close(box.act(obs, None, True), box.net(obs))


def test_drawing_depends_on_the_given_generator_only():
    policy, obs = policy_on(SKEWED), torch.randn(7, 4)

    def draw(seed):
        return policy.act(obs, torch.Generator().manual_seed(seed), False)

    first = draw(0)
    torch.manual_seed(99)
    assert torch.equal(draw(0), first)
    assert not torch.equal(draw(1), first)


def test_actions_are_clipped_to_minus_1_and_1_and_then_rescaled_to_the_box():
    # The box is [−2, 2] × [0, 10]: unit ½ → 1 and 7.5; beyond ±1 → the bounds.
    action = torch.tensor([[0.5, 0.5], [7.0, -7.0], [0.0, 0.0]])
    expected = [[1.0, 7.5], [2.0, 0.0], [0.0, 5.0]]
    executed = policy_on(SKEWED).executed(action)
    assert executed.tolist() == expected
    assert executed.dtype == np.float64


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2))
def test_executed_actions_are_always_inside_the_box(action):
    space = spaces.Box(np.array([-0.1, 0.3], np.float32), np.array([0.2, 0.7], np.float32))
    policy = MLPPolicy(BOX4, space, PLAIN)
    assert space.contains(policy.executed(torch.tensor([action]))[0])


def test_discrete_actions_and_observations_count_from_their_start():
    policy = policy_on(spaces.Discrete(3, start=-1), spaces.Discrete(4, start=2))
    assert policy.executed(torch.tensor([0, 2])).tolist() == [-1, 1]
    obs = policy.encode(np.array([2, 5]))
    assert policy.encoder.raw(obs).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_encoded_observations_are_a_copy():
    array = np.zeros((1, 4), np.float32)
    obs = policy_on(spaces.Discrete(2)).encode(array)
    array += 1
    assert obs.sum() == 0


def test_a_float64_policy_encodes_to_float64():
    policy = policy_on(spaces.Discrete(3), spaces.Discrete(4)).double()
    obs = policy.encode(np.array([[0, 3]]))
    assert policy(obs, torch.zeros(1, 2, dtype=torch.long))[0].dtype == torch.float64


def test_observations_of_any_box_shape_are_flattened():
    space = spaces.Box(-1, 1, (2, 3), np.float32)
    critic = StackedCritic(space, 2, PLAIN)
    assert critic(torch.zeros(5, 4, 2, 3)).shape == (5, 4, 2)
    scalar = StackedCritic(spaces.Box(-1, 1, (), np.float32), 2, PLAIN)
    assert scalar(torch.zeros(5, 4)).shape == (5, 4, 2)


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (spaces.Dict({"a": BOX4}), spaces.Discrete(2), "FlattenObservation"),
        (spaces.Tuple([BOX4]), spaces.Discrete(2), "are Tuple.*FlattenObservation"),
        (spaces.Text(5), spaces.Discrete(2), "are Text.*crl llm"),
        (spaces.Graph(BOX4, None), spaces.Discrete(2), "are Graph.*TransformObservation"),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(2), "images.*ResizeObserv"),
        (spaces.Box(0, 255, (8, 8), np.uint8), spaces.Discrete(2), "images"),
        (spaces.Box(0, 1, (8, 8, 3), np.float32), spaces.Discrete(2), "images"),
        (BOX4, spaces.MultiDiscrete([2, 2]), "are MultiDiscrete.*Discrete and Box are supported"),
        (BOX4, spaces.MultiBinary(2), "are MultiBinary.*ActionWrapper"),
        (BOX4, spaces.Dict({"a": BOX4}), "actions are Dict"),
        (BOX4, spaces.Box(0, 9, (1,), np.int64), "Box of int64"),
        (BOX4, spaces.Box(-np.inf, np.inf, (1,)), "unbounded"),
    ],
)
def test_unsupported_spaces_are_refused_with_advice(observations, actions, message):
    with pytest.raises(InputError, match=message):
        MLPPolicy(observations, actions, PLAIN)


def test_flattened_pixels_are_taken_as_asked_for():
    flat = spaces.Box(0, 255, (192,), np.uint8)
    assert StackedCritic(flat, 1, PLAIN)(torch.zeros(2, 3, 192)).shape == (2, 3, 1)


def test_binary_and_multi_discrete_observations_are_read():
    binary = policy_on(spaces.Discrete(2), spaces.MultiBinary(3))
    assert binary.encoder.norm is None
    assert binary.encoder.raw(binary.encode(np.array([[1, 0, 1]]))).tolist() == [[1, 0, 1]]
    # Categories 0…1 and 5…7: 1 → (0, 1), 6 → (0, 1, 0)
    several = spaces.MultiDiscrete([2, 3], start=[0, 5])
    policy = policy_on(spaces.Discrete(2), several)
    assert policy.encoder.raw(policy.encode(np.array([[1, 6]]))).tolist() == [[0, 1, 0, 1, 0]]


# Gaussian modes

MODES = [(d, b) for d in ("constant", "state") for b in ("clip", "squash")]


def gaussian_policy(deviation, bounds):
    return policy_on(
        SKEWED, config=PLAIN.model_copy(update={"deviation": deviation, "bounds": bounds})
    )


@pytest.mark.parametrize(("deviation", "bounds"), MODES)
def test_what_is_stored_is_what_is_scored_and_only_executed_actions_are_bounded(deviation, bounds):
    policy, obs = gaussian_policy(deviation, bounds), torch.randn(2, 3, 4)
    u = 4 * torch.randn(2, 3, 2)
    mean, log_std = policy.gaussian(policy.net(obs))
    base = Normal(mean, log_std.exp())
    logp, entropy = policy(obs, u)
    if bounds == "clip":
        expected, bounded = base.log_prob(u).sum(-1), u.clamp(-1, 1)
        assert_close(entropy, base.entropy().sum(-1))
    else:
        squash = TanhTransform(cache_size=1)
        expected = TransformedDistribution(base, squash).log_prob(squash(u)).sum(-1)
        bounded = u.tanh()
        assert (entropy < base.entropy().sum(-1)).all()  # tanh contracts
    assert_close(logp, expected, atol=1e-4, rtol=1e-4)
    boxed = policy.executed(u.flatten(0, 1))
    low, high = SKEWED.low, SKEWED.high
    expected = low + (bounded.flatten(0, 1).detach().numpy() + 1) / 2 * (high - low)
    assert np.allclose(boxed, expected, atol=1e-5)


@pytest.mark.parametrize(("deviation", "bounds"), MODES)
def test_every_parameter_has_a_finite_gradient_at_extreme_actions(deviation, bounds):
    policy = gaussian_policy(deviation, bounds)
    logp, entropy = policy(torch.randn(1, 2, 4), torch.tensor([[[1e3, -1e3], [0.0, 30.0]]]))
    (logp.sum() + entropy.sum()).backward()
    gradients = [parameter.grad for parameter in policy.parameters()]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_a_deviation_by_state_starts_near_the_constant_one_and_differs_by_state():
    fresh = MLPPolicy(BOX4, SKEWED, PLAIN.model_copy(update={"deviation": "state"}))
    assert fresh.log_std is None
    log_std = fresh.gaussian(fresh.net(torch.randn(50, 4)))[1]
    assert log_std.shape == (50, 2)
    assert_close(log_std, torch.full((50, 2), -0.5), atol=0.1, rtol=0)
    learned = gaussian_policy("state", "clip")
    assert learned.gaussian(learned.net(torch.randn(50, 4)))[1].std() > 0.1


def test_the_same_noise_is_drawn_in_both_bounds():
    obs = torch.randn(5, 4)
    drawn = [
        gaussian_policy("constant", bounds).act(obs, torch.Generator().manual_seed(0), False)
        for bounds in ("clip", "squash")
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("setting", [{"deviation": "state"}, {"bounds": "squash"}])
def test_gaussian_settings_on_discrete_actions_are_refused(setting):
    with pytest.raises(InputError, match="both concern Box actions: leave them out"):
        MLPPolicy(BOX4, spaces.Discrete(2), PLAIN.model_copy(update=setting))


# StackedCritic


def test_the_stacked_critic_equals_separate_networks():
    torch.manual_seed(0)
    critic = StackedCritic(BOX4, 3, NetworkConfig(hidden=(8, 6), normalize_observations=False))
    obs = torch.randn(2, 5, 4)
    values = critic(obs)
    assert values.shape == (2, 5, 3)
    for stream in range(3):
        x = obs
        for layer in range(3):
            x = x @ critic.weights[layer][stream] + critic.biases[layer][stream]
            x = x.tanh() if layer < 2 else x
        assert_close(values[..., stream], x.squeeze(-1))


def test_a_stream_sends_no_gradient_into_the_network_of_another():
    critic = StackedCritic(BOX4, 2, PLAIN)
    critic(torch.randn(1, 3, 4))[..., 0].sum().backward()
    assert all(parameter.grad[1].abs().sum() == 0 for parameter in critic.parameters())
    assert critic.weights[0].grad[0].abs().sum() > 0
