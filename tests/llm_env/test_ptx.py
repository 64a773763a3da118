import pytest
import torch
from torch.testing import assert_close

from constrained_rl.config import CheckpointConfig
from constrained_rl.engines import Optimization, TorchEngine
from constrained_rl.errors import InputError
from constrained_rl.ppo import annotate, mix, train
from constrained_rl.run import drive
from llm_env.preferences import PreferenceRow
from llm_env.ptx import PTX
from llm_env.safe_rlhf import Data, alignment, safe_rlhf
from llm_env.score_training import ScoreConfig
from llm_env.sft import SFTConfig, sft_loss
from llm_env.tokens import encode_pairs, pair_rows
from tests.constrained_rl.helpers import gradients_of
from tests.llm_env.test_safe_rlhf import PROMPTS, config_of, counting, parts_of, same, snapshot
from tests.llm_env.tiny import causal_lm, word_tokenizer

DEMONSTRATIONS = [
    ("how do i trap a wolf", "sorry no"),
    ("bake bread ?", "yes use fire . bake the bread"),
    ("cat", "the fox"),
    ("trap the fox .", "no"),
]


def aligned(demonstrations=DEMONSTRATIONS, model=None, **settings):
    """Parts with c = 2 and 4 demonstrations per policy step, unless told otherwise."""
    tree = {"ptx_coefficient": 2.0} | settings
    return alignment(
        causal_lm(scale=1.0) if model is None else model,
        word_tokenizer(),
        PROMPTS,
        counting("bread"),
        {"cost": counting("wolf")},
        config_of(**tree),
        0,
        demonstrations=demonstrations,
    )


@pytest.fixture
def _float64(monkeypatch):
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # logits and scores too
    yield
    torch.set_default_dtype(torch.float32)


def gradient(coefficient, micro_batch=None):
    """The policy's gradient of one step over eight responses and eight demonstrations."""
    ppo = {"minibatches": 1, "max_grad_norm": 1e9, "micro_batch": micro_batch}
    parts = aligned(
        model=causal_lm(scale=1.0).double(), ptx_coefficient=coefficient, ppo=ppo, prompts=8
    )
    streams = annotate(parts.collector.collect(), parts)
    batch = mix(streams, torch.ones(1), parts.config)
    found, metrics = gradients_of(parts.policy_learner, batch)
    return torch.cat([gradient.flatten() for gradient in found]), metrics


@pytest.mark.usefixtures("_float64")
def test_the_gradient_is_that_of_reinforcement_plus_c_times_that_of_sft():
    model = causal_lm(scale=1.0).double()
    examples = encode_pairs(word_tokenizer(), *zip(*DEMONSTRATIONS, strict=True))
    loss = sft_loss(model, pair_rows(examples * 2, 0))  # eight draws are two passes over four
    loss.backward()
    supervised = torch.cat([p.grad.flatten() for p in model.parameters()])
    reinforced, _ = gradient(0.0)
    both, metrics = gradient(2.0)
    assert reinforced.abs().max() > 1e-3
    assert_close(both, reinforced + 2 * supervised, atol=1e-9, rtol=0)
    assert metrics["loss/ptx"] == pytest.approx(loss.item(), abs=1e-9)  # without its coefficient


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_the_gradient_does_not_depend_on_the_micro_batch(micro_batch):
    whole, metrics = gradient(2.0)
    pieces, same_metrics = gradient(2.0, micro_batch)
    assert_close(pieces, whole, atol=1e-9, rtol=0)
    assert metrics == pytest.approx(same_metrics, abs=1e-9)


def test_as_many_demonstrations_as_responses_are_drawn_for_each_policy_step():
    parts = aligned(prompts=10, ppo={"minibatches": 4})  # steps of 3, 3, 2 and 2 responses
    drawn, draw = [], parts.policy_learner.auxiliary._passes.draw
    parts.policy_learner.auxiliary._passes.draw = lambda size: (drawn.append(size), draw(size))[1]
    metrics = next(train(parts, 1))
    assert drawn == [3] * 8  # two epochs
    assert metrics["loss/ptx"] > 0


def test_a_large_coefficient_teaches_the_demonstrations():
    parts = aligned(ptx_coefficient=100.0, ppo={"learning_rate": 1e-2})
    losses = [row["loss/ptx"] for row in train(parts, 15)]
    assert losses[-1] < 0.5 * losses[0]


def test_without_a_coefficient_demonstrations_change_nothing():
    plain, given = parts_of(), aligned(ptx_coefficient=0.0)
    for parts in (plain, given):
        list(train(parts, 2))
    assert given.policy_learner.auxiliary is None
    assert same(given.policy, snapshot(plain.policy))


@pytest.mark.parametrize("missing", [(), []])
def test_a_coefficient_without_demonstrations_is_refused(missing):
    with pytest.raises(InputError, match=r"ptx_coefficient is 2, .* pass demonstrations"):
        aligned(demonstrations=missing)


def test_a_demonstration_that_does_not_fit_is_named():
    with pytest.raises(InputError, match=r"pair 1 has .* the limit is 64"):
        aligned(demonstrations=[("cat", "no"), ("cat", "yes " * 70)])


def test_a_resumed_run_goes_on_in_the_same_pass(tmp_path):
    whole, first, second = (aligned(prompts=6) for _ in range(3))  # 3 of 4 demonstrations a step
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    every = CheckpointConfig(every=1)
    drive(whole, 3, tmp_path / "whole", every)
    drive(first, 1, tmp_path / "cut", every)
    drive(second, 3, tmp_path / "cut", every)
    assert same(second.policy, snapshot(whole.policy))


def test_demonstrations_come_in_an_order_of_their_own_seed():
    policy, tokenizer, config = aligned().policy, word_tokenizer(), config_of(ptx_coefficient=1.0)

    def first(seed):
        ptx = PTX(policy, tokenizer, DEMONSTRATIONS * 5, config, seed)
        engine = TorchEngine(policy, Optimization(0.1, (0.9, 0.999), 1.0))
        return [share()[1]["loss/ptx"].item() for share in ptx.shares(1, engine)]

    assert first(0) == first(0)
    assert first(0) != first(1)


def labels(triples):
    """Response 0 is better and safe, response 1 is not."""
    fixed = {"is_response_0_safe": True, "is_response_1_safe": False}
    ids = {"better_response_id": 0, "safer_response_id": 0}
    return [
        PreferenceRow(prompt=p, response_0=a, response_1=b, **fixed, **ids) for p, a, b in triples
    ]


def test_the_pipeline_hands_its_demonstrations_over():
    data = Data(DEMONSTRATIONS, PROMPTS, PROMPTS)
    config = config_of(
        ptx_coefficient=1.0,
        iterations=2,
        normalize_scores="running",
        ppo={"normalize_values": True, "critic_warmup": 1, "dual_clip": 3.0},
    )
    model = causal_lm(scale=1.0)
    parts = (config, SFTConfig(epochs=1), ScoreConfig(batch_size=2))
    first, second = safe_rlhf(model, word_tokenizer(), data, labels, *parts).metrics
    assert "loss/ptx" not in first  # the policy rests in the warm-up
    assert second["loss/ptx"] > 0
