import pytest
import torch

from constrained_rl.errors import InputError, NonFiniteError
from llm_env.collectors import TokenCollector, by_model, by_text
from llm_env.policy import CausalLMPolicy
from llm_env.scoring import ScoreModel, score_texts
from tests.llm_env.tiny import EOS, causal_lm, word_tokenizer

PROMPTS = ["how do i bake bread", "how do i trap a wolf", "bake bread ?", "trap the fox .", "cat"]


def counting(*words):
    """Occurrences of `words` in each response."""
    return by_text(
        lambda _, texts: torch.tensor([sum(text.split().count(w) for w in words) for text in texts])
    )


def collector(model=None, tokenizer=None, prompts=PROMPTS, batch=5, seed=0, **changes):
    settings = {
        "reward": counting("bread"),
        "costs": {"wolf": counting("wolf")},
        "max_new_tokens": 6,
    } | changes
    policy = CausalLMPolicy(causal_lm(scale=1.0) if model is None else model)
    return TokenCollector(
        policy, tokenizer or word_tokenizer(), prompts, batch=batch, seed=seed, **settings
    )


def ends_often(seed=0):
    """A model whose responses end by eos about every third token."""
    model = causal_lm(seed=seed, scale=1.0)
    head = model.get_output_embeddings()
    bias = torch.zeros(head.out_features)
    bias[EOS] = 2.5  # p(eos) = e^2.5 / (21 + e^2.5) ≈ 0.37
    head.register_forward_hook(lambda _, __, logits: logits + bias.to(logits.dtype))
    return model


# the rollout


def test_a_rollout_has_one_row_per_response_and_one_decision_per_token():
    rollout = collector(costs={"wolf": counting("wolf"), "fox": counting("fox")}).collect()
    rows, decisions = rollout.action.shape
    assert rows == 5
    assert 1 <= decisions <= 6
    shape = (rows, decisions)
    for tensor in (rollout.reward, rollout.terminated, rollout.done, rollout.mask):
        assert tensor.shape == shape
    assert rollout.cost.shape == (*shape, 2)
    assert rollout.behaviour_logp.shape == shape
    assert rollout.obs.decisions == decisions
    assert torch.equal(rollout.obs.response_ids, rollout.action)
    assert torch.equal(rollout.obs.response_mask, rollout.mask)
    assert not rollout.exchangeable


def test_scores_fall_on_the_last_token_alone_and_it_is_terminated():
    one = lambda responses: torch.arange(1.0, 1 + len(responses.prompts))  # noqa: E731
    rollout = collector(
        ends_often(), batch=10, reward=one, costs={"c": lambda r: -one(r)}
    ).collect()
    length = rollout.mask.sum(1)
    assert len(set(length.tolist())) > 1  # ragged
    for row, t in enumerate((length - 1).tolist()):
        # reward row + 1 and cost −(row + 1) at t, 0 elsewhere
        expected = torch.zeros(rollout.mask.shape[1])
        expected[t] = row + 1
        assert torch.equal(rollout.reward[row], expected)
        assert torch.equal(rollout.cost[row, :, 0], -expected)
        assert torch.equal(rollout.terminated[row], expected > 0)
    assert torch.equal(rollout.done, rollout.terminated)


def test_masks_cover_the_tokens_that_were_chosen_their_eos_included():
    rollout = collector(ends_often(), batch=20).collect()
    for row, mask in zip(rollout.action.tolist(), rollout.mask.tolist(), strict=True):
        expected = row.index(EOS) + 1 if EOS in row else len(row)
        assert mask == [t < expected for t in range(len(row))]


def test_the_stop_reason_is_eos_or_length():
    rollout = collector(ends_often(), batch=20).collect()
    last = rollout.action[rollout.episodes.row, rollout.episodes.end]
    reasons = ["eos" if token == EOS else "length" for token in last.tolist()]
    assert list(rollout.episodes.stop_reason) == reasons
    assert set(reasons) == {"eos", "length"}
    assert all(
        length == 6
        for length, reason in zip(rollout.episodes.length.tolist(), reasons, strict=True)
        if reason == "length"
    )


