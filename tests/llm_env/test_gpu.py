"""A GPU computes what a CPU computes: log-probabilities, generation, one training iteration."""

import pytest
import torch

from constrained_rl.ppo import train
from llm_env.generation import generate
from llm_env.policy import response_logp
from llm_env.tokens import join
from tests.llm_env.test_safe_rlhf import parts_of
from tests.llm_env.tiny import EOS, causal_lm, ragged_prompts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
FAMILIES = ("llama", "gpt2", "qwen2", "neox", "opt", "gemma")


@pytest.fixture(autouse=True)
def _full_float32(monkeypatch):
    """No TF32, whose 10 bits of fraction are no float32."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def responses(model, seed=0):
    """Sampled responses; the random numbers are the CPU's, wherever the model is."""
    ids, attention = ragged_prompts()
    generator = torch.Generator().manual_seed(seed)
    found = generate(model, ids, attention, max_new_tokens=8, eos_id=EOS, generator=generator)
    return ids, attention, found


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_the_same_random_numbers_gives_the_same_responses(family):
    _, _, cpu = responses(causal_lm(family, scale=2.0))
    _, _, gpu = responses(causal_lm(family, scale=2.0).cuda())
    assert torch.equal(cpu.response, gpu.response.cpu())
    torch.testing.assert_close(cpu.logp, gpu.logp.cpu(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_equal_to_1e_4(family):
    model = causal_lm(family, scale=2.0)
    ids, attention, found = responses(model)
    rows = join(ids, attention, found.response, found.mask)
    with torch.no_grad():
        cpu = response_logp(model, rows)
        gpu = response_logp(model.cuda(), rows.to("cuda")).cpu()
    torch.testing.assert_close(cpu * found.mask, gpu * found.mask, atol=1e-4, rtol=0)


def test_an_iteration_of_training_gives_the_same_metrics_and_weights():
    """From the same rollout: a GPU's own generator draws other responses."""
    cpu, gpu = parts_of(causal_lm(scale=1.0)), parts_of(causal_lm(scale=1.0).cuda())
    rollout = cpu.collector.collect()
    cpu.collector.collect = lambda: rollout
    gpu.collector.collect = lambda: on_gpu(rollout)
    expected, found = next(train(cpu, 3)), next(train(gpu, 3))
    for name in (n for n in expected if not n.startswith("time/")):
        assert found[name] == pytest.approx(expected[name], abs=1e-3), name
    for a, b in zip(cpu.policy.parameters(), gpu.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b.cpu(), atol=2e-4, rtol=1e-3)


def on_gpu(value):
    """A rollout, or a part of it, with its tensors on the GPU."""
    from dataclasses import fields, is_dataclass

    if isinstance(value, torch.Tensor):
        return value.cuda()
    if is_dataclass(value):
        return type(value)(**{f.name: on_gpu(getattr(value, f.name)) for f in fields(value)})
    return value
