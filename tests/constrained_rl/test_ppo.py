import io
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch.testing import assert_close

from constrained_rl.config import PPOConfig
from constrained_rl.constraints import Constraint, Constraints
from constrained_rl.errors import InputError, NonFiniteError
from constrained_rl.estimators import Mean
from constrained_rl.logging import JsonlLogger, RichLogger
from constrained_rl.ppo import annotate, mix, set_schedules
from constrained_rl.rollout import Streams
from constrained_rl.schedules import schedule_factor
from constrained_rl.streams import build_streams, compare_rows, discounts
from tests.constrained_rl.helpers import Scripted, tiny, vector, weights
from tests.constrained_rl.test_rollout import make_rollout

ONE = Constraints([Constraint("cost", 0.0)], [Mean()])


def one_row(reward, cost, mask=None, **changes):
    """A rollout of one row."""
    fields = {"reward": torch.tensor([reward]), "cost": torch.tensor([cost]).unsqueeze(-1)}
    if mask is not None:
        fields["mask"] = torch.tensor([mask])
    return make_rollout(1, len(reward), **fields | changes)


# streams and mixing


def test_streams_are_reward_then_costs_and_0_where_masked():
    row = one_row([1.0, 2.0], [3.0, 4.0], [True, False])
    streams = build_streams(row, ONE.streams(row), PPOConfig())
    assert streams.tolist() == [[[1.0, 3.0], [0.0, 0.0]]]


def test_kl_is_charged_before_scores_are_clipped():
    config = PPOConfig(kl_coefficient=0.5, kl_streams="both", score_clip=2.0)
    kl = torch.tensor([[2.0, -8.0]])
    row = one_row([1.0, 0.0], [1.5, 0.0])
    streams = build_streams(row, ONE.streams(row), config, kl)
    # reward: 1 − ½·2 = 0 and 0 + ½·8 = 4 → 2;  cost: 1.5 + ½·2 = 2.5 → 2 and −4 → −2
    assert streams.tolist() == [[[0.0, 2.0], [2.0, -2.0]]]


def test_the_single_stream_is_reward_minus_weighted_cost_minus_kl():
    config = PPOConfig(kl_coefficient=0.5, streams="single")
    shaping = torch.tensor([2.0], dtype=torch.float64)
    row = one_row([1.0], [3.0])
    streams = build_streams(row, ONE.streams(row), config, torch.tensor([[4.0]]), shaping)
    # 1 − 2·3 − ½·4
    assert streams.tolist() == [[[-7.0]]]


def test_cost_discounts_default_to_those_of_the_reward():
    stream = torch.zeros(1, 1, 3)
    gamma, lam = discounts(PPOConfig(gamma=0.5, gae_lambda=0.25), stream)
    assert (gamma.tolist(), lam.tolist()) == ([0.5] * 3, [0.25] * 3)
    own = PPOConfig(gamma=0.5, gae_lambda=0.25, cost_gamma=1.0, cost_gae_lambda=0.75)
    gamma, lam = discounts(own, stream)
    assert (gamma.tolist(), lam.tolist()) == ([0.5, 1.0, 1.0], [0.25, 0.75, 0.75])


def streams_of(advantage, mask):
    advantage = torch.tensor([advantage])
    return Streams(
        obs=torch.zeros(1, len(mask) + 1, 1),
        action=torch.zeros(1, len(mask)),
        mask=torch.tensor([mask]),
        logp=torch.zeros(1, len(mask)),
        value=torch.zeros_like(advantage),
        advantage=advantage,
        exchangeable=True,
    )


def test_advantages_are_mixed_in_true_units_and_whitened_afterwards():
    streams = streams_of([[5.0, 1.0], [9.0, 1.0], [50.0, 0.0]], [True, True, False])
    # λ = 1: (5 − 1)/2 = 2 and (9 − 1)/2 = 4; mean 3, deviation 1
    batch = mix(streams, torch.ones(1), PPOConfig())
    assert batch.advantage.flatten().tolist() == [-1.0, 1.0]
    batch = mix(streams, torch.ones(1), PPOConfig(normalize="none", divide=False))
    assert batch.advantage.flatten().tolist() == [4.0, 8.0]


def test_whitening_streams_first_makes_lambda_a_weight_between_standard_scores():
    streams = streams_of([[0.0, 100.0], [1.0, 300.0]], [True, True])
    # both streams become −1, 1; at λ = 3: (−1 + 3)/4 and (1 − 3)/4
    batch = mix(streams, torch.tensor([3.0]), PPOConfig(normalize="streams"))
    assert batch.advantage.flatten().tolist() == [0.5, -0.5]


