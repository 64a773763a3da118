"""Exact optima of constrained RLHF, on languages small enough to compute by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_rl.errors import InputError
from constrained_rl.ppo import train
from constrained_rl.settings import validate
from llm_env.config import AlignConfig
from llm_env.enumerable.language import (
    by_table,
    enumerate_language,
    log_probabilities,
    tabulate,
)
from llm_env.enumerable.optimum import Infeasible, Optimum, evaluate, frontier, solve
from llm_env.enumerable.prices import cost_on_path
from llm_env.enumerable.problem import Problem
from llm_env.enumerable.small_world import LONGEST, PROMPTS, small_llama, small_tokenizer
from llm_env.safe_rlhf import alignment
from llm_env.tokens import TokenRows


def problem(reward, cost, limit, beta=1.0, kl_streams="reward"):
    """A uniform reference; tables [X, Y], several constraints as [K, X, Y]."""
    reward, cost = np.array(reward, float), np.array(cost, float)
    cost, limit = cost.reshape(-1, *reward.shape), np.atleast_1d(np.array(limit, float))
    reference = np.full(reward.shape, -np.log(reward.shape[1]))
    return Problem(reference, reward, cost, limit, beta, kl_streams)


def drawn(seed, kl_streams="reward", constraints=1):
    """A random problem of two prompts and six responses, with a limit that binds."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(2, 6))
    reference = raw - np.log(np.exp(raw).sum(1, keepdims=True))
    cost = rng.normal(size=(constraints, 2, 6))
    limit = np.full(constraints, -0.2)
    return Problem(reference, rng.normal(size=(2, 6)), cost, limit, 0.5, kl_streams)


def policy(seed, shape=(2, 6)):
    raw = 2 * np.random.default_rng([seed, 1]).normal(size=shape)
    return raw - np.log(np.exp(raw).sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("kl_streams", "expected"),
    [
        # two responses, R = C = (1, 0), β = 1: π_λ(1) = σ((1 − λ) / (β′/β)) = E[C] = .6, whose
        # logit is ln 1.5 = .4055: 1 − λ = .4055
        ("reward", 0.5945),
        ("both", 0.4230),  # (1 − λ) / (1 + λ) = .4055
        ("paper", 0.6629),  # (1 − λ) / (1 + λ) = .2027
    ],
)
def test_two_responses_by_hand(kl_streams, expected):
    found = solve(problem([[1, 0]], [[1, 0]], 0.6, kl_streams=kl_streams))
    assert isinstance(found, Optimum)
    assert found.multipliers == pytest.approx([expected], abs=1e-4)
    assert found.cost == pytest.approx([0.6], abs=1e-7)
    assert np.exp(found.log_policy) == pytest.approx(np.array([[0.6, 0.4]]), abs=1e-7)


def test_a_limit_that_does_not_bind_has_no_price():
    # σ(1) = .731 < .9
    for kl_streams in ("reward", "both", "paper"):
        found = solve(problem([[1, 0]], [[1, 0]], 0.9, kl_streams=kl_streams))
        assert found.multipliers.tolist() == [0.0]
        assert found.cost == pytest.approx([1 / (1 + np.exp(-(2 if kl_streams == "paper" else 1)))])


def test_what_is_infeasible_under_both_may_be_feasible_as_written():
    # "both" falls to σ(−1) = .2689 as λ grows; logit .2 = −1.386, so 1 − λ = −1.386 as written
    assert solve(problem([[1, 0]], [[1, 0]], 0.2)).multipliers == pytest.approx([2.386], abs=1e-3)
    found = solve(problem([[1, 0]], [[1, 0]], 0.2, kl_streams="both"))
    assert isinstance(found, Infeasible)
    assert found.least_cost == pytest.approx([0.2689], abs=1e-4)


def test_no_policy_below_the_cheapest_responses():
    # the cheapest responses cost 0 and −1, in the mean −.5; at the limit −.5 λ* would be infinite
    found = solve(problem([[1, 0], [0, 1]], [[1, 0], [-1, 3]], -0.5))
    assert isinstance(found, Infeasible)
    assert found.least_cost.tolist() == [-0.5]


def test_each_limit_alone_can_be_met_but_not_both():
    found = solve(problem([[0, 0]], [[[1, 0]], [[0, 1]]], [0.3, 0.3]))
    assert isinstance(found, Infeasible)
    assert found.least_cost.tolist() == [0.0, 0.0]
    assert isinstance(solve(problem([[0, 0]], [[[1, 0]], [[0, 1]]], [0.7, 0.4])), Optimum)


