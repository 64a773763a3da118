import math

import pytest
import torch

from constrained_rl.checkpoint import checkpoints
from constrained_rl.config import CheckpointConfig
from constrained_rl.errors import InputError, NonFiniteError
from constrained_rl.logging import read_metrics
from constrained_rl.ppo import annotate, mix, train
from constrained_rl.run import drive
from constrained_rl.settings import validate
from llm_env.collectors import by_model, by_text
from llm_env.config import AlignConfig
from llm_env.safe_rlhf import alignment, respond, sample_pairs
from llm_env.scoring import ScoreModel
from tests.constrained_rl.helpers import gradients_of
from tests.llm_env.tiny import causal_lm, word_tokenizer

PROMPTS = ["how do i bake bread", "how do i trap a wolf", "bake bread ?", "trap the fox .", "cat"]


def counting(*words, most=99):
    """Occurrences of `words` in each response, at most `most`."""
    return by_text(
        lambda _, texts: torch.tensor(
            [float(min(most, sum(text.split().count(w) for w in words))) for text in texts]
        )
    )


def config_of(**settings):
    """Eight responses of at most eight tokens per iteration."""
    ppo = {"kl_coefficient": 0.1} | settings.pop("ppo", {})
    tree = {"iterations": 3, "prompts": 8, "max_new_tokens": 8, "limit": 0.5, "ppo": ppo}
    return validate(AlignConfig, tree | settings, "test")


def parts_of(model=None, costs=None, reward=None, seed=0, critic_trunk=None, **settings):
    return alignment(
        causal_lm(scale=1.0) if model is None else model,
        word_tokenizer(),
        PROMPTS,
        reward or counting("bread"),
        {"cost": counting("wolf")} if costs is None else costs,
        config_of(**settings),
        seed,
        critic_trunk,
    )


def first(parts):
    """Metrics of the first iteration."""
    return next(train(parts, 3))


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(module, before):
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# the parts


def test_an_iteration_changes_policy_and_critic_and_nothing_else():
    sft, reward, cost = causal_lm(scale=1.0), *(score_model(seed) for seed in (1, 2))
    parts = parts_of(sft, {"cost": by_model(cost)}, by_model(reward), critic_trunk=reward.backbone)
    frozen = [(module, snapshot(module)) for module in (sft, reward, cost)]
    moving = [(module, snapshot(module)) for module in (parts.policy, parts.critic)]
    assert same(parts.policy.model, frozen[0][1])  # the policy starts as a copy of the SFT model
    assert same(parts.critic.model.backbone, snapshot(reward.backbone))
    first(parts)
    assert all(same(*pair) for pair in frozen)
    assert not any(same(*pair) for pair in moving)