def test_rows_are_flattened_only_where_rollout_and_settings_allow_it():
    streams = streams_of([[0.0, 1.0], [1.0, 2.0], [0.0, 0.0]], [True, True, False])
    lam = torch.zeros(1)
    assert mix(streams, lam, PPOConfig()).logp.shape == (2, 1)
    assert mix(streams, lam, PPOConfig(flatten=False)).logp.shape == (1, 3)
    whole = replace(streams, exchangeable=False)
    assert mix(whole, lam, PPOConfig()).logp.shape == (1, 3)


# annotate


def test_annotating_knows_no_lambda_and_moves_nothing():
    agent = tiny()
    rollout = agent.parts.collector.collect()
    before = weights(agent)
    first = annotate(rollout, agent.parts)
    agent.parts.multiplier.lam += 5
    second = annotate(rollout, agent.parts)
    assert torch.equal(first.advantage, second.advantage)
    assert torch.equal(weights(agent), before)


def test_known_log_probabilities_of_the_engine_replace_the_recomputation():
    agent = tiny()
    rollout = agent.parts.collector.collect()
    known = torch.full_like(rollout.reward, -0.25)
    streams = annotate(replace(rollout, behaviour_logp=known), agent.parts)
    assert torch.equal(streams.logp, known * rollout.mask)


def test_the_kl_to_a_reference_is_charged_and_reported():
    agent = tiny(ppo={"kl_coefficient": 0.5, "gamma": 0.0, "gae_lambda": 0.0})
    agent.parts.reference = lambda _, action: torch.zeros_like(action, dtype=torch.float32)
    rollout = agent.parts.collector.collect()
    streams = annotate(rollout, agent.parts)
    assert_close(streams.kl, streams.logp)
    # With γ = 0 the advantage is r − β·kl − V.
    expected = (rollout.reward - 0.5 * streams.kl - streams.value[..., 0]) * rollout.mask
    assert_close(streams.advantage[..., 0], expected)


def test_a_critic_without_final_state_is_given_the_value_0_there():
    agent = tiny(ppo={"gamma": 1.0, "gae_lambda": 0.0})
    rollout = agent.parts.collector.collect()
    engine = agent.parts.critic_learner.engine
    full = engine.forward
    engine.forward = lambda obs: full(obs)[:, :-1]
    streams = annotate(rollout, agent.parts)
    last = streams.advantage[:, -1, 0]
    # δ_T = r_T + γ·0 − V_T
    expected = (rollout.reward[:, -1] - streams.value[:, -1, 0]) * rollout.mask[:, -1]
    assert_close(last, expected.detach())


@pytest.mark.parametrize(
    ("break_it", "name"),
    [
        (lambda agent: agent.policy.net[-1].bias.data.fill_(torch.nan), "log-probabilities"),
        (lambda agent: agent.parts.critic.biases[0].data.fill_(torch.nan), "values"),
    ],
)
def test_networks_that_went_nan_stop_the_run_by_name(break_it, name):
    agent = tiny()
    break_it(agent)
    with pytest.raises(NonFiniteError, match=name):
        agent.train(32)


# the update


def counted(agent):
    """Count policy and critic steps and multiplier updates."""
    counts = {"policy": 0, "critic": 0, "lambda": 0}

    def watch(owner, method, name):
        original = getattr(owner, method)

        def called(*args):
            counts[name] += 1
            return original(*args)

        setattr(owner, method, called)

    watch(agent.parts.policy_learner, "step", "policy")
    watch(agent.parts.critic_learner, "step", "critic")
    watch(agent.parts.multiplier, "update", "lambda")
    return counts


def test_lambda_is_updated_exactly_once_per_policy_update():
    agent = tiny()
    counts = counted(agent)
    for iteration, _ in enumerate(agent.iterate_until(3), start=1):
        # 2 epochs × 2 minibatches
        assert counts == {"lambda": iteration, "policy": 4 * iteration, "critic": 4 * iteration}


def test_beyond_the_target_kl_the_policy_rests_and_the_critics_go_on():
    agent = tiny(ppo={"target_kl": 1e-12, "epochs": 3, "schedule": "constant"})
    counts = counted(agent)
    agent.train(32)
    # The KL is 0 before the first step and above the target before the second, the last one.
    assert (counts["policy"], counts["critic"]) == (2, 6)


def test_the_multiplier_sees_raw_episode_costs_and_reacts_to_them():
    # Every episode: 2 steps of reward 1 and cost 3; J_C = 6 over the limit 5.
    envs = vector(*[Scripted([(1, 3), (1, 3)]) for _ in range(2)])
    agent = tiny("ppo_lagrangian", envs, 5.0, multiplier={"learning_rate": 0.5})
    first, second = agent.iterate_until(2)
    assert first["cost/0"] == 6
    assert first["return/mean"] == 2
    # λ = ½·(6 − 5), and again
    assert first["lambda/0"] == 0.5
    assert second["lambda/0"] == 1.0


