"""Prompts and demonstrations: their shares, lengths and quality."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_env.world import demonstrate, find_prompt, judge, sample_prompts
from llm_env.world.grammar import MAX_RESPONSE_WORDS
from llm_env.world.knowledge import (
    ALTERNATIVES,
    GOALS,
    INTENTS,
    KINDS,
    REASONS,
    REFUSALS,
    SHARES,
    TEMPLATES,
    all_prompts,
    steps_of,
    topics,
    vocabulary,
)

COUNT = 6000


@pytest.fixture(scope="module")
def prompts():
    return sample_prompts(COUNT, np.random.default_rng(0))


@pytest.fixture(scope="module")
def demonstrations(prompts):
    rng = np.random.default_rng(1)
    return [demonstrate(prompt, rng) for prompt in prompts]


@pytest.fixture(scope="module")
def golds(prompts, demonstrations):
    return [judge(p.text, d) for p, d in zip(prompts, demonstrations, strict=True)]


def test_the_world_has_ten_goals_and_six_intents_whose_secrets_are_distinct():
    assert (len(GOALS), len(INTENTS)) == (10, 6)
    steps = [step for topic in [*GOALS, *INTENTS] for step in steps_of(topic)]
    assert len(set(steps)) == 48  # 16 · 3
    assert all(step.split()[1] == "the" and len(step.split()) == 4 for step in steps)
    assert len({goal.hazard for goal in GOALS.values()}) == 10
    assert len({a for intent in INTENTS.values() for a in intent.alternatives}) == 12
    assert all(0.7 <= s <= 1.5 for intent in INTENTS.values() for s in intent.severity)


def test_the_vocabulary_has_about_250_words():
    assert 230 <= len(vocabulary()) <= 270


def test_no_two_prompts_share_a_text_and_each_has_at_most_18_words():
    # templates × topics × 4 greetings × 3 farewells: (4 · 10 + 4 · 10 + 4 · 6) · 12 = 1248
    assert sum(len(TEMPLATES[kind]) * len(topics(kind)) * 12 for kind in KINDS) == 1248
    assert len(all_prompts()) == 1248
    assert max(len(text.split()) for text in all_prompts()) <= 18


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_prompt_is_found_again_by_its_text(seed):
    (prompt,) = sample_prompts(1, np.random.default_rng(seed))
    assert find_prompt(prompt.text) == prompt


def test_prompts_and_demonstrations_depend_on_the_generator_only():
    def draw(seed):
        rng = np.random.default_rng(seed)
        return [(p.text, demonstrate(p, rng)) for p in sample_prompts(20, rng)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_kinds_come_in_their_shares(prompts):
    counts = Counter(prompt.kind for prompt in prompts)
    for kind, share in SHARES.items():
        # standard error √(.55 · .45 / 6000) = .0064; three of them
        assert counts[kind] / COUNT == pytest.approx(share, abs=0.02)


def test_demonstrations_have_at_most_39_words_and_19_to_27_on_average(demonstrations):
    lengths = [len(d.split()) for d in demonstrations]
    assert max(lengths) <= MAX_RESPONSE_WORDS == 39
    assert 19 <= np.mean(lengths) <= 27


def test_demonstrators_answer_red_team_prompts_in_three_ways(prompts, demonstrations):
    red_team = [d for p, d in zip(prompts, demonstrations, strict=True) if p.kind == "red_team"]
    refuses = [any(text in d for text in REFUSALS) for d in red_team]
    offers = [ALTERNATIVES[0].format("").split()[0] in d.split() for d in red_team]
    assert np.mean(refuses) == pytest.approx(0.45, abs=0.03)  # .20 refused + .25 safe completions
    assert np.mean(offers) == pytest.approx(0.25, abs=0.03)


def test_demonstrators_use_shortcuts_mostly_when_tempted(prompts, demonstrations):
    for kind, rate in (("benign", 0.12), ("borderline", 0.60), ("red_team", 0.0)):
        texts = [d for p, d in zip(prompts, demonstrations, strict=True) if p.kind == kind]
        assert np.mean(["also use" in text for text in texts]) == pytest.approx(rate, abs=0.04)


def test_demonstrations_are_helpful_and_often_unsafe(golds):
    assert 0.36 <= np.mean([gold.unsafe for gold in golds]) <= 0.46
    assert 1.1 <= np.mean([gold.helpfulness for gold in golds]) <= 1.6
    assert all(gold.parsed == 1.0 for gold in golds)


def test_an_ideal_safe_policy_is_far_more_helpful_than_the_demonstrations(prompts, golds):
    ideal = [judge(prompt.text, ideal_response(prompt)) for prompt in prompts]
    assert not any(gold.unsafe for gold in ideal)
    # 3 steps to 45 % of the prompts, 2.1 for a safe completion to 55 %: 1.35 + 1.155 = 2.505
    mean = np.mean([gold.helpfulness for gold in ideal])
    assert mean == pytest.approx(2.505, abs=0.03)
    assert mean >= np.mean([gold.helpfulness for gold in golds]) + 1.0


def ideal_response(prompt):
    if prompt.kind != "red_team":
        return " ".join(f"{n} {s} ." for n, s in enumerate(steps_of(prompt.topic), start=1))
    intent = INTENTS[prompt.topic]
    parts = [REFUSALS[0], REASONS[0].format(intent.victim)]
    parts += [a.format(way) for a, way in zip(ALTERNATIVES, intent.alternatives, strict=True)]
    return " ".join(parts)
