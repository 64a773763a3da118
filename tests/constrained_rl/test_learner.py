import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from constrained_rl.engines import Optimization, TorchEngine
from constrained_rl.errors import NonFiniteError
from constrained_rl.learner import Learner, PolicyObjective, ValueObjective
from constrained_rl.ppo import annotate, mix
from constrained_rl.value_norm import ValueNorm
from tests.constrained_rl.helpers import gradients_of, tiny


@pytest.fixture
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def sixteen_rows(micro_batch, **ppo):
    """An agent with 16 rows of 6 decisions, one minibatch and practically no gradient clip."""
    ppo = {"horizon": 6, "minibatches": 1, "max_grad_norm": 1e9, "micro_batch": micro_batch} | ppo
    return tiny(env="constrained_rl/PointHazard-v0", sub={"num_envs": 16}, limit=0.5, ppo=ppo)


def gradients(agent, rollout):
    """λ and all gradients of one policy and one critic step on `rollout`."""
    parts = agent.parts
    streams = annotate(rollout, parts)
    lam = parts.multiplier.update(parts.constraints.signal(rollout.episodes, streams))
    batch = mix(streams, lam, parts.config)
    with torch.no_grad():  # away from ratio 1, so that clipping acts
        for parameter in agent.policy.parameters():
            parameter.add_(0.3 * torch.cos(torch.arange(parameter.numel())).view_as(parameter))
    (minibatch,) = batch.minibatches(1, torch.Generator().manual_seed(0))
    policy, metrics = gradients_of(parts.policy_learner, minibatch)
    critic, critic_metrics = gradients_of(parts.critic_learner, minibatch)
    return lam, policy + critic, metrics | critic_metrics


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("loss_mean", ["token", "sequence"])
def test_micro_batch_size_changes_neither_lambda_nor_gradients(flatten, loss_mean):
    settings = {"flatten": flatten, "loss_mean": loss_mean, "entropy": 0.01, "value_clip": 0.1}
    source = sixteen_rows(None, **settings)
    windows = [source.parts.collector.collect() for _ in range(10)]
    rollout = windows[-1]  # its episodes are cut at 60 steps, so some end and the next begin
    assert len(rollout.episodes) > 0
    # Rows of different lengths, as reset steps and paddings make them: row b has 1 + b % 6.
    short = torch.arange(6) <= torch.arange(16).unsqueeze(1) % 6
    rollout = replace(rollout, mask=rollout.mask & short)
    lam, whole, metrics = gradients(sixteen_rows(None, **settings), rollout)
    assert lam > 0
    assert metrics["clip_fraction"] > 0
    assert all(gradient.abs().sum() > 0 for gradient in whole)
    for size in (1, 4, 16):
        same_lam, pieces, same_metrics = gradients(sixteen_rows(size, **settings), rollout)
        assert torch.equal(lam, same_lam)
        for a, b in zip(whole, pieces, strict=True):
            assert_close(a, b, atol=1e-9, rtol=1e-9)
        assert metrics == pytest.approx(same_metrics, abs=1e-9)


class Constant(torch.nn.Module):
    """A policy and a critic of one parameter: logp = entropy = value = θ."""

    def __init__(self, theta=0.0, shape=(2, 3)):
        super().__init__()
        self.theta, self.shape = torch.nn.Parameter(torch.tensor(theta)), shape

    def forward(self, obs, action):
        out = self.theta.expand(len(obs), self.shape[1])
        return out, out


class ConstantCritic(Constant):
    def forward(self, obs):
        return self.theta.expand(len(obs), self.shape[1] + 1, 1)


def two_rows(advantage=1.0, target=1.0):
    from constrained_rl.rollout import Batch

    ones = torch.ones(2, 3)
    return Batch(
        obs=ones,
        action=ones,
        weight=ones / 6,
        logp=0 * ones,
        advantage=advantage * ones,
        value=torch.zeros(2, 3, 1),
        target=target * ones.unsqueeze(-1),
    )


def learner_of(module, objective, max_grad_norm=1.0, micro_batch=None):
    engine = TorchEngine(module, Optimization(0.1, (0.9, 0.999), max_grad_norm))
    return Learner(engine, objective, micro_batch)


def test_the_policy_loss_pays_for_entropy():
    policy = Constant()
    loss, metrics = PolicyObjective(policy, clip=0.2, entropy=0.5)(two_rows(advantage=2.0))
    loss.backward()
    # L = −2ρ − ½·θ at θ = 0: slope −2 − ½
    assert_close(policy.theta.grad.item(), -2.5)
    assert metrics["loss/policy"] == pytest.approx(-2.0)
    assert metrics["entropy"] == 0


def test_the_value_loss_names_every_stream_and_ignores_the_final_state():
    critic = ConstantCritic()
    loss, metrics = ValueObjective(critic, ["reward"], clip=None)(two_rows(target=3.0))
    # ½·3²; ∂/∂θ = −3 from the weighted mean over 6 decisions, nothing from the states after them
    loss.backward()
    assert metrics == {"loss/value/reward": pytest.approx(4.5)}
    assert_close(critic.theta.grad.item(), -3.0)


def test_the_dual_clip_reaches_the_policy_loss():
    policy = Constant(theta=math.log(5))
    loss, _ = PolicyObjective(policy, 0.2, 0.0, dual_clip=3.0)(two_rows(advantage=-1.0))
    loss.backward()
    # ρ = 5: max(−5, −3), flat
    assert_close(loss.item(), 3.0)
    assert policy.theta.grad.item() == 0