def test_the_advantages_of_an_iteration_are_mixed_at_its_own_new_lambda():
    envs = vector(*[Scripted([(1, 3), (2, 0)]) for _ in range(2)])
    ppo = {"epochs": 1, "minibatches": 1, "flatten": False, "normalize": "none"}
    agent = tiny("ppo_lagrangian", envs, 1.0, multiplier={"learning_rate": 0.5}, ppo=ppo)
    parts, seen = agent.parts, []
    collect, step = parts.collector.collect, parts.policy_learner.step
    # Streams are annotated here once more, before the update moves the critic.
    parts.collector.collect = lambda: (seen.append(annotate(r := collect(), parts)), r)[1]
    parts.policy_learner.step = lambda batch: (seen.append(batch), step(batch))[1]
    metrics = agent.train(16)
    streams, batch = seen
    assert metrics["lambda/0"] == 1.0  # 0 + ½·(3 − 1)
    # A = (A_r − 1·A_c) / (1 + 1); minibatches shuffle rows
    expected = (streams.advantage[..., 0] - streams.advantage[..., 1]) / 2
    assert_close(batch.advantage.sum(0), expected.sum(0))


def test_without_a_finished_episode_lambda_holds():
    envs = vector(*[Scripted([(1, 3)] * 12) for _ in range(2)])
    agent = tiny("ppo_lagrangian", envs, 5.0, multiplier={"initial": 0.25})
    first, second = agent.iterate_until(2)  # windows of 8 steps: the first holds no end
    assert (first["episodes"], first["lambda/0"]) == (0, 0.25)
    # 0.25 + 0.05·(36 − 5)
    assert (second["episodes"], second["lambda/0"]) == (2, 1.8)


def test_two_constraints_are_priced_separately():
    envs = vector(*[Scripted([(1, 3, 0), (1, 3, 1)]) for _ in range(2)])
    agent = tiny("ppo_lagrangian", envs, (5.0, 2.0), multiplier={"learning_rate": 0.5})
    metrics = agent.train(8)
    assert (metrics["lambda/0"], metrics["lambda/1"]) == (0.5, 0.0)
    assert agent.parts.critic(torch.zeros(1, 2, 2)).shape[-1] == 3


def test_static_shaping_on_one_stream_has_one_critic():
    multiplier = {"kind": "fixed", "weight": 2.0}
    agent = tiny("static_shaping", multiplier=multiplier, ppo={"streams": "single"})
    metrics = agent.train(32)
    assert "loss/value/shaped" in metrics
    assert metrics["lambda/risk"] == 2.0


def test_the_single_stream_is_refused_for_a_moving_lambda():
    with pytest.raises(InputError, match="fixed weights"):
        tiny("ppo_lagrangian", ppo={"streams": "single"})


def test_plain_ppo_ignores_costs_but_reports_them():
    agent = tiny("ppo")
    for metrics in agent.iterate_until(6):
        assert not any(name.startswith("lambda/") for name in metrics)
    assert agent.parts.critic(torch.zeros(1, 2, 11)).shape[-1] == 1


def test_the_dual_clip_of_the_settings_is_the_one_of_the_policy_loss():
    losses = []
    for dual_clip in (None, 1.5):
        agent = tiny("ppo", ppo={"dual_clip": dual_clip, "minibatches": 1})
        streams = annotate(agent.parts.collector.collect(), agent.parts)
        batch = mix(streams, torch.zeros(0), agent.parts.config)
        doubled = replace(batch, logp=batch.logp - math.log(2))  # ρ = 2 everywhere
        losses.append(agent.parts.policy_learner.step(doubled)["loss/policy"])
    # Good decisions are clipped at 1.2 in both; bad ones pay 2 without and 1.5 with the bound.
    bad = -(batch.weight * batch.advantage.clamp(max=0)).sum().item()
    good = (batch.weight * batch.advantage.clamp(min=0)).sum().item()
    assert losses == pytest.approx([2 * bad - 1.2 * good, 1.5 * bad - 1.2 * good], rel=1e-4)


# critic warm-up


def parameters(module):
    return [p.detach().clone() for p in module.parameters()]


def test_during_the_warm_up_only_the_critics_learn_and_lambda_holds():
    envs = vector(*[Scripted([(1, 3), (1, 3)]) for _ in range(2)])
    multiplier = {"learning_rate": 0.5, "initial": 0.25, "delay": 1}
    agent = tiny("ppo_lagrangian", envs, 5.0, multiplier=multiplier, ppo={"critic_warmup": 2})
    counts, before = counted(agent), parameters(agent.policy)
    critic = parameters(agent.parts.critic)
    rows = agent.iterate_until(4)
    for row in (next(rows), next(rows)):
        assert all(map(torch.equal, parameters(agent.policy), before))
        assert "loss/policy" not in row
        assert row["estimate/0"] == 6  # estimates go on
        assert row["lambda/0"] == 0.25
    assert not all(map(torch.equal, parameters(agent.parts.critic), critic))
    third, fourth = rows
    # The delay of one update is counted from the end of the warm-up: 0.25, then + ½·(6 − 5)
    assert (third["lambda/0"], fourth["lambda/0"]) == (0.25, 0.75)
    assert counts == {"lambda": 4, "policy": 8, "critic": 16}
    assert not all(map(torch.equal, parameters(agent.policy), before))


