"""The whole method on the embedded world, at sizes that learn little and run in seconds."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from constrained_rl.errors import NonFiniteError
from constrained_rl.settings import validate
from llm_env.collectors import by_text
from llm_env.comparison.evaluate import Record, evaluate, read_records, write_records
from llm_env.comparison.stages import stage
from llm_env.config import AlignConfig
from llm_env.preferences import PreferenceRow
from llm_env.safe_rlhf import Data, alignment, respond, safe_rlhf
from llm_env.score_training import ScoreConfig
from llm_env.scoring import ScoreModel, score_texts
from llm_env.sft import SFTConfig
from llm_env.world import AnnotatorPool, build_tokenizer, demonstrate, judge, sample_prompts

TOKENIZER = build_tokenizer()
ALIGN = validate(AlignConfig, {"iterations": 3, "prompts": 8, "max_new_tokens": 16}, "test")


def tiny_llama(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=TOKENIZER.bos_token_id,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    return LlamaForCausalLM(config)


def world_data():
    rng = np.random.default_rng(0)
    demonstrations = [(p.text, demonstrate(p, rng)) for p in sample_prompts(200, rng)]
    pair_prompts, prompts = ([p.text for p in sample_prompts(n, rng)] for n in (60, 20))
    return Data(demonstrations, pair_prompts, prompts)


def pool_label(triples):
    columns = (list(column) for column in zip(*triples, strict=True))
    rows = AnnotatorPool(0).label(*columns, np.random.default_rng(1))
    return [PreferenceRow.model_validate(row) for row in rows]


def run(seed=0):
    score = ScoreConfig(batch_size=8)
    return safe_rlhf(
        tiny_llama(), TOKENIZER, world_data(), pool_label, ALIGN, SFTConfig(), score, seed
    )


@pytest.fixture(scope="module")
def done():
    return run()


def test_the_pipeline_reports_finite_numbers_for_every_iteration(done):
    assert [row["iteration"] for row in done.metrics] == [1, 2, 3]
    assert all(math.isfinite(value) for row in done.metrics for value in row.values())
    assert {"return/mean", "estimate/cost", "lambda/cost", "kl/reference"} <= set(done.metrics[-1])
    assert done.metrics[0]["kl/reference"] == pytest.approx(0, abs=1e-5)
    assert all(row["lambda/cost"] >= 0 for row in done.metrics)
    assert 40 <= len(done.preferences) <= 60  # equal and empty pairs are dropped


def test_policy_and_sft_model_are_two(done):
    sft, policy = done.sft.state_dict(), done.policy.state_dict()
    assert not all(torch.equal(policy[name], sft[name]) for name in sft)


def test_what_the_pipeline_returns_can_be_saved_and_loaded(done, tmp_path):
    done.policy.save_pretrained(tmp_path / "policy")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
    prompts = world_data().prompts[:5]
    texts = respond(done.policy, TOKENIZER, prompts, 16, seed=0)[0]
    assert respond(loaded, TOKENIZER, prompts, 16, seed=0)[0] == texts
    for name, model in (("reward", done.reward_model), ("cost", done.cost_model)):
        model.save_pretrained(tmp_path / name)
        same = ScoreModel.from_pretrained(tmp_path / name)
        expected = score_texts(model, TOKENIZER, prompts, texts)
        torch.testing.assert_close(score_texts(same, TOKENIZER, prompts, texts), expected)


def test_equal_seeds_give_equal_policies(done):
    again = run()
    assert done.preferences == again.preferences
    first, second = done.policy.state_dict(), again.policy.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gold_scores_can_stand_in_for_models():
    def harm(prompts, texts):
        return [judge(p, t).harm for p, t in zip(prompts, texts, strict=True)]

    def helpfulness(prompts, texts):
        return [judge(p, t).helpfulness for p, t in zip(prompts, texts, strict=True)]

    from constrained_rl.ppo import train

    parts = alignment(
        tiny_llama(),
        TOKENIZER,
        world_data().prompts,
        by_text(helpfulness),
        {"harm": by_text(harm)},
        ALIGN,
        seed=0,
    )
    rows = list(train(parts, 2))
    assert "lambda/harm" in rows[-1]
    # random words are no answer to anything: gold's lowest marks, and nothing unsafe in them
    assert rows[0]["return/mean"] < 0
    assert rows[0]["estimate/harm"] == 0


def test_evaluation_covers_both_modes_and_survives_the_disk(done, tmp_path):
    prompts = sample_prompts(6, np.random.default_rng(5))
    scores = (done.reward_model, done.cost_model)
    records = evaluate(done.policy, TOKENIZER, prompts, scores, 16, seed=0)
    assert [r.mode for r in records] == ["greedy"] * 6 + ["sampled"] * 6
    assert [r.prompt for r in records] == [p.text for p in prompts] * 2
    assert isinstance(records[0], Record)
    said = [r.response for r in records[:6]]
    expected = score_texts(done.reward_model, TOKENIZER, [p.text for p in prompts], said)
    assert [r.reward for r in records[:6]] == pytest.approx(expected.tolist(), abs=1e-5)
    write_records(tmp_path / "evaluation.jsonl", records)
    assert read_records(tmp_path / "evaluation.jsonl") == records


# stages on disk


def test_a_stage_has_its_name_only_when_it_is_done(tmp_path):
    with stage(tmp_path / "runs" / "one") as work:
        (work / "result").write_text("42")
        assert not (tmp_path / "runs" / "one").exists()
    assert (tmp_path / "runs/one/result").read_text() == "42"
    seconds = json.loads((tmp_path / "runs/one/time.json").read_text())
    assert seconds["wall"] >= 0
    assert seconds["cpu"] >= 0
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["one"]


def fail(folder):
    with stage(folder) as work:
        (work / "half").write_text("1")
        raise NonFiniteError("loss")


def test_a_stage_that_failed_keeps_its_work_under_a_hidden_name_and_goes_on_there(tmp_path):
    with pytest.raises(NonFiniteError):
        fail(tmp_path / "one")
    assert [p.name for p in tmp_path.iterdir()] == [".one"]
    with stage(tmp_path / "one") as work:
        assert (work / "half").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["one"]