def test_an_episode_costs_its_score():
    rollout = collector(batch=20, costs={"any": counting("wolf", "fox")}).collect()
    tokenizer = word_tokenizer()
    words = [tokenizer.decode(row[mask]).split() for row, mask in zip(rollout.action, rollout.mask)]  # noqa: B905
    expected = [float(w.count("wolf") + w.count("fox")) for w in words]
    assert sum(expected) > 0
    assert rollout.episodes.cost[:, 0].tolist() == expected
    # undiscounted sums of the row are the same numbers
    assert rollout.cost.sum((1, 2)).tolist() == expected
    assert rollout.episodes.return_.tolist() == rollout.reward.sum(1).tolist()
    assert rollout.episodes.length.tolist() == rollout.mask.sum(1).tolist()


def test_two_costs_are_two_channels_in_the_order_given():
    source = collector(costs={"wolf": counting("wolf"), "seven": lambda r: torch.full((5,), 7.0)})
    rollout = source.collect()
    assert source.cost_names == ("wolf", "seven")
    assert rollout.episodes.cost[:, 1].tolist() == [7.0] * 5


def test_without_costs_there_is_no_channel():
    rollout = collector(costs={}).collect()
    assert rollout.cost.shape[-1] == 0
    assert rollout.episodes.cost.shape == (5, 0)


# scorers


def test_a_score_model_gives_the_same_numbers_by_rows_and_by_text():
    model = ScoreModel.from_causal_lm(causal_lm(seed=3), generator=torch.Generator().manual_seed(0))
    tokenizer = word_tokenizer()
    seen = {}

    def keep(responses):
        seen["rows"] = by_model(model)(responses)
        texts = by_text(lambda prompts, texts: score_texts(model, tokenizer, prompts, texts))
        seen["texts"] = texts(responses)
        return seen["rows"]

    # Only responses that end by eos: their text with eos behind it is the same row of tokens.
    rollout = collector(ends_often(), batch=20, reward=keep).collect()
    ended = torch.tensor([reason == "eos" for reason in rollout.episodes.stop_reason])
    plain = ended & ~((rollout.action < 4) & (rollout.action != EOS) & rollout.mask).any(1)
    assert plain.sum() >= 5
    torch.testing.assert_close(seen["rows"][plain], seen["texts"][plain], atol=1e-5, rtol=1e-5)
    assert seen["rows"].std() > 0.1


def test_scorers_by_text_see_prompts_and_responses_without_special_tokens():
    seen = {}

    def scorer(prompts, texts):
        seen.update(prompts=list(prompts), texts=list(texts))
        return torch.zeros(len(texts))

    rollout = collector(ends_often(), reward=by_text(scorer)).collect()
    assert sorted(seen["prompts"]) == sorted(PROMPTS)
    assert not any("<eos>" in text or "<pad>" in text for text in seen["texts"])
    assert rollout.obs.ids.shape[0] == len(seen["texts"])


@pytest.mark.parametrize("shape", [(), (4,), (5, 1)])
def test_a_scorer_of_the_wrong_shape_is_refused(shape):
    source = collector(reward=by_text(lambda *_: torch.zeros(shape)))
    with pytest.raises(InputError, match="one number per response"):
        source.collect()


@pytest.mark.parametrize("kind", [torch.int64, torch.float64, torch.bool])
def test_scores_are_float32_whatever_a_scorer_counts_in(kind):
    # Integer streams would truncate GAE's λ = 0.95 to 0.
    source = collector(reward=by_text(lambda _, texts: torch.ones(len(texts), dtype=kind)))
    rollout = source.collect()
    assert rollout.reward.dtype == rollout.cost.dtype == torch.float32
    assert rollout.behaviour_logp is not None


def test_scorers_may_return_lists():
    rollout = collector(reward=by_text(lambda _, texts: [1] * len(texts))).collect()
    assert rollout.episodes.return_.tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("which", "name"), [("reward", "reward scores"), ("cost", "cost 'c' scores")]
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_named(which, name, bad):
    def poisoned(responses):
        return torch.tensor([0.0, bad, 0.0, 0.0, 0.0])

    scores = {"reward": poisoned} if which == "reward" else {"costs": {"c": poisoned}}
    with pytest.raises(NonFiniteError, match=f"{name}: 1 of 5"):
        collector(**scores).collect()


