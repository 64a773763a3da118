import pytest
import torch

import llm_env.generation as generation
from constrained_rl.errors import InputError, NonFiniteError
from llm_env.generation import generate
from llm_env.policy import CausalLMPolicy
from llm_env.tokens import join
from tests.llm_env.tiny import EOS, FAMILIES, VOCABULARY, causal_lm, ragged_prompts

STEPS = 16


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run(model, ids, attention, **options):
    arguments = {"max_new_tokens": STEPS, "eos_id": EOS, "generator": seeded(), **options}
    return generate(model, ids, attention, **arguments)


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_log_probabilities_are_those_of_a_teacher_forced_forward(family, greedy):
    model = causal_lm(family)
    ids, attention = ragged_prompts(rows=8)
    out = run(model, ids, attention, greedy=greedy)
    with torch.no_grad():
        logp, _ = CausalLMPolicy(model)(join(ids, attention, out.response, out.mask), out.response)
    torch.testing.assert_close(out.logp, logp * out.mask, atol=1e-5, rtol=0)
    assert out.logp[~out.mask].eq(0).all()


def test_eager_attention_gives_the_same_responses():
    model = causal_lm("gpt2")
    ids, attention = ragged_prompts(rows=8)
    fast = run(model, ids, attention)
    model.set_attn_implementation("eager")
    eager = run(model, ids, attention)
    assert torch.equal(fast.response, eager.response)
    torch.testing.assert_close(fast.logp, eager.logp, atol=1e-5, rtol=0)


