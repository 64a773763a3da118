"""The stepped path against the fused one, and learning on it by our loop and by foreign code."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from constrained_rl.assembly import assemble, constrain
from constrained_rl.collectors import VectorCollector, Windowing
from constrained_rl.constraint_config import ConstraintConfig
from constrained_rl.multiplier_config import FixedConfig, PIDConfig
from constrained_rl.ppo import annotate, train
from llm_env.collectors import TokenCollector, by_model, by_text
from llm_env.config import TokenPPOConfig
from llm_env.env import TokenEnv
from llm_env.policy import CausalLMPolicy, response_logp
from llm_env.scoring import ScoreModel, TokenCritic
from llm_env.step_policy import StepCritic, StepPolicy, step_rows
from tests.llm_env.tiny import EOS, VOCABULARY, causal_lm, word_tokenizer

PROMPTS = ["how do i bake bread", "how do i trap a wolf", "bake bread ?", "trap the fox .", "cat"]
ROWS, LENGTH = 10, 6
CPU = torch.device("cpu")


def counting(*words, unit=1.0):
    """Occurrences of `words` in each response, times `unit`."""
    return by_text(lambda _, texts: [unit * sum(t.split().count(w) for w in words) for t in texts])


def ends_often(family):
    """A model whose responses end by eos about every third token."""
    model = causal_lm(family, scale=1.5)
    head = model.get_output_embeddings()
    bias = torch.zeros(head.out_features)
    bias[EOS] = 2.0
    head.register_forward_hook(lambda _, __, logits: logits + bias.to(logits))
    return model


def score_model(seed, heads=1):
    generator = torch.Generator().manual_seed(seed)
    return ScoreModel.from_causal_lm(causal_lm(seed=seed), heads, generator=generator)


def both_collectors(model, seed, **scores):
    """The fused and the stepped collector of one policy, with the same prompts and uniforms."""
    policy = CausalLMPolicy(model)
    common = (word_tokenizer(), PROMPTS, scores["reward"], scores["costs"])
    fused = TokenCollector(policy, *common, batch=ROWS, max_new_tokens=LENGTH, seed=seed)
    env = TokenEnv(ROWS, *common, max_new_tokens=LENGTH, config=model.config)
    steps = VectorCollector(env, StepPolicy(policy), Windowing(LENGTH), env.cost_names, seed, CPU)
    return policy, fused, steps


def parts_of(collector, policy, critic, **changes):
    config = TokenPPOConfig(
        gamma=0.9, gae_lambda=0.8, cost_gamma=0.95, cost_gae_lambda=0.7, **changes
    )
    names = collector.cost_names
    constraints = constrain(names, 0.0, ConstraintConfig())
    return assemble(collector, policy, critic, constraints, FixedConfig(), config, seed=0)


def first_episodes(fused):
    """Row and length of each episode of the fused rollout; the stepped window begins with it."""
    return list(enumerate(fused.mask.sum(1).tolist()))


# parity


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mistral"])
def test_stepped_and_fused_sampling_make_the_same_episodes(family):
    scores = {
        "reward": by_model(score_model(5)),
        "costs": {"wolf": counting("wolf"), "c": by_model(score_model(6))},
    }
    policy, fused_collector, steps_collector = both_collectors(ends_often(family), 3, **scores)
    fused, steps = fused_collector.collect(), steps_collector.collect()
    episodes = first_episodes(fused)
    assert len({length for _, length in episodes}) > 2  # ragged
    with torch.no_grad():
        logp, _ = StepPolicy(policy)(steps.obs, steps.action)
    for row, length in episodes:
        here = (row, slice(length))
        assert torch.equal(steps.action[here], fused.action[here])
        assert steps.mask[here].all()
        assert torch.equal(steps.terminated[here], fused.terminated[here])
        # float32: the same products over rows of another width
        close = {"atol": 2e-5, "rtol": 1e-5}
        torch.testing.assert_close(logp[here], fused.behaviour_logp[here], **close)
        torch.testing.assert_close(steps.reward[here], fused.reward[here], **close)
        torch.testing.assert_close(steps.cost[here], fused.cost[here], **close)


def test_advantages_of_the_stepped_rollout_are_those_of_the_fused_one():
    model, reference = ends_often("llama"), causal_lm(seed=9)
    scores = {"reward": counting("bread", "?"), "costs": {"a": counting("wolf"), "b": counting()}}
    policy, fused_collector, steps_collector = both_collectors(model, 1, **scores)
    critic = TokenCritic(score_model(7, heads=3))
    settings = {"kl_coefficient": 0.1, "kl_streams": "both"}
    fused_parts = parts_of(fused_collector, policy, critic, **settings)
    fused_parts.reference = lambda obs, _: response_logp(reference, obs)
    steps_parts = parts_of(steps_collector, StepPolicy(policy), StepCritic(critic), **settings)
    stepped = StepPolicy(CausalLMPolicy(reference))
    steps_parts.reference = lambda obs, action: stepped(obs, action)[0]
    rollout = fused_collector.collect()
    fused, steps = annotate(rollout, fused_parts), annotate(steps_collector.collect(), steps_parts)
    assert fused.advantage.abs().max() > 0.5
    for row, length in first_episodes(rollout):
        here = (row, slice(length))
        # float32; values are of order 1
        for name in ("advantage", "value", "kl"):
            found, expected = getattr(steps, name)[here], getattr(fused, name)[here]
            torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)


class LastTokenCritic(nn.Module):
    """Values looked up by the newest token, in float64 and for both layouts of states."""

    def __init__(self):
        super().__init__()
        values = torch.randn(VOCABULARY, 3, generator=torch.Generator().manual_seed(0))
        self.values = nn.Parameter(values.double())

    def forward(self, obs):
        stepped = isinstance(obs, torch.Tensor)
        newest = obs[:, :, 0, -1] if stepped else obs.ids[:, obs.prompt_width - 1 : -1]
        return self.values[newest]

    def update_statistics(self, rollout):
        pass


def test_advantages_agree_to_1e_9_in_float64():
    costs = {"a": counting("wolf", unit=0.1), "b": counting("fox", "cat", unit=0.7)}
    scores = {"reward": counting("bread", "?", unit=0.3), "costs": costs}
    policy, *collectors = both_collectors(ends_often("llama"), 2, **scores)
    acting, rollouts, streams = (policy, StepPolicy(policy)), [], []
    for collector, actor in zip(collectors, acting, strict=True):
        rollout = collector.collect()
        rollouts.append(
            replace(rollout, reward=rollout.reward.double(), cost=rollout.cost.double())
        )
        parts = parts_of(collector, actor, LastTokenCritic(), kl_coefficient=0.0)
        streams.append(annotate(rollouts[-1], parts))
    fused, steps = streams
    assert fused.advantage.dtype == steps.advantage.dtype == torch.float64
    for row, length in first_episodes(rollouts[0]):
        here = (row, slice(length))
        assert (steps.advantage[here] - fused.advantage[here]).abs().max() < 1e-9
        assert fused.advantage[here].abs().min() > 0


def test_fused_episodes_replayed_through_the_environment_by_plain_transformers_calls():
    model = ends_often("gpt2")
    scores = {"reward": counting("bread", "?"), "costs": {"wolf": counting("wolf", "trap")}}
    _, collector, _ = both_collectors(model, 8, **scores)
    rollout = collector.collect()
    env = TokenEnv(ROWS, word_tokenizer(), PROMPTS, *scores.values(), max_new_tokens=LENGTH)
    obs, _ = env.reset(seed=8)
    under_way = torch.ones(ROWS, dtype=torch.bool)
    for t in range(rollout.mask.shape[1]):
        ids, attention = obs.unbind(1)
        positions = (attention.cumsum(1) - 1).clamp_min(0)
        with torch.no_grad():
            logits = model(ids, attention_mask=attention, position_ids=positions).logits[:, -1]
        token = rollout.action[:, t]
        logp = logits.log_softmax(-1).gather(1, token.unsqueeze(1)).squeeze(1)
        assert torch.equal(under_way, rollout.mask[:, t])
        expected = rollout.behaviour_logp[under_way, t]
        torch.testing.assert_close(logp[under_way], expected, atol=2e-5, rtol=1e-5)
        obs, reward, terminated, _, info = env.step(token)
        assert torch.equal(reward[under_way], rollout.reward[under_way, t])
        cost = torch.from_numpy(info["cost"]).float()
        assert torch.equal(cost[under_way], rollout.cost[under_way, t])
        assert torch.equal(terminated[under_way], rollout.terminated[under_way, t])
        for row in (terminated & under_way).nonzero().flatten().tolist():
            assert info["stop_reason"][row] == rollout.episodes.stop_reason[row]
            ids = rollout.action[row, : t + 1]
            assert info["response"][row] == word_tokenizer().decode(ids, skip_special_tokens=True)
        under_way = under_way & ~terminated
    assert not under_way.any()


# the adapter


def test_states_are_cut_to_the_longest_and_followed_by_their_action():
    # two states in 5 columns: tokens 7 8 and 9, newest last
    obs = torch.tensor(
        [[[0, 0, 0, 7, 8], [0, 0, 0, 1, 1]], [[0, 0, 0, 0, 9], [0, 0, 0, 0, 1]]]
    )  # fmt: skip
    rows = step_rows(obs, torch.tensor([[5], [6]]))
    assert rows.ids.tolist() == [[7, 8, 5], [0, 9, 6]]
    assert rows.attention.tolist() == [[True, True, True], [False, True, True]]
    assert rows.prompt_width == 2


def test_a_deterministic_policy_takes_the_most_likely_token():
    model = causal_lm(scale=2.0)
    obs = torch.tensor([[[4, 5, 6], [1, 1, 1]]])
    with torch.no_grad():
        expected = model(obs[:, 0]).logits[0, -1].argmax()
    assert StepPolicy(CausalLMPolicy(model)).act(obs, None, deterministic=True).item() == expected


def test_the_language_model_stays_in_eval_mode():
    policy, critic = (
        StepPolicy(CausalLMPolicy(causal_lm("gpt2"))),
        StepCritic(TokenCritic(score_model(0))),
    )
    policy.train()
    critic.train()
    assert not policy.policy.model.training
    assert not critic.critic.model.backbone.training


# learning


def small_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 16}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads))


def greedy_env(num_envs):
    """Four tokens; each wolf pays 2 and costs 1, each bread pays 1."""
    reward = by_text(
        lambda _, t: [x.split().count("bread") + 2 * x.split().count("wolf") for x in t]
    )
    costs = {"wolf": counting("wolf")}
    return TokenEnv(num_envs, word_tokenizer(), ["cat", "a fox"], reward, costs, max_new_tokens=4)


def test_the_ordinary_loop_improves_the_reward_under_a_cost_limit():
    env, model = greedy_env(32), small_model()
    policy = StepPolicy(CausalLMPolicy(model))
    critic = StepCritic(TokenCritic(ScoreModel.from_causal_lm(model, 2, zero_init=True)))
    collector = VectorCollector(env, policy, Windowing(10), env.cost_names, 0, CPU)
    rates = {"learning_rate": 0.02, "critic_learning_rate": 0.02}
    config = TokenPPOConfig(flatten=True, kl_coefficient=0.0, **rates)
    constraints = constrain(env.cost_names, 0.5, ConstraintConfig())
    multiplier = PIDConfig(kp=1.0, ki=0.2)
    parts = assemble(collector, policy, critic, constraints, multiplier, config, seed=0)
    metrics = list(train(parts, 16))
    # Free, four wolves pay 8 and cost 4. At E[C] ≤ 0.5 the best is 3.5 bread + 0.5 wolf = 4.5.
    start, end = metrics[0], metrics[-6:]
    assert start["return/mean"] < 1
    assert np.mean([m["return/mean"] for m in end]) > 3.5
    assert np.mean([m["cost/wolf"] for m in end]) < 0.8


def test_a_run_on_it_resumes_bitwise():
    def run(rows=4):
        env, policy = greedy_env(rows), StepPolicy(CausalLMPolicy(small_model()))
        critic = StepCritic(
            TokenCritic(ScoreModel.from_causal_lm(small_model(), 2, zero_init=True))
        )
        windows_cut_episodes = Windowing(3)
        collector = VectorCollector(env, policy, windows_cut_episodes, env.cost_names, 0, CPU)
        return parts_of(collector, policy, critic, flatten=True, kl_coefficient=0.0)

    whole, first, second = run(), run(), run()
    list(train(whole, 4))
    list(train(first, 2))
    second.load_state_dict(first.state_dict())
    list(train(second, 4))
    expected, found = whole.policy.state_dict(), second.policy.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_tensors_stay_there_and_the_episodes_are_those_of_the_fused_collector():
    policy = CausalLMPolicy(ends_often("llama").cuda())
    costs = {"wolf": counting("wolf"), "c": by_model(score_model(6).cuda())}
    common = (word_tokenizer(), PROMPTS, by_model(score_model(5).cuda()), costs)
    fused = TokenCollector(policy, *common, batch=ROWS, max_new_tokens=LENGTH, seed=3).collect()
    env = TokenEnv(ROWS, *common, max_new_tokens=LENGTH, device="cuda")
    assert all(x.device.type == "cuda" for x in env.step(np.full(ROWS, EOS))[:4])
    collector = VectorCollector(
        env, StepPolicy(policy), Windowing(LENGTH), env.cost_names, 3, torch.device("cuda")
    )
    steps = collector.collect()
    collector.load_state_dict(collector.state_dict())
    assert steps.reward.device.type == "cuda"
    for row, length in first_episodes(fused):
        here = (row, slice(length))
        assert torch.equal(steps.action[here], fused.action[here])
        for name in ("reward", "cost"):
            found, expected = getattr(steps, name)[here], getattr(fused, name)[here]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