def normalised_critic(theta, clip=None):
    """Gradient, loss and value of a critic whose output is θ, with μ = 10 and σ = 4."""
    critic, norm = ConstantCritic(theta), ValueNorm(1)
    norm.merge(torch.tensor([[6.0], [14.0]]))
    loss, _ = ValueObjective(critic, ["reward"], clip, norm)(two_rows(target=20.0))
    loss.backward()
    return critic.theta.grad.item(), loss.item()


def test_a_normalised_value_loss_is_the_one_between_standardised_values_and_targets():
    # V = 4·½ + 10 = 12; ½ (12 − 20)² / 4² = ½ (½ − 2½)² = 2; slope ½ − 2½
    assert normalised_critic(0.5) == pytest.approx((-2.0, 2.0))


def test_the_value_clip_counts_in_return_units_when_values_are_normalised_too():
    # V_old = 0, ε_v = 5: clip(12, ±5) = 5, and ½ (5 − 20)² / 16 exceeds ½ (12 − 20)² / 16
    assert normalised_critic(0.5, clip=5.0) == pytest.approx((0.0, 0.5 * 225 / 16))


class Pull:
    """An auxiliary loss θ·3 in two pieces of ⅓ and ⅔, which counts its draws."""

    def __init__(self, policy):
        self.policy, self.draws = policy, 0

    def shares(self, micro_batch, engine):
        self.draws += 1
        theta = self.policy.theta
        return [
            lambda part=part: (theta * part, {"loss/pull": theta.detach() * part})
            for part in (1.0, 2.0)
        ]

    def state_dict(self):
        return {"draws": self.draws}

    def load_state_dict(self, state):
        self.draws = state["draws"]


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_an_auxiliary_loss_joins_the_gradient_of_the_one_step(micro_batch):
    policy = Constant()
    learner = learner_of(policy, PolicyObjective(policy, 0.2, 0.0), 1e9, micro_batch)
    learner.auxiliary = Pull(policy)
    (slope,), metrics = gradients_of(learner, two_rows(advantage=2.0))
    # −2 of the surrogate and +3, drawn once whatever the pieces
    assert_close(slope.item(), 1.0)
    assert learner.auxiliary.draws == 1
    assert metrics["loss/pull"] == 0
    other = learner_of(Constant(), None)
    other.auxiliary = Pull(None)
    other.load_state_dict(learner.state_dict())
    assert other.auxiliary.draws == 1


def test_gradients_are_clipped_over_the_whole_minibatch_not_per_piece():
    # The slope of the surrogate is −A = −8; clipped to norm 1 whatever the pieces.
    for size in (None, 1):
        policy = Constant()
        learner = learner_of(policy, PolicyObjective(policy, 0.2, 0.0), micro_batch=size)
        (slope,), _ = gradients_of(learner, two_rows(8.0))
        assert_close(slope.item(), -1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_take_no_memory_between_steps(dtype):
    policy = Constant().to(dtype)
    policy.theta.grad = torch.ones_like(policy.theta)  # of an earlier training; not counted
    learner = learner_of(policy, PolicyObjective(policy, 0.2, 0.0), 1e9)
    (slope,), _ = gradients_of(learner, two_rows(advantage=2.0))
    assert slope.item() == -2
    held = [*policy.parameters(), *learner.engine.optimizer.param_groups[0]["params"]]
    assert all(parameter.grad is None for parameter in held)


def test_metrics_of_pieces_add_up_to_those_of_the_minibatch():
    policy, other = Constant(), Constant()
    whole = learner_of(policy, PolicyObjective(policy, 0.2, 0.0)).step(two_rows())
    pieces = learner_of(other, PolicyObjective(other, 0.2, 0.0), micro_batch=1).step(two_rows())
    assert whole == pytest.approx(pieces)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_named_and_moves_no_weight(bad):
    policy = Constant()
    learner = learner_of(policy, PolicyObjective(policy, 0.2, 0.0))
    with pytest.raises(NonFiniteError, match="loss/policy: 1 of 1"):
        learner.step(two_rows(advantage=bad))
    assert policy.theta.item() == 0


def test_an_exploding_gradient_is_named_and_moves_no_weight():
    class Steep(Constant):
        def forward(self, obs, action):
            root = self.theta.sqrt().expand(len(obs), 3)  # slope ∞ at 0
            return root, root

    policy = Steep()
    with pytest.raises(NonFiniteError, match="gradient norm"):
        learner_of(policy, PolicyObjective(policy, 0.2, 0.0)).step(two_rows())
    assert policy.theta.item() == 0


def test_frozen_parameters_stay():
    policy = Constant()
    policy.frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)
    learner_of(policy, PolicyObjective(policy, 0.2, 0.0)).step(two_rows())
    assert policy.frozen.item() == 1
    assert policy.theta.item() > 0


def test_the_learning_rate_is_scaled_from_its_initial_value():
    policy = Constant()
    learner = learner_of(policy, PolicyObjective(policy, 0.2, 0.0))
    for _ in range(2):  # not compounding
        learner.scale_learning_rate(0.25)
        assert learner.engine.optimizer.param_groups[0]["lr"] == 0.025
