import copy

import pytest
import torch

from constrained_rl.errors import InputError
from llm_env.generation import generate
from llm_env.models import LoRAConfig
from llm_env.policy import CausalLMPolicy, response_logp
from llm_env.recompute import recompute_activations
from llm_env.scoring import ScoreModel, TokenCritic
from llm_env.tokens import join
from tests.llm_env.families import FAMILIES
from tests.llm_env.tiny import causal_lm, ragged_prompts

pytest.importorskip("peft")

from llm_env.lora import lora_layers, merge_for_export, reference_of, with_lora, without_adapter

RANK = LoRAConfig(rank=4, alpha=8)


def adapted(model, seed=0, config=RANK):
    return with_lora(model, config, torch.Generator().manual_seed(seed))


def rows(decisions=4):
    ids, attention = ragged_prompts(5)
    response = torch.randint(4, 20, (5, decisions), generator=torch.Generator().manual_seed(1))
    return join(ids, attention, response, torch.ones(5, decisions).bool())


def train(module, loss, steps=3):
    """Some steps of Adam on what is trainable."""
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def critic_of(model, seed=1, heads=2):
    return TokenCritic(ScoreModel(adapted(model.base_model, seed), heads))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fresh_policy_is_its_reference_exactly_and_only_the_adapter_learns(family):
    model, batch = causal_lm(family), rows()
    before = response_logp(model, batch)
    policy = CausalLMPolicy(adapted(model))
    logp, _ = policy(batch, batch.response_ids)
    assert torch.equal(logp, policy(batch, batch.response_ids)[0])
    assert torch.equal(response_logp(policy.model, batch), before)
    logp.sum().backward()
    learning = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert learning == {name for name, _ in policy.named_parameters() if ".lora_" in name}
    # every linear layer of every block, the output layer left out
    blocks, per_block = 2, 7 if family not in ("gpt2", "neox", "bloom") else 4
    per_block = 6 if family == "opt" else per_block
    projections = 2 if family == "opt" else 0  # OPT's embeddings are narrower than its blocks
    assert len(list(lora_layers(policy))) == blocks * per_block + projections


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_computes_what_the_adapted_one_does(family, tmp_path):
    model, batch = causal_lm(family), rows()
    policy = CausalLMPolicy(adapted(model))
    start = response_logp(model, batch)
    train(policy, lambda: -policy(batch, batch.response_ids)[0].mean())
    trained = response_logp(policy.model, batch)
    assert (trained - start).abs().max() > 0.1
    merged = merge_for_export(policy.model)
    torch.testing.assert_close(response_logp(merged, batch), trained, atol=1e-5, rtol=0)
    # a plain folder that plain transformers loads
    merged.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(response_logp(loaded, batch), response_logp(merged, batch))
    # and neither policy nor reference has moved
    assert torch.equal(response_logp(policy.model, batch), trained)
    assert torch.equal(response_logp(model, batch), start)


def test_policy_reference_and_critic_hold_one_copy_of_the_weights():
    model = causal_lm()
    policy, critic = CausalLMPolicy(adapted(model)), critic_of(model)
    frozen = {p.data_ptr() for p in model.parameters()}
    for module in (policy, critic):
        own = [p for p in module.parameters() if p.data_ptr() not in frozen]
        assert {id(p) for p in own} == {id(p) for p in module.parameters() if p.requires_grad}
        # rank 4 beside 7 layers of 2 blocks of width 16, 8 (keys, values) and 32
        inputs_and_outputs = (16 + 16) * 2 + (16 + 8) * 2 + (16 + 32) * 3
        heads = 0 if module is policy else 2 * 16 + 2
        assert sum(p.numel() for p in own) == 2 * 4 * inputs_and_outputs + heads
    assert not any(p.requires_grad for p in model.parameters())


def test_training_the_critic_leaves_the_policy_bitwise_and_the_other_way_round():
    model, batch = causal_lm(), rows()
    policy, critic = CausalLMPolicy(adapted(model)), critic_of(model)
    logp, value = policy(batch, batch.response_ids)[0], critic(batch)
    train(critic, lambda: (critic(batch) - 1).square().mean())
    assert torch.equal(policy(batch, batch.response_ids)[0], logp)
    assert not torch.equal(critic(batch), value)
    value = critic(batch)
    train(policy, lambda: -policy(batch, batch.response_ids)[0].mean())
    assert torch.equal(critic(batch), value)
    assert torch.equal(response_logp(model, batch), logp)  # the reference is where both began


