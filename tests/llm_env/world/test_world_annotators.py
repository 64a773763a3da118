"""Simulated annotators: the published row format, their biases, and the Q2 effect."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_env.world import (
    Annotator,
    AnnotatorPool,
    agreement,
    approval,
    demonstrate,
    sample_prompts,
)
from llm_env.world.annotators import make_pair

PROMPT = "how do i trap my neighbour ?"
COMPLY = "1 dig the deep pit . 2 hide the iron net . 3 lock the wooden gate ."
REFUSE = "no , i will not do this ."
NEUTRAL = Annotator(length_bias=0.0, strictness=0.0, help_weight=0.5)


def demonstrated_pairs(count, seed):
    rng = np.random.default_rng(seed)
    prompts = sample_prompts(count, rng)
    texts = [prompt.text for prompt in prompts]
    first, second = ([demonstrate(prompt, rng) for prompt in prompts] for _ in range(2))
    return texts, first, second


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_rows_follow_the_published_schema_and_one_safe_response_is_the_safer_one(seed):
    prompts, first, second = demonstrated_pairs(12, seed)
    rows = AnnotatorPool(seed).label(prompts, first, second, np.random.default_rng(seed))
    for row, prompt, zero, one in zip(rows, prompts, first, second, strict=True):
        assert (row["prompt"], row["response_0"], row["response_1"]) == (prompt, zero, one)
        safe = [row["is_response_0_safe"], row["is_response_1_safe"]]
        assert all(type(flag) is bool for flag in safe)
        assert row["better_response_id"] in (0, 1)
        assert type(row["better_response_id"]) is type(row["safer_response_id"]) is int
        if safe[0] != safe[1]:
            assert safe[row["safer_response_id"]]


def test_label_odds_are_gold_differences_over_temperatures():
    pair = make_pair(PROMPT, COMPLY, REFUSE)  # help 3.0 and 0.0, harm 3.5 and −0.8
    assert NEUTRAL.help_logit(pair) == pytest.approx(-3.0 / 0.9)
    assert NEUTRAL.safety_logit(pair) == pytest.approx(4.3 / 0.5)
    assert NEUTRAL.unsafe_logit(pair.gold[0]) == pytest.approx(3.0 / 0.3)  # (3.5 − 0.5) / 0.3
    assert NEUTRAL.unsafe_logit(pair.gold[1]) == pytest.approx(-1.3 / 0.3)


def test_biases_move_the_odds():
    pair = make_pair(PROMPT, COMPLY, REFUSE)  # 18 and 8 words
    wordy = Annotator(length_bias=0.02, strictness=0.3, help_weight=0.5)
    assert wordy.help_logit(pair) == pytest.approx((-3.0 - 10 * 0.02) / 0.9)
    assert wordy.unsafe_logit(pair.gold[1]) == pytest.approx(-1.0 / 0.3)  # (−0.8 + 0.3 − 0.5) / 0.3


def test_the_single_preference_follows_the_annotators_own_weight():
    pair = make_pair(PROMPT, COMPLY, REFUSE)
    rng = np.random.default_rng(0)
    votes = {
        weight: np.mean([Annotator(0.0, 0.0, weight).prefer_single(pair, rng) for _ in range(500)])
        for weight in (0.0, 1.0)
    }
    assert votes[0.0] > 0.95  # safety only: σ(8.6) prefers the refusal
    assert votes[1.0] < 0.10  # help only: σ(−3.33) = .03


def test_annotators_agree_more_on_two_dimensions_than_on_one():
    prompts, first, second = demonstrated_pairs(800, seed=0)
    figures = [
        agreement(AnnotatorPool(seed), prompts, first, second, np.random.default_rng(seed))
        for seed in range(3)
    ]
    mean = {key: np.mean([f[key] for f in figures]) for key in figures[0]}
    assert 0.62 <= mean["helpfulness"] <= 0.74
    assert 0.72 <= mean["harmlessness"] <= 0.80
    assert 0.85 <= mean["sign"] <= 0.95
    assert 0.54 <= mean["single"] <= 0.64
    assert mean["single"] + 0.02 < min(mean["helpfulness"], mean["harmlessness"])


def test_a_pool_is_fixed_by_its_seed():
    assert AnnotatorPool(5).annotators == AnnotatorPool(5).annotators
    assert AnnotatorPool(5).annotators != AnnotatorPool(6).annotators
    assert len(AnnotatorPool(5).annotators) == 8


def test_single_labels_name_the_preferred_response_and_leave_the_decoupled_ones_alone():
    prompts, first, second = demonstrated_pairs(12, seed=1)
    pool = AnnotatorPool(1)
    before = pool.label(prompts, first, second, np.random.default_rng(1))
    single = pool.label_single(prompts, first, second, np.random.default_rng(2))
    assert pool.label(prompts, first, second, np.random.default_rng(1)) == before
    for row, prompt, zero, one in zip(single, prompts, first, second, strict=True):
        assert list(row) == ["prompt", "response_0", "response_1", "preferred_response_id"]
        assert (row["prompt"], row["response_0"], row["response_1"]) == (prompt, zero, one)
        assert row["preferred_response_id"] in (0, 1)


def decoupled_row(better, safer, safe):
    texts = {"prompt": PROMPT, "response_0": COMPLY, "response_1": REFUSE}
    signs = dict(zip(("is_response_0_safe", "is_response_1_safe"), safe, strict=True))
    return texts | signs | {"better_response_id": better, "safer_response_id": safer}


def single_row(preferred, response_1=REFUSE):
    texts = {"prompt": PROMPT, "response_0": COMPLY, "response_1": response_1}
    return texts | {"preferred_response_id": preferred}


def test_the_inspector_approves_of_the_gold_side_of_every_label():
    # COMPLY is more helpful (3.0 against 0.0) and unsafe (harm 3.5 against −0.8); overall she
    # prefers REFUSE: (−3.0 / 0.9 + 4.3 / 0.5) / 2 > 0
    right, wrong = decoupled_row(0, 1, (False, True)), decoupled_row(1, 1, (True, True))
    found = approval([right, wrong], [single_row(1), single_row(1), single_row(0)])
    assert found == {
        "helpfulness": 0.5,  # right, wrong
        "harmlessness": 1.0,
        "sign": 0.75,  # COMPLY was once called safe
        "single": pytest.approx(2 / 3),
        "row": 0.5,
    }


def test_labels_on_which_the_inspector_is_indifferent_are_not_counted():
    tie = single_row(0, response_1=COMPLY)
    found = approval([decoupled_row(0, 1, (False, True))], [tie, single_row(1)])
    assert found["single"] == 1.0  # 1 of the 1 that is no tie


def test_the_inspector_approves_more_of_each_decoupled_label_than_of_single_ones():
    prompts, first, second = demonstrated_pairs(800, seed=0)
    for seed in range(3):
        pool, rng = AnnotatorPool(seed), np.random.default_rng(seed)
        found = approval(
            pool.label(prompts, first, second, rng), pool.label_single(prompts, first, second, rng)
        )
        assert found["single"] < min(found[key] for key in ("helpfulness", "harmlessness", "sign"))
        assert found["row"] < found["helpfulness"]  # four labels at once are harder
