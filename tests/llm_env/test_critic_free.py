"""Constrained RL of a language model without critics: groups of responses to one prompt."""

import pytest
import torch

from constrained_rl.checkpoint import checkpoints, load_state
from constrained_rl.config import CheckpointConfig
from constrained_rl.errors import InputError
from constrained_rl.ppo import annotate, mix, train
from constrained_rl.run import drive
from constrained_rl.settings import read_toml, to_toml, validate
from llm_env.collectors import by_text
from llm_env.config import AlignConfig
from tests.llm_env.test_safe_rlhf import counting, parts_of, rows_without_times, same, snapshot
from tests.llm_env.tiny import WORDS, causal_lm

RULES = ("leave_one_out", "group")


def critic_free(rule="leave_one_out", ppo=None, **settings):
    settings = {"prompts": 12, "responses_per_prompt": 4} | settings
    return parts_of(ppo={"advantage": rule} | (ppo or {}), **settings)


def test_a_group_is_the_responses_to_one_prompt():
    rollout = critic_free().collector.collect()
    assert rollout.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    prompts = [tuple(row[keep].tolist()) for row, keep in prompts_of(rollout)]
    assert [len(set(prompts[i : i + 4])) for i in (0, 4, 8)] == [1, 1, 1]
    assert len(set(prompts)) == 3
    assert len({tuple(row) for row in rollout.action.tolist()}) == 12  # sampled apart


def prompts_of(rollout):
    width = rollout.obs.ids.shape[1] - rollout.action.shape[1]
    return zip(rollout.obs.ids[:, :width], rollout.obs.attention[:, :width].bool(), strict=True)


def test_groups_may_be_asked_for_with_a_critic_too():
    parts = parts_of(prompts=12, responses_per_prompt=3)
    assert parts.collector.collect().group.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert "loss/value/reward" in next(train(parts, 3))


def test_the_advantage_is_the_rows_total_with_kl_against_the_others():
    parts = critic_free(ppo={"kl_coefficient": 0.5, "kl_streams": "reward"}, reward=counting("a"))
    with torch.no_grad():  # away from the reference
        for parameter in parts.policy.parameters():
            parameter.add_(0.05 * torch.cos(torch.arange(parameter.numel())).view_as(parameter))
    rollout = parts.collector.collect()
    streams = annotate(rollout, parts)
    total = rollout.episodes.return_ - 0.5 * streams.kl.sum(1)
    for start in (0, 4, 8):
        group = total[start : start + 4]
        for i in range(4):
            others = torch.cat([group[:i], group[i + 1 :]]).mean()
            expected = (group[i] - others).expand(len(streams.mask[0])) * streams.mask[start + i]
            torch.testing.assert_close(streams.advantage[start + i, :, 0], expected)
    assert streams.kl.abs().max() > 0.01
    assert mix(streams, torch.ones(1), parts.config).value.eq(0).all()


@pytest.mark.parametrize("rule", RULES)
def test_no_critic_is_built_trained_reported_or_saved(rule, tmp_path):
    parts = critic_free(rule)
    before = snapshot(parts.policy)
    assert parts.critic is parts.critic_learner is None
    rows = []
    drive(parts, 2, tmp_path, CheckpointConfig(every=1), loggers=[Keeping(rows)])
    assert not same(parts.policy, before)
    assert {"loss/policy", "kl/reference", "lambda/cost"} <= set(rows[0])
    assert [name for name in rows[0] if "value" in name or "variance" in name] == []
    assert "critic" not in load_state(checkpoints(tmp_path / "checkpoints")[-1])


class Keeping:
    """A logger that keeps what it is given."""

    def __init__(self, rows):
        self.rows = rows

    def log(self, step, metrics):
        self.rows.append(dict(metrics))

    def close(self):
        pass