def turning(limit):
    """The mean cost ½ [9 σ(1 − 10u) − σ(4 − 3u)] falls to −.425 at u ≈ .66 and rises to −.365."""
    return problem([[1, 0], [4, 0]], [[9, 0], [-1, 0]], limit, kl_streams="both")


def test_the_smallest_of_two_roots():
    found = solve(turning(-0.4))
    (lam,) = found.multipliers
    # ½ [9 σ(−4.35) − σ(2.395)] = ½ [.1147 − .9164] = −.4009 at u = .535, λ = 1.15
    assert lam == pytest.approx(1.145, abs=0.01)
    assert found.cost == pytest.approx([-0.4], abs=1e-9)
    before = [cost_on_path(turning(-0.4), u) for u in np.linspace(0, lam / (1 + lam), 50)[:-1]]
    assert min(before) > -0.4
    assert cost_on_path(turning(-0.4), 0.95) > -0.4  # met by no λ above the second root


def test_below_the_turning_point_nothing_is_feasible():
    found = solve(turning(-0.43))
    assert isinstance(found, Infeasible)
    assert found.least_cost == pytest.approx([-0.4248], abs=1e-3)


@given(st.integers(0, 10_000), st.floats(0, 5))
def test_the_duals_gradient_is_the_slack(seed, lam):
    case, step = drawn(seed), 1e-5
    slope = (case.dual(np.array([lam + step]))[0] - case.dual(np.array([lam - step]))[0]) / 2 / step
    value, gradient = case.dual(np.array([lam]))
    log_policy, _ = case.tilt(np.array([lam]))
    assert gradient == pytest.approx(case.limit - case.mean_cost(log_policy))
    assert slope == pytest.approx(float(gradient[0]), abs=1e-5)
    assert value == pytest.approx(case.lagrangian(log_policy, np.array([lam])))


@given(st.integers(0, 10_000), st.sampled_from(["reward", "both", "paper"]))
def test_no_policy_beats_the_optimum_and_the_gap_is_its_distance(seed, kl_streams):
    case = drawn(seed, kl_streams)
    optimum = solve(case)
    if isinstance(optimum, Infeasible):
        return
    lam, other = optimum.multipliers, policy(seed)
    gap = optimum.objective - case.lagrangian(other, lam)
    assert gap >= 0
    found = evaluate(case, optimum, other)
    assert gap == pytest.approx(case.kl_weight(lam) * found.kl_optimum)
    gain = optimum.objective - optimum.reference_objective
    assert found.share == pytest.approx(1 - gap / gain)
    assert evaluate(case, optimum, optimum.log_policy).share == pytest.approx(1)
    assert evaluate(case, optimum, case.log_reference).share == pytest.approx(0, abs=1e-9)


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_several_prices_are_complementary_to_slack(seed):
    found = solve(drawn(seed, constraints=3))
    if isinstance(found, Infeasible):
        return
    slack = -0.2 - found.cost
    assert (slack > -1e-6).all()
    assert found.multipliers * slack == pytest.approx(np.zeros(3), abs=1e-6)


def test_prompts_count_as_often_as_they_are_asked():
    # only the first prompt is ever asked: σ(1 − λ) = .6 as with it alone
    case = problem([[1, 0], [5, 0]], [[1, 0], [9, 0]], 0.6)
    weighted = Problem(case.log_reference, case.reward, case.cost, case.limit, 1.0,
                       weight=np.array([2.0, 0.0]))  # fmt: skip
    assert solve(weighted).multipliers == pytest.approx([0.5945], abs=1e-4)


def test_the_frontier_trades_reward_for_cost():
    points = frontier(drawn(3), [np.array([lam]) for lam in (0.0, 0.5, 1.0, 4.0)])
    assert sorted((p.cost[0] for p in points), reverse=True) == [p.cost[0] for p in points]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0"),
        ({"reward": np.array([[1.0, np.nan]])}, r"reward\[0, 1\] is nan"),
        ({"cost": np.zeros((2, 1, 2))}, r"cost has shape \(2, 1, 2\), expected \(1, 1, 2\)"),
        ({"log_reference": np.log([[0.5, 0.4]])}, "prompt 0 sum to 0.900000"),
    ],
)
def test_what_is_no_problem(change, message):
    sound = problem([[1, 0]], [[1, 0]], 0.6)
    parts = {n: getattr(sound, n) for n in ("log_reference", "reward", "cost", "limit", "beta")}
    with pytest.raises(InputError, match=message):
        Problem(**parts | change)


