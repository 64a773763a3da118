from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from constrained_rl.checkpoint import pack, unpack
from constrained_rl.ppo import annotate, mix
from constrained_rl.value_norm import ValueNorm
from tests.constrained_rl.helpers import gradients_of, tiny, weights


def test_values_are_restored_to_return_units():
    norm = ValueNorm(2)
    value = torch.tensor([[1.0, -1.0]])
    assert torch.equal(norm.restore(value), value)  # before the first merge
    norm.merge(torch.tensor([[6.0, 3.0], [14.0, 3.0]]))
    # μ = (10, 3), σ = (4, 0 → a hundredth of μ)
    assert norm.restore(value).flatten().tolist() == pytest.approx([14.0, 3 - 0.03])


def test_before_it_knows_any_unit_a_critic_says_nothing():
    agent = tiny("ppo", ppo={"normalize_values": True})
    streams = annotate(agent.parts.collector.collect(), agent.parts)
    assert (streams.value == 0).all()


def test_a_stream_of_zeros_keeps_its_units():
    norm = ValueNorm(1)
    norm.merge(torch.zeros(5, 1))
    assert norm.restore(torch.tensor([[0.5]])).item() == 0.5


def with_statistics(scale, shift, **ppo):
    """Agent, rollout and annotated streams: rewards a·r + b, and statistics (aμ + b, aσ), γ = 0."""
    ppo = {"normalize_values": True, "gamma": 0.0, "normalize": "none", "minibatches": 1} | ppo
    agent = tiny("ppo", ppo=ppo)
    rollout = agent.parts.collector.collect()
    agent.parts.value_norm.merge(torch.tensor([[3.0], [7.0]]) * scale + shift)
    rollout = replace(rollout, reward=rollout.reward * scale + shift)
    return agent, rollout, annotate(rollout, agent.parts)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 8.0), (64.0, 0.0), (0.25, -32.0)])
def test_with_their_statistics_rewards_of_another_scale_and_shift_teach_the_same(scale, shift):
    plain, _, streams = with_statistics(1.0, 0.0)
    other, _, moved = with_statistics(scale, shift)
    assert_close(moved.value, streams.value * scale + shift)
    assert_close(moved.advantage, streams.advantage * scale, atol=1e-4, rtol=1e-4)
    gradients = []
    for agent, annotated in ((plain, streams), (other, moved)):
        batch = mix(annotated, torch.zeros(0), agent.parts.config)
        gradients.append(gradients_of(agent.parts.critic_learner, batch)[0])
    assert gradients[0]
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_advantages_see_values_in_return_units():
    agent, rollout, streams = with_statistics(1.0, 0.0)
    # μ = 5, σ = 2: A = r − (2v + 5) at γ = 0
    value = 2 * agent.parts.critic(rollout.obs)[:, :-1, 0] + 5
    assert_close(streams.advantage[..., 0], (rollout.reward - value.detach()) * rollout.mask)


def test_a_terminal_state_is_worth_0_in_return_units():
    agent, rollout, _ = with_statistics(1.0, 0.0, gamma=1.0, gae_lambda=0.0)
    full = agent.parts.critic
    agent.parts.critic_learner.engine.forward = lambda obs: full(obs)[:, :-1]
    last = annotate(rollout, agent.parts).advantage[:, -1, 0]
    value = 2 * full(rollout.obs)[:, -2, 0].detach() + 5
    assert_close(last, (rollout.reward[:, -1] - value) * rollout.mask[:, -1])


def test_statistics_of_values_are_frozen_and_merge_the_targets_once_after_the_update():
    agent = tiny(ppo={"normalize_values": True})
    norm, seen, step = agent.parts.value_norm, [], agent.parts.critic_learner.step
    agent.parts.critic_learner.step = lambda batch: (seen.append((norm.count, batch)), step(batch))[
        1
    ]
    agent.train(32)
    assert [count for count, _ in seen] == [0] * 4
    targets = torch.cat([batch.target.flatten(0, 1) for _, batch in seen[:2]]).double()  # 1 epoch
    assert norm.count == len(targets) <= 32
    assert_close(norm.mean, targets.mean(0))
    assert_close(norm.deviation, targets.std(0, correction=0).clamp_min(0.01))


def test_value_statistics_are_part_of_the_state():
    settings = {"normalize_values": True, "critic_warmup": 1, "dual_clip": 2.0}
    whole, first, second = (tiny(ppo=settings) for _ in range(3))
    list(whole.iterate_until(4))
    for _ in first.iterate_until(4):
        if first.parts.iteration == 2:
            break
    tensors = {}
    state = pack(first.parts.state_dict(), tensors)
    second.parts.load_state_dict(unpack(state, tensors))
    list(second.iterate_until(4))
    assert torch.equal(whole.parts.value_norm.mean, second.parts.value_norm.mean)
    assert torch.equal(weights(whole), weights(second))


def test_what_is_off_leaves_no_trace_in_a_checkpoint():
    state = tiny(ppo={"normalize_values": False}).parts.state_dict()
    assert "value_norm" not in state
    assert "auxiliary" not in state["policy"]