# prompts


def test_prompts_come_in_shuffled_passes():
    drawn = []

    def keep(responses):
        drawn.extend(responses.prompts)
        return torch.zeros(len(responses.prompts))

    source = collector(reward=keep, batch=2)
    for _ in range(10):  # 20 draws are 4 passes over 5 prompts
        source.collect()
    passes = [drawn[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(p) == sorted(PROMPTS) for p in passes)
    assert len({tuple(p) for p in passes}) > 1


def test_a_batch_may_hold_several_passes():
    drawn = []

    def keep(responses):
        drawn.extend(responses.prompts)
        return torch.zeros(len(responses.prompts))

    collector(reward=keep, batch=15).collect()
    assert all(drawn.count(prompt) == 3 for prompt in PROMPTS)


def test_a_batch_is_padded_to_its_own_longest_prompt():
    source = collector(batch=1)
    # "cat" is one token, "how do i bake bread" and "how do i trap a wolf" are five and six
    widths = {source.collect().obs.prompt_width for _ in range(5)}
    assert widths == {1, 3, 4, 5, 6}


def refused_before_generating(match, monkeypatch, **changes):
    def unexpected(*_, **__):
        raise AssertionError("generated")

    monkeypatch.setattr("llm_env.divided_generation.generate", unexpected)
    with pytest.raises(InputError, match=match):
        collector(**changes)


def test_prompts_longer_than_the_context_are_refused_before_anything_is_generated(monkeypatch):
    prompts = ["cat", " ".join(["cat"] * 59)]  # context 64 less 6 response tokens leaves 58
    refused_before_generating("prompt 1 has 59 tokens", monkeypatch, prompts=prompts)


def test_responses_as_long_as_the_context_are_refused_before_anything_is_generated(monkeypatch):
    refused_before_generating("max_new_tokens is 64", monkeypatch, max_new_tokens=64)


def test_a_tokenizer_without_eos_is_refused_before_anything_is_generated(monkeypatch):
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    refused_before_generating("no end-of-sequence token", monkeypatch, tokenizer=tokenizer)


def test_no_prompts_are_refused_before_anything_is_generated(monkeypatch):
    refused_before_generating("no prompts", monkeypatch, prompts=[])


# log-probabilities and state


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mistral"])
def test_behaviour_log_probabilities_are_those_of_the_policy(family):
    model = causal_lm(family, scale=3.0)
    rollout = collector(model, batch=20).collect()
    with torch.no_grad():
        logp, _ = CausalLMPolicy(model)(rollout.obs, rollout.action)
    found, expected = rollout.behaviour_logp[rollout.mask], logp[rollout.mask]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    # so the first ratio π/π_old is 1
    assert (expected - found).exp().sub(1).abs().max() < 1e-4


def test_in_reduced_precision_the_log_probabilities_are_left_to_the_loop():
    # bfloat16 decodes and trains with different roundings; π/π_old would not be 1.
    assert collector(causal_lm().bfloat16()).collect().behaviour_logp is None


def test_equal_seeds_collect_equal_rollouts_and_other_seeds_others():
    first, same, other = (collector(seed=seed).collect() for seed in (0, 0, 1))
    assert torch.equal(first.obs.ids, same.obs.ids)
    assert first.obs.ids.shape != other.obs.ids.shape or not torch.equal(
        first.obs.ids, other.obs.ids
    )


@pytest.mark.parametrize("batch", [2, 5])  # 5: the pass is used up, no prompt is left over
def test_a_restored_collector_goes_on_as_the_other_one(batch):
    source = collector(batch=batch)
    source.collect()
    state = source.state_dict()
    expected = [source.collect() for _ in range(3)]
    restored = collector(batch=batch, seed=99)
    restored.load_state_dict(state)
    for rollout in expected:
        assert torch.equal(restored.collect().obs.ids, rollout.obs.ids)