def score_model(seed):
    return ScoreModel.from_causal_lm(
        causal_lm(seed=seed), generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # GPT-2 drops out when it is in train mode
def test_the_kl_to_the_reference_starts_at_0_and_the_first_ratio_at_1(family):
    model = causal_lm(family, scale=2.0).train()
    parts = parts_of(model)
    rollout = parts.collector.collect()
    streams = annotate(rollout, parts)
    assert streams.kl.abs().max() < 1e-5
    metrics = next(train(parts, 3))
    assert metrics["kl/reference"] == pytest.approx(0, abs=1e-5)
    assert next(train(parts, 3))["kl/reference"] != 0


def test_the_first_ppo_ratio_is_1():
    # One optimizer step: its metrics are those of the policy that acted.
    metrics = first(parts_of(ppo={"epochs": 1, "minibatches": 1}))
    assert metrics["clip_fraction"] == 0
    assert metrics["kl/approx"] == pytest.approx(0, abs=1e-9)


def test_without_a_kl_coefficient_there_is_no_reference():
    parts = parts_of(ppo={"kl_coefficient": 0.0})
    assert parts.reference is None
    assert "kl/reference" not in first(parts)


@pytest.mark.parametrize("trunk", [None, "score model"])
def test_the_critic_starts_at_value_0(trunk):
    critic_trunk = score_model(1).backbone if trunk else None
    parts = parts_of(costs={"a": counting("a"), "b": counting("?")}, critic_trunk=critic_trunk)
    rollout = parts.collector.collect()
    value = parts.critic(rollout.obs)
    assert value.shape == (*rollout.mask.shape, 3)  # reward and two costs
    assert value.eq(0).all()


def test_two_costs_have_a_limit_each():
    costs = {"wolf": counting("wolf"), "fox": counting("fox")}
    parts = parts_of(costs=costs, limit=(0.25, 0.75))
    assert [(c.name, c.limit, c.channel) for c in parts.constraints.constraints] == [
        ("wolf", 0.25, 0),
        ("fox", 0.75, 1),
    ]
    metrics = first(parts)
    for name in costs:
        assert {f"cost/{name}", f"estimate/{name}", f"lambda/{name}"} <= set(metrics)
    assert "loss/value/fox" in metrics


def test_one_limit_holds_for_all_costs():
    parts = parts_of(costs={"wolf": counting("wolf"), "fox": counting("fox")}, limit=0.25)
    assert [c.limit for c in parts.constraints.constraints] == [0.25, 0.25]


def test_limits_that_do_not_match_the_costs_are_refused():
    with pytest.raises(InputError, match=r"2 entries for the costs \('cost',\)"):
        parts_of(limit=(0.1, 0.2))


# streams


@pytest.mark.parametrize(
    ("kl_streams", "reward_share", "cost_share"),
    [("reward", 1.0, 0.0), ("both", 1.0, 1.0), ("paper", 0.5, 0.5)],
)
def test_kl_streams_say_who_pays_for_the_kl(kl_streams, reward_share, cost_share):
    # Scores of 0 and a critic of 0: with γ = λ = 1 the advantage is the sum of −β·KL to come,
    # in the reward, and of +β·KL in the cost if it pays too; "paper" halves both.
    nothing = by_text(lambda _, texts: torch.zeros(len(texts)))
    ppo = {"kl_streams": kl_streams, "gae_lambda": 1.0, "kl_coefficient": 0.1}
    parts = parts_of(costs={"cost": nothing}, reward=nothing, ppo=ppo)
    with torch.no_grad():  # away from the reference
        for parameter in parts.policy.parameters():
            parameter.add_(0.05 * torch.cos(torch.arange(parameter.numel())).view_as(parameter))
    streams = annotate(parts.collector.collect(), parts)
    assert streams.kl.abs().max() > 0.01
    to_come = 0.1 * streams.kl.flip(1).cumsum(1).flip(1) * streams.mask
    torch.testing.assert_close(streams.advantage[..., 0], -reward_share * to_come)
    torch.testing.assert_close(streams.advantage[..., 1], cost_share * to_come)


def test_every_placement_of_the_kl_trains_to_weights_of_its_own():
    ends = []
    for kl_streams in ("reward", "both", "paper"):
        ppo = {"kl_streams": kl_streams, "learning_rate": 3e-3, "kl_coefficient": 0.5}
        parts = parts_of(ppo=ppo)
        rows = list(train(parts, 3))
        assert all(math.isfinite(value) for row in rows for value in row.values())
        assert rows[-1]["kl/reference"] > 0
        ends.append(torch.cat([p.detach().flatten() for p in parts.policy.parameters()]))
    assert not torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[1], ends[2])
    assert not torch.equal(ends[0], ends[2])


def test_static_shaping_on_a_single_stream_trains_and_reports_its_weight_as_lambda():
    parts = parts_of(multiplier={"kind": "fixed", "weight": 2.0}, ppo={"streams": "single"})
    before = snapshot(parts.policy)
    rows = list(train(parts, 3))
    assert [row["lambda/cost"] for row in rows] == [2.0] * 3
    assert "loss/value/shaped" in rows[-1]
    assert "loss/value/reward" not in rows[-1]
    assert parts.critic.model.head.out_features == 1
    assert not same(parts.policy, before)