def test_the_adapter_switched_off_is_the_bare_model():
    model, batch = causal_lm("gpt2"), rows()
    policy = CausalLMPolicy(adapted(model))
    train(policy, lambda: -policy(batch, batch.response_ids)[0].mean())
    trained = response_logp(policy.model, batch)
    with without_adapter(policy):
        assert torch.equal(response_logp(policy.model, batch), response_logp(model, batch))
    reference = reference_of(policy.model)(batch, batch.response_ids)
    assert torch.equal(reference, response_logp(model, batch))
    assert not reference.requires_grad
    assert torch.equal(response_logp(policy.model, batch), trained)
    assert all(p.requires_grad for name, p in policy.named_parameters() if ".lora_" in name)


def test_the_generator_alone_decides_the_adapter():
    model = causal_lm()
    state = torch.get_rng_state()
    first, second, other = (dict(adapted(model, s).named_parameters()) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    name = "model.layers.0.mlp.down_proj.lora_A.default.weight"
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first[name], other[name])
    # uniform within ± 1/√in, in = 32: deviation 1/√(3·32) = 0.102
    assert first[name].abs().max() <= 32**-0.5
    assert float(first[name].detach().std()) == pytest.approx(0.102, rel=0.15)
    assert first[name.replace("lora_A", "lora_B")].eq(0).all()


def test_adapters_are_float32_on_a_bfloat16_model():
    model, batch = causal_lm().bfloat16(), rows()
    start = response_logp(model, batch)
    policy = CausalLMPolicy(adapted(model))
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    assert policy.model.dtype == torch.bfloat16  # what decides whether log π is computed again
    assert torch.equal(response_logp(policy.model, batch), start)
    train(policy, lambda: -policy(batch, batch.response_ids)[0].mean(), steps=2)
    merged = merge_for_export(policy.model)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(
        response_logp(merged, batch), response_logp(policy.model, batch), atol=0.1, rtol=0
    )


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_recomputed_activations_give_the_adapter_the_same_gradients(family):
    model, batch = causal_lm(family), rows()
    gradients = []
    for recomputed in (False, True):
        base = copy.deepcopy(model)
        if recomputed:
            recompute_activations(base)
        policy, critic = CausalLMPolicy(adapted(base)), critic_of(base)
        torch.nn.init.ones_(critic.model.head.weight)
        # one graph over both adapters: each is recomputed by its own layers
        (policy(batch, batch.response_ids)[0].sum() + critic(batch).sum()).backward()
        own = [p for part in (policy, critic) for p in part.parameters() if p.requires_grad]
        gradients.append([p.grad for p in own])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert any(bool(a.abs().sum() > 0) for a in gradients[0])


def test_an_adapted_model_decodes_with_the_log_probabilities_it_trains_on():
    policy = CausalLMPolicy(adapted(causal_lm("qwen2")))
    batch = rows()
    train(policy, lambda: -policy(batch, batch.response_ids)[0].mean())
    ids, attention = ragged_prompts(8)
    out = generate(
        policy.model, ids, attention, max_new_tokens=8, eos_id=2, generator=torch.Generator()
    )
    with torch.no_grad():
        logp, _ = policy(join(ids, attention, out.response, out.mask), out.response)
    torch.testing.assert_close(out.logp, logp * out.mask, atol=1e-5, rtol=0)


def test_targets_are_names_of_layers_and_unknown_or_tied_ones_are_refused():
    model = causal_lm()
    policy = adapted(model, config=LoRAConfig(rank=1, targets=("q_proj", "v_proj")))
    assert len(list(lora_layers(policy))) == 4
    with pytest.raises(InputError, match=r"'c_attn' fits no linear layer of LlamaFor.*q_proj"):
        adapted(model, config=LoRAConfig(targets=("c_attn",)))
    with pytest.raises(InputError, match="whose weights are the input embedding's"):
        adapted(causal_lm("gpt2"), config=LoRAConfig(targets=("lm_head",)))


def test_without_peft_there_is_an_installation_hint(monkeypatch):
    monkeypatch.setattr("llm_env.lora.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"constrained-rl\[llm,lora\]"):
        adapted(causal_lm())