def test_several_constraints_have_no_root_to_find():
    with pytest.raises(InputError, match="'both' and there are 2 constraints"):
        problem([[1, 0]], [[[1, 0]], [[0, 1]]], [0.5, 0.5], kl_streams="both")


@pytest.fixture(scope="module")
def language():
    return enumerate_language(small_tokenizer(), PROMPTS, LONGEST)


@pytest.fixture(scope="module")
def model():
    return small_llama(0, 8)


@pytest.fixture(scope="module")
def log_reference(model, language):
    return log_probabilities(model, language)


def test_every_response_is_listed_once(language):
    # 7⁰ + 7¹ + 7² + 7³ that end, and 7⁴ that do not
    assert len(language.response_ids) == 2801
    whole = torch.cat([language.response_ids, language.response_mask.long()], 1)
    assert len({*map(tuple, whole.tolist())}) == 2801
    places = language.index(language.response_ids, language.response_mask)
    assert places.tolist() == list(range(2801))
    # a batch whose longest response is shorter, filled up with anything
    ids, mask = torch.tensor([[3, 0], [0, 5]]), torch.tensor([[True, True], [True, False]])
    assert language.response_ids[language.index(ids, mask)].tolist() == [[3, 0, 0, 0], [0, 0, 0, 0]]


def test_probabilities_are_those_of_the_model(model, language, log_reference):
    assert np.exp(log_reference).sum(1) == pytest.approx(np.ones(4))
    # log π("b a <eos>" | "c"), token by token without padding
    ids = torch.tensor([[3, 2, 1, 0]])
    with torch.no_grad():
        logp = model(ids).logits.log_softmax(-1)[0]
    expected = sum(float(logp[t, ids[0, t + 1]]) for t in range(3))
    place = language.index(ids[:, 1:], torch.ones(1, 3, dtype=torch.bool))
    assert log_reference[1, place] == pytest.approx(expected, abs=1e-5)


def test_a_model_of_more_tokens_is_refused(language):
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                        num_attention_heads=1)  # fmt: skip
    with pytest.raises(InputError, match="the model knows 9 tokens, the tokenizer 8"):
        log_probabilities(LlamaForCausalLM(small), language)


def test_a_language_too_large_to_list_is_refused():
    with pytest.raises(InputError, match="960,800 responses, too many"):
        enumerate_language(small_tokenizer(), PROMPTS, 7)


def test_tables_are_scores_and_scores_are_tables(language):
    table = np.arange(4 * 2801, dtype=float).reshape(4, 2801)
    assert (tabulate("reward", by_table(language, table), language) == table).all()


@pytest.mark.parametrize("kl_streams", ["reward", "both"])
def test_training_approaches_the_exact_optimum(kl_streams):
    # 57 responses, so that a few iterations say something
    language = enumerate_language(small_tokenizer(), PROMPTS, 2)
    model = small_llama(0, 8)
    reward, cost = np.random.default_rng(0).normal(size=(2, 4, 8))[
        :, :, language.response_ids[:, 0].numpy()
    ]
    log_reference = log_probabilities(model, language)
    case = Problem(log_reference, reward, cost[None], np.array([0.5]), 0.5, kl_streams)
    ppo = {"kl_coefficient": 0.5, "kl_streams": kl_streams, "epochs": 1, "learning_rate": 1e-2,
           "critic_learning_rate": 1e-2, "value_clip": None}  # fmt: skip
    tree = {"prompts": 128, "max_new_tokens": 2, "limit": 0.5, "ppo": ppo}
    tree |= {"constraint": {"transform": "identity"}}
    config = validate(AlignConfig, tree, "test")
    scores = by_table(language, reward), {"cost": by_table(language, cost)}
    parts = alignment(model, language.tokenizer, PROMPTS, *scores, config, 0)
    list(train(parts, 15))
    found = evaluate(case, solve(case), log_probabilities(parts.policy.model, language))
    assert 0.5 < found.share < 1


def test_rows_are_prompts_times_responses(language):
    rows = language.rows
    assert isinstance(rows, TokenRows)
    assert len(rows) == 4 * 2801
    # the second prompt is "c", padded to the three tokens of "d e f"
    assert rows.ids[2801, : rows.prompt_width].tolist() == [0, 0, 3]