def test_the_single_stream_is_reward_less_weighted_cost():
    parts = parts_of(
        multiplier={"kind": "fixed", "weight": 2.0},
        ppo={"streams": "single", "gae_lambda": 1.0, "kl_coefficient": 0.0},
        reward=counting("bread", "wolf"),
    )
    rollout = parts.collector.collect()
    streams = annotate(rollout, parts)
    # V = 0: A_0 = R − 2·C
    expected = rollout.episodes.return_ - 2 * rollout.episodes.cost[:, 0]
    torch.testing.assert_close(streams.advantage[:, 0, 0], expected)
    assert expected.std() > 0


def test_a_single_stream_with_a_moving_lambda_is_refused():
    with pytest.raises(InputError, match="fixed weights"):
        parts_of(multiplier={"kind": "pid"}, ppo={"streams": "single"})


@pytest.mark.parametrize("transform", ["identity", "indicator", "probability"])
def test_the_estimate_is_the_mean_of_the_transformed_costs_of_that_iteration(transform):
    parts = parts_of(
        costs={"cost": by_text(lambda _, texts: [len(t.split()) % 5 - 2.0 for t in texts])},
        constraint={"transform": transform},
        prompts=16,
    )
    seen, collect = [], parts.collector.collect
    parts.collector.collect = lambda: (seen.append(collect()), seen[-1])[1]
    for metrics in train(parts, 3):
        cost = seen[-1].episodes.cost[:, 0]
        expected = {
            "identity": cost,
            "indicator": (cost > 0).float(),  # the share of C > 0
            "probability": 1 / (1 + (-cost).exp()),  # mean σ(C)
        }[transform].mean()
        assert metrics["estimate/cost"] == pytest.approx(expected.item(), abs=1e-6)
        assert metrics["cost/cost"] == pytest.approx(cost.mean().item(), abs=1e-6)
    assert cost.std() > 0


# micro-batches


@pytest.fixture
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def gradients(rollout, micro_batch):
    """λ and all gradients of one policy and one critic step on `rollout`."""
    ppo = {"minibatches": 1, "max_grad_norm": 1e9, "micro_batch": micro_batch, "entropy": 0.01}
    parts = parts_of(causal_lm(scale=1.0).double(), prompts=16, ppo=ppo)
    with torch.no_grad():
        parts.critic.model.head.weight.add_(0.1)
        streams = annotate(rollout, parts)
        for parameter in parts.policy.parameters():  # away from ratio 1, so that clipping acts
            parameter.add_(0.3 * torch.cos(torch.arange(parameter.numel())).view_as(parameter))
    lam = parts.multiplier.update(parts.constraints.signal(rollout.episodes, streams))
    batch = mix(streams, lam, parts.config)
    (minibatch,) = batch.minibatches(1, torch.Generator().manual_seed(0))
    policy, metrics = gradients_of(parts.policy_learner, minibatch)
    critic, critic_metrics = gradients_of(parts.critic_learner, minibatch)
    return lam, metrics | critic_metrics, policy + critic