# costs by the critics


def test_a_clip_of_the_streams_leaves_the_corrected_cost_alone():
    def found(**ppo):
        agent = tiny("scale_free", ppo={"horizon": 64, **ppo})
        return annotate(agent.parts.collector.collect(), agent.parts).corrected

    plain, clipped = found(), found(score_clip=1e-3)
    assert plain.item() > 0.1  # a clipped cost would be 1e-3 of it
    assert_close(clipped, plain)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"corrected": True}, r"constraint\.corrected needs a critic of each cost.*'single'"),
        ({"estimator": {"kind": "tracking"}}, r"'tracking' follows.*streams='single'"),
    ],
)
def test_a_single_stream_has_no_costs_to_estimate_from(constraint, message):
    with pytest.raises(InputError, match=message):
        tiny("static_shaping", ppo={"streams": "single"}, constraint=constraint)


# schedules


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1]),
        ("linear", [1, 0.75, 0.5]),
        ("quadratic", [1, 0.5625, 0.25]),
        ("cosine", [1, 0.5 + 0.25 * math.sqrt(2), 0.5]),
    ],
)
def test_schedules_at_the_start_a_quarter_and_half(schedule, factors):
    assert [schedule_factor(schedule, x) for x in (0, 0.25, 0.5)] == pytest.approx(factors)


def test_warm_up_rises_from_0_and_the_rest_is_spread_over_what_remains():
    # warm-up ½: at ¼ half of it is done; at ¾ half of the rest.
    found = [schedule_factor("linear", x, warmup=0.5) for x in (0, 0.25, 0.5, 0.75)]
    assert found == [0, 0.5, 1, 0.5]


@given(
    st.sampled_from(["constant", "linear", "quadratic", "cosine"]),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1),
)
def test_a_schedule_never_leaves_0_to_1(schedule, progress, warmup):
    assert 0 <= schedule_factor(schedule, progress, warmup) <= 1


def test_schedules_move_both_learning_rates_and_the_entropy_weight():
    settings = {"learning_rate": 0.1, "critic_learning_rate": 0.2, "entropy": 0.4}
    agent = tiny(ppo=settings | {"schedule": "linear", "entropy_schedule": "cosine"})
    set_schedules(agent.parts, 0.5)
    learners = agent.parts.policy_learner, agent.parts.critic_learner
    assert [x.engine.optimizer.param_groups[0]["lr"] for x in learners] == [0.05, 0.1]
    assert agent.parts.policy_objective.entropy == pytest.approx(0.2)


def test_the_last_iteration_still_learns():
    agent = tiny(ppo={"schedule": "linear"})
    group = agent.parts.policy_learner.engine.optimizer.param_groups[0]
    rates = [group["lr"] for _ in agent.iterate_until(4)]
    # 3e-4 times 1, ¾, ½, ¼
    assert rates == pytest.approx([3e-4, 2.25e-4, 1.5e-4, 0.75e-4])


# reproducibility


def test_equal_seeds_give_equal_weights_and_other_seeds_others():
    def trained(seed):
        agent = tiny(seed=seed)
        agent.train(96)
        return weights(agent)

    first = trained(0)
    torch.manual_seed(1234)  # the global generator is nobody's
    assert torch.equal(trained(0), first)
    assert not torch.equal(trained(1), first)


def test_loggers_change_no_parameter(tmp_path, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    plain, observed = tiny(), tiny()
    plain.train(96)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    loggers = [
        JsonlLogger(tmp_path / "metrics.jsonl"),
        RichLogger(3, "title", {"0": 4.0}, console=console),
    ]
    for step, metrics in enumerate(observed.iterate(96), start=1):
        for logger in loggers:
            logger.log(step, metrics)
    for logger in loggers:
        logger.close()
    assert torch.equal(weights(plain), weights(observed))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert "lambda/risk" in screen.getvalue()


def test_rows_that_name_no_group_cannot_be_compared():
    config = PPOConfig(advantage="leave_one_out", gamma=1.0)
    with pytest.raises(InputError, match="the collector names no group of rows"):
        compare_rows(one_row([1.0, 2.0], [3.0, 4.0]), torch.zeros(1, 2, 2), config)