def test_an_interrupted_run_without_critics_resumes_to_the_same_weights(tmp_path):
    whole, killed, resumed = (critic_free() for _ in range(3))
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    every = CheckpointConfig(every=2)
    drive(whole, 4, tmp_path / "whole", every)
    drive(killed, 2, tmp_path / "killed", every)
    drive(resumed, 4, tmp_path / "killed", every)
    assert same(resumed.policy, snapshot(whole.policy))
    assert rows_without_times(tmp_path / "killed") == rows_without_times(tmp_path / "whole")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": 8}, "set responses_per_prompt to 2 or more"),
        ({"prompts": 9, "responses_per_prompt": 4}, "no multiple of responses_per_prompt = 4"),
        ({"ppo": {"critic_warmup": 3}}, "has no critics, but critic_warmup is 3"),
        ({"ppo": {"value_clip": 0.2}}, r"has no critics, but value_clip is 0\.2"),
        ({"ppo": {"normalize_values": True}}, "has no critics, but normalize_values is True"),
        ({"ppo": {"gae_lambda": 0.5}}, r"has no critics, but gae_lambda is 0\.5"),
        ({"ppo": {"gamma": 0.99}}, r"undiscounted returns of whole rows, but gamma is 0\.99"),
        ({"ppo": {"advantage": "rloo"}}, "advantage"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    tree = {"prompts": 8, "responses_per_prompt": 1 if "ppo" not in settings else 4} | settings
    tree["ppo"] = {"advantage": "leave_one_out"} | settings.get("ppo", {})
    with pytest.raises(InputError, match=message):
        validate(AlignConfig, tree, "test")


def test_a_config_without_critics_is_read_as_it_was_written(tmp_path):
    tree = {"prompts": 8, "responses_per_prompt": 4, "ppo": {"advantage": "group"}}
    config = validate(AlignConfig, tree, "test")
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert validate(AlignConfig, read_toml(tmp_path / "config.toml"), "test") == config


# learning


@pytest.mark.parametrize("rule", [pytest.param("gae", marks=pytest.mark.slow), "leave_one_out"])
def test_learning_reaches_the_closed_form_optimum_with_and_without_critics(rule):
    # One token at price λ = 1, KL charged to both streams: π* ∝ π_ref exp((R − C) / (2β)).
    gold = {"bread": 1.0, "wolf": 1.5, "fox": 0.5, "use": -0.5}
    bad = {"wolf": 1.0, "fire": 1.0}

    def worth(table):
        return by_text(lambda _, texts: [table.get(text, 0.0) for text in texts])

    model, beta = causal_lm(scale=2.0), 0.25
    parts = parts_of(
        model,
        {"cost": worth(bad)},
        worth(gold),
        prompts=250,
        responses_per_prompt=5,
        max_new_tokens=1,
        constraint={"transform": "identity"},
        multiplier={"kind": "fixed", "weight": 1.0},
        ppo={
            "advantage": rule,
            "normalize": "none",
            "kl_coefficient": beta,
            "learning_rate": 5e-3,
            "critic_learning_rate": 1e-2 if rule == "gae" else None,
            "schedule": "cosine",
        },
    )
    for _ in train(parts, 40):
        pass
    rollout = parts.collector.collect()
    value = torch.zeros(22)
    for word, reward in gold.items():
        value[4 + WORDS.index(word)] += reward
    for word, cost in bad.items():
        value[4 + WORDS.index(word)] -= cost
    with torch.no_grad():
        start, found = (first_token(m, rollout) for m in (model, parts.policy.model))
    best = (start.log() + value / (2 * beta)).softmax(-1)
    distance = [(p - best).abs().sum(-1).mean() / 2 for p in (start, found)]  # total variation
    assert distance[0] > 0.15
    assert distance[1] < 0.04


def first_token(model, rollout):
    """Distribution of the first response token [B, V]."""
    from llm_env.policy import response_logits

    return response_logits(model, rollout.obs)[:, 0].softmax(-1)