def test_permuting_prompts_permutes_greedy_responses():
    model = causal_lm("gpt2")
    ids, attention = ragged_prompts(rows=6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    out = run(model, ids, attention, greedy=True)
    permuted = run(model, ids[order], attention[order], greedy=True)
    assert torch.equal(permuted.response, out.response[order])
    assert torch.equal(permuted.finished, out.finished[order])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_is_the_argmax_of_an_unpadded_forward(family):
    model = causal_lm(family, seed=1)
    ids, attention = ragged_prompts()
    out = run(model, ids, attention, greedy=True)
    for row in range(len(ids)):
        tokens = ids[row][attention[row]].tolist()
        for t in range(int(out.mask[row].sum())):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
            assert int(logits.argmax()) == int(out.response[row, t])
            tokens.append(int(logits.argmax()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("greedy", [True, False])
def test_dropping_finished_rows_changes_no_row(family, greedy, monkeypatch):
    model = causal_lm(family)
    ids, attention = ragged_prompts(rows=12)
    results = []
    for share in (1e-9, 0.25, 2.0):  # at once, the default, never
        monkeypatch.setattr(generation, "DROP_SHARE", share)
        results.append(run(model, ids, attention, greedy=greedy))
    for other in results[1:]:
        assert torch.equal(other.response, results[0].response)
        assert torch.equal(other.mask, results[0].mask)
        torch.testing.assert_close(other.logp, results[0].logp, atol=1e-5, rtol=0)


def test_a_response_ends_with_its_first_eos_which_belongs_to_it():
    out = run(causal_lm("gpt2"), *ragged_prompts(rows=40))
    length = out.mask.sum(1)
    assert out.response.shape[1] == int(length.max())
    assert 0 < int(out.finished.sum()) < 40  # this seed shows both endings
    for row in range(40):
        chosen = out.response[row, : length[row]]
        assert out.mask[row, : length[row]].all()
        assert not out.mask[row, length[row] :].any()
        assert chosen[:-1].ne(EOS).all()
        assert bool(chosen[-1] == EOS) == bool(out.finished[row])
        assert out.response[row, length[row] :].eq(EOS).all()


def test_rows_that_never_end_stop_at_the_limit_unfinished():
    out = run(causal_lm(), *ragged_prompts(), eos_id=VOCABULARY + 1)
    assert out.mask.all()
    assert out.response.shape == (5, STEPS)
    assert not out.finished.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_a_batch_is_what_it_is_alone(family):
    model = causal_lm(family)
    ids, attention = ragged_prompts(rows=4)
    # what the first row writes second ends responses, so that it leaves the batch early
    eos = int(run(model, ids, attention, greedy=True, eos_id=-1).response[0, 1])
    together = run(model, ids, attention, greedy=True, eos_id=eos)
    assert 0 < int(together.mask[0].sum()) <= 2
    for row in range(4):
        real = ids[row][attention[row]].unsqueeze(0)
        alone = run(model, real, torch.ones_like(real).bool(), greedy=True, eos_id=eos)
        length = int(alone.mask.sum())
        assert torch.equal(together.response[row, :length], alone.response[0])
        assert int(together.mask[row].sum()) == length
        torch.testing.assert_close(together.logp[row, :length], alone.logp[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_immediate_eos_is_a_response_of_one_token(family):
    model = causal_lm(family)
    ids, attention = ragged_prompts(rows=1)
    with torch.no_grad():
        first = int(model(input_ids=ids).logits[0, -1].argmax())
    out = run(model, ids, attention, eos_id=first, greedy=True)
    assert out.response.tolist() == [[first]]
    assert out.mask.tolist() == [[True]]
    assert out.finished.tolist() == [True]


def test_decoding_stops_when_the_last_row_ends():
    model, steps = causal_lm("gpt2"), []
    hook = model.register_forward_hook(lambda module, args, output: steps.append(1))
    out = run(model, *ragged_prompts(rows=2), max_new_tokens=50)
    hook.remove()
    assert out.finished.all()
    # one forward per column: the prefill gives the first, and an eos is never fed
    assert len(steps) == out.response.shape[1]


def test_padding_more_on_the_left_changes_nothing():
    model = causal_lm("gpt2")
    ids, attention = ragged_prompts()
    wide_ids = torch.cat([torch.full((5, 3), EOS), ids], 1)
    wide_attention = torch.cat([torch.zeros(5, 3).bool(), attention], 1)
    narrow, wide = run(model, ids, attention), run(model, wide_ids, wide_attention)
    assert torch.equal(narrow.response, wide.response)
    torch.testing.assert_close(narrow.logp, wide.logp, atol=1e-5, rtol=0)


def test_one_seed_gives_one_result_and_the_global_generator_is_left_alone():
    model = causal_lm()
    before = torch.get_rng_state()
    first, second = (run(model, *ragged_prompts(rows=20)) for _ in range(2))
    assert torch.equal(first.response, second.response)
    assert torch.equal(torch.get_rng_state(), before)
    other = run(model, *ragged_prompts(rows=20), generator=seeded(1))
    assert not torch.equal(first.mask.sum(1), other.mask.sum(1))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampled_frequencies_are_the_model_probabilities_at_the_temperature(temperature):
    model = causal_lm()
    ids, attention = ragged_prompts(rows=1)
    with torch.no_grad():
        p = (model(input_ids=ids).logits[0, -1] / temperature).softmax(-1)
    n = 20000
    out = run(
        model,
        ids.expand(n, -1),
        attention.expand(n, -1),
        max_new_tokens=1,
        temperature=temperature,
    )
    frequency = torch.bincount(out.response[:, 0], minlength=VOCABULARY) / n
    # a frequency has standard deviation √(p(1−p)/n); 22 tokens within 4.5 of them
    assert ((frequency - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt() + 1 / n).all()
    # log π stays at temperature 1, whatever chose the token
    with torch.no_grad():
        logp = model(input_ids=ids).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(out.logp[:, 0], logp[out.response[:, 0]], atol=1e-5, rtol=0)


def test_a_token_of_probability_zero_is_never_sampled():
    model = causal_lm()
    bias = torch.zeros(VOCABULARY)
    bias[[0, 5, VOCABULARY - 1]] = float("-inf")
    hook = model.lm_head.register_forward_hook(lambda module, args, output: output + bias)
    out = run(model, *ragged_prompts(rows=300), max_new_tokens=4)
    hook.remove()
    for token in (0, 5, VOCABULARY - 1):
        assert out.response[out.mask].ne(token).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_that_leaves_no_room_for_its_response_is_refused(family):
    model = causal_lm(family)
    ids, attention = ragged_prompts()
    if family == "bloom":  # its positions know no end
        assert run(model, ids, attention, max_new_tokens=59).mask.any()
        return
    with pytest.raises(InputError, match=r"6 tokens and max_new_tokens is 59, .* context is 64"):
        run(model, ids, attention, max_new_tokens=59)


def test_what_cannot_be_decoded_is_refused_before_decoding():
    model = causal_lm()
    ids, attention = ragged_prompts()
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        run(model, ids, attention, max_new_tokens=0)
    with pytest.raises(InputError, match=r"temperature is 0.*greedy=True"):
        run(model, ids, attention, temperature=0.0)
    with pytest.raises(InputError, match="padded on the left"):
        run(model, ids, attention.flip(1))


def test_a_broken_model_is_named_instead_of_sampled_from():
    model = causal_lm()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(NonFiniteError, match="log-probabilities of generated tokens"):
        run(model, *ragged_prompts())
