import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llm_env.policy import (
    CausalLMPolicy,
    by_chunks,
    forward_parameters,
    logp_and_entropy,
    response_logp,
)
from llm_env.tokens import join
from tests.llm_env.tiny import EOS, FAMILIES, causal_lm, ragged_prompts


def rows(rows=4, decisions=3, seed=0):
    ids, attention = ragged_prompts(rows, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    response = torch.randint(4, 20, (rows, decisions), generator=generator)
    mask = torch.ones(rows, decisions).bool()
    mask[1, 2:] = False
    return join(ids, attention, response, mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_each_row_alone_and_unpadded(family):
    model, batch = causal_lm(family), rows()
    with torch.no_grad():
        logp, entropy = CausalLMPolicy(model)(batch, batch.response_ids)
        for i in range(len(batch)):
            real = batch.ids[i][batch.attention[i]]
            n = int(batch.response_mask[i].sum())
            # the last n tokens are the response; each is predicted from the position before it
            full = model(input_ids=real[None]).logits[0].log_softmax(-1)[-n - 1 : -1]
            expected = full.gather(1, real[-n:, None]).squeeze(1)
            torch.testing.assert_close(logp[i, :n], expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(
                entropy[i, :n], -(full.exp() * full).sum(-1), atol=1e-5, rtol=0
            )


def test_the_helper_of_sft_is_the_same_quantity_and_gradient():
    model, batch = causal_lm(), rows()
    logp, _ = CausalLMPolicy(model)(batch, batch.response_ids)
    torch.testing.assert_close(response_logp(model, batch), logp)
    first = torch.autograd.grad(logp.sum(), model.lm_head.weight)[0]
    second = torch.autograd.grad(response_logp(model, batch).sum(), model.lm_head.weight)[0]
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("chunk", [22, 22 * 5, 22 * 11])  # 1, 5 or 11 of the 12 tokens at a time
def test_what_is_computed_by_chunks_is_the_same_to_the_last_bit(chunk, monkeypatch):
    results = []
    for size in (2**24, chunk):
        monkeypatch.setattr("llm_env.policy.CHUNK", size)
        model, batch = causal_lm(), rows()
        logp, entropy = CausalLMPolicy(model)(batch, batch.response_ids)
        alone = response_logp(model, batch)
        (logp.sum() + (entropy * logp.detach()).sum() + alone.square().sum()).backward()
        results.append([logp, entropy, alone, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_chunks_keep_only_the_logits_of_a_large_vocabulary(monkeypatch):
    logits = torch.randn(4, 64, 1000, requires_grad=True)
    action, kept = torch.zeros(4, 64, dtype=torch.long), {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    def bytes_kept(chunk):
        monkeypatch.setattr("llm_env.policy.CHUNK", chunk)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found = by_chunks(logp_and_entropy, logits, action)
        assert all(x.shape == (4, 64) for x in found)
        return sum(kept.values())

    # 4 · 64 · 1000 float32 numbers are 1.024 MB; the whole keeps log p and p of all tokens
    assert bytes_kept(2**24) >= 2 * 1_024_000
    assert bytes_kept(16000) <= 1.1 * 1_024_000


def test_permuting_rows_permutes_results():
    policy, batch = CausalLMPolicy(causal_lm("gpt2")), rows()
    order = torch.tensor([2, 0, 3, 1])
    logp, entropy = policy(batch, batch.response_ids)
    logp_, entropy_ = policy(batch[order], batch.response_ids[order])
    torch.testing.assert_close(logp[order], logp_, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy[order], entropy_, atol=1e-5, rtol=0)


def test_dropout_stays_off_in_training_while_gradients_flow():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, vocab_size=22)
    policy = CausalLMPolicy(GPT2LMHeadModel(config).train()).train()  # its dropout is 0.1
    batch = rows()
    first, second = (policy(batch, batch.response_ids)[0] for _ in range(2))
    assert policy.training
    assert torch.equal(first, second)
    first.sum().backward()
    assert policy.model.transformer.wte.weight.grad.abs().sum() > 0


def test_update_statistics_changes_nothing():
    policy = CausalLMPolicy(causal_lm())
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    policy.update_statistics(None)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_low_precision_models_give_float32_log_probabilities():
    model, batch = causal_lm().bfloat16(), rows()
    logp, entropy = CausalLMPolicy(model)(batch, batch.response_ids)
    assert logp.dtype == entropy.dtype == torch.float32


def test_a_model_without_logits_to_keep_is_sliced_instead():
    inner, batch = causal_lm(), rows()

    class Plain(torch.nn.Module):
        def forward(self, input_ids, attention_mask, position_ids, use_cache):
            return inner(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=use_cache,
            )

    torch.testing.assert_close(response_logp(Plain(), batch), response_logp(inner, batch))


def test_an_adapter_is_asked_for_the_signature_of_the_model_inside():
    class Adapter:
        def forward(self, *args, **kwargs):
            raise NotImplementedError

        def get_base_model(self):
            return causal_lm("gpt2")

    assert {"position_ids", "logits_to_keep"} <= forward_parameters(Adapter())


def test_eos_as_pad_is_scored_like_any_other_token():
    # pad, eos and unk are one id: the final eos counts, the padding behind it does not move it
    model = causal_lm("gpt2")
    ids, attention = torch.tensor([[5, 6]]), torch.ones(1, 2).bool()
    short = join(ids, attention, torch.tensor([[7, EOS]]), torch.ones(1, 2).bool())
    padded = join(
        ids, attention, torch.tensor([[7, EOS, EOS]]), torch.tensor([[True, True, False]])
    )
    torch.testing.assert_close(
        response_logp(model, padded)[:, :2], response_logp(model, short), atol=1e-6, rtol=0
    )