@pytest.mark.usefixtures("_float64")
def test_micro_batch_size_changes_neither_lambda_nor_gradients(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # logits and scores too
    model = causal_lm(scale=1.0).double()
    rollout = parts_of(model, prompts=16).collector.collect()
    lam, metrics, whole = gradients(rollout, None)
    assert lam > 0
    assert metrics["clip_fraction"] > 0
    assert sum(float(gradient.abs().sum()) for gradient in whole) > 0
    for size in (1, 4, 16):
        same_lam, same_metrics, pieces = gradients(rollout, size)
        assert torch.equal(lam, same_lam)
        for a, b in zip(whole, pieces, strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
        assert metrics == pytest.approx(same_metrics, abs=1e-9)


# recovery


class DieAt:
    """A logger that interrupts the run."""

    def __init__(self, iteration):
        self.iteration = iteration

    def log(self, step, metrics):
        if step == self.iteration:
            raise KeyboardInterrupt

    def close(self):
        pass


def rows_without_times(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


# Before the first checkpoint, behind it, and with batches of 5 that use every pass up.
@pytest.mark.parametrize(("died", "prompts"), [(1, 4), (3, 4), (5, 5)])
def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, died, prompts):
    window = {"kind": "window", "size": 7}
    settings = {"prompts": prompts, "constraint": {"transform": "identity", "estimator": window}}
    every = CheckpointConfig(every=2)
    whole, killed, resumed = (parts_of(**settings) for _ in range(3))
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    drive(whole, 6, tmp_path / "whole", every)
    with pytest.raises(KeyboardInterrupt):
        drive(killed, 6, tmp_path / "killed", every, loggers=[DieAt(died)])
    assert len(checkpoints(tmp_path / "killed/checkpoints")) == died // 2
    drive(resumed, 6, tmp_path / "killed", every)
    assert same(resumed.policy, snapshot(whole.policy))
    assert same(resumed.critic, snapshot(whole.critic))
    assert rows_without_times(tmp_path / "killed") == rows_without_times(tmp_path / "whole")


def test_a_score_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    calls = []

    def poisoned(responses):
        calls.append(1)
        return torch.full((8,), float("nan") if len(calls) == 4 else 1.0)

    with pytest.raises(NonFiniteError, match="reward scores: 8 of 8"):
        drive(parts_of(reward=poisoned), 6, tmp_path, CheckpointConfig(every=2))
    assert [p.name for p in checkpoints(tmp_path / "checkpoints")] == ["00000002"]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3


# responses


def test_responding_in_batches_changes_no_greedy_response():
    model, tokenizer = causal_lm(scale=3.0), word_tokenizer()
    whole = respond(model, tokenizer, PROMPTS, 6, seed=0, greedy=True)
    pieces = respond(model, tokenizer, PROMPTS, 6, seed=0, greedy=True, batch=2)
    assert whole == pieces
    assert len(whole[0]) == len(whole[1]) == 5


def test_sampled_pairs_differ_and_are_not_empty():
    pairs = sample_pairs(causal_lm(scale=1.0), word_tokenizer(), PROMPTS * 4, 1, seed=0)
    # one token out of 22: some pairs are equal or hold a special token alone, and are dropped
    assert 0 < len(pairs) < 20
    assert all(prompt in PROMPTS and a != b and a and b for prompt, a, b in pairs)


# learning


def learned(multiplier, iterations, seed=0):
    """The first iteration's metrics, and means over the last fifteen.

    A response has 8 words; a "bread" is worth 1 and a "wolf" 2, at most 12 in all. Reward alone
    calls for 4 wolves and more; the limit is 1 per response. One more wolf instead of a bread is
    worth 2 − 1, so the price that holds the limit is about λ = 1.
    """

    def worth(_, texts):
        words = [text.split() for text in texts]
        return [min(12.0, w.count("bread") + 2 * w.count("wolf")) for w in words]

    parts = parts_of(
        reward=by_text(worth),
        prompts=32,
        limit=1.0,
        constraint={"transform": "identity"},
        multiplier=multiplier,
        ppo={"learning_rate": 3e-3, "kl_coefficient": 0.01, "critic_learning_rate": 3e-3},
        seed=seed,
    )
    rows = list(train(parts, iterations))
    names = ("return/mean", "estimate/cost", "lambda/cost")
    return rows[0], {name: sum(row[name] for row in rows[-15:]) / 15 for name in names}


def test_constrained_training_ends_at_the_limit_its_price_and_the_best_reward_within_it():
    start, end = learned({"kind": "pid", "kp": 0.5, "ki": 0.1}, 60)
    assert start["return/mean"] < 2
    # 7 breads and 1 wolf: 7 + 2
    assert end["return/mean"] == pytest.approx(9, abs=0.4)
    assert end["estimate/cost"] == pytest.approx(1, abs=0.3)
    assert end["lambda/cost"] == pytest.approx(1, abs=0.3)


@pytest.mark.slow  # of the two, the one above says more: at a price of 0 it would not pass
def test_without_a_price_the_same_training_violates_the_limit():
    _, end = learned({"kind": "fixed", "weight": 0.0}, 40)
    assert end["return/mean"] > 10
    assert end["estimate/cost"] > 3
