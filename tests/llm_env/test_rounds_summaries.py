"""The numbers of rounds, by hand."""

import numpy as np
import pytest

from llm_env.rounds.evaluation import Answer, EvaluationPrompt, GoldScores, Judged
from llm_env.rounds.red_team import Risk
from llm_env.rounds.summaries import (
    change,
    chosen,
    labelled_unsafe,
    rate_by_annotators,
    rate_by_scores,
    share,
    summarize,
)

PROMPTS = [EvaluationPrompt(f"p{i}", Risk(0.0, 0.1), adversarial=i == 1) for i in range(2)]


def answer(prompt, unsafe=False, helpfulness=1.0, mode="sampled", cost=-1.0, gold=True):
    scores = GoldScores(helpfulness, 0.0, unsafe, False, False) if gold else None
    return Answer(mode, prompt, f"said {prompt}", True, 0.5, cost, scores)


def test_a_share_counts_responses_and_its_interval_counts_prompts():
    answers = [answer(0, True), answer(0), answer(1), answer(1)]
    found = share(answers, lambda a: a.gold.unsafe)
    assert found.value == 0.25  # 1 of 4 responses
    # Wilson at round(0.5) = 0 of 2 prompts: 0 … z² / (2 + z²), z² = 3.8415
    assert (found.low, found.high) == pytest.approx((0.0, 0.6576), abs=1e-4)


def test_a_summary_without_gold_has_none():
    found = summarize([answer(0, cost=2.0, gold=False), answer(1, gold=False)])
    assert found.gold is None
    assert found.model_unsafe.value == 0.5
    assert (found.prompts, found.responses, found.distinct, found.words) == (2, 2, 1.0, 2.0)


def test_a_change_is_paired_by_prompt():
    before = [
        answer(0, True, 1.0),
        answer(0, False, 2.0),
        answer(1, True, 0.0),
        answer(1, True, 0.0),
    ]
    after = [
        answer(0, False, 2.0),
        answer(0, False, 2.0),
        answer(1, True, 1.0),
        answer(1, False, 1.0),
    ]
    found = change(after, before, seed=0)
    # prompt 0: 0 − 1/2, prompt 1: 1/2 − 1; helpfulness 2 − 1.5 and 1 − 0
    assert (found.unsafe.value, found.unsafe.low, found.unsafe.high) == (-0.5, -0.5, -0.5)
    assert found.helpfulness.value == 0.75
    assert (found.helpfulness.low, found.helpfulness.high) == (0.5, 1.0)
    assert change([answer(0, gold=False)], [answer(0, gold=False)], seed=0) is None


def test_groups_are_chosen_by_mode_and_prompt():
    answers = [answer(0), answer(1), answer(1, mode="greedy")]
    assert chosen(answers, "sampled", PROMPTS) == answers[:2]
    assert chosen(answers, "sampled", PROMPTS, adversarial=True) == [answers[1]]


def judged(prompt, better, safer, unsafe=(False, True)):
    return Judged(prompt, (0, 1), better, safer, unsafe)


def test_annotators_comparisons_become_elo_with_the_start_model_at_1000():
    # model 1 is better 3 times of 4 (odds 3: 400 · log10 3 = 190.8), the safer in 2 of 4
    rows = [judged(0, 1, 0), judged(1, 1, 1), judged(2, 1, 1), judged(3, 0, 0)]
    found = rate_by_annotators("people", ["start", "round 1"], rows, seed=0)
    assert found.helpfulness["start"].value == 1000.0
    assert found.helpfulness["round 1"].value == pytest.approx(1190.85, abs=0.01)
    assert found.harmlessness["round 1"].value == pytest.approx(1000.0)


def test_the_same_response_twice_is_a_tie():
    rows = [judged(0, 1, 0), judged(1, 0, 1), judged(2, None, None, (None, None))]
    found = rate_by_annotators("people", ["start", "round 1"], rows, seed=0)
    assert found.helpfulness["round 1"].value == pytest.approx(1000.0)
    assert found.helpfulness.games == (3.0, 3.0)


def test_scores_rate_by_more_help_and_less_harm():
    helpfulness = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    found = rate_by_scores("gold", ["a", "b"], helpfulness, helpfulness, seed=0)
    assert found.helpfulness["b"].value == pytest.approx(1190.85, abs=0.01)
    assert found.harmlessness["b"].value == pytest.approx(809.15, abs=0.01)


def test_labels_of_one_response_in_several_comparisons_are_averaged():
    rows = [
        Judged(0, (0, 1), 0, 0, (True, False)),
        Judged(0, (0, 2), 0, 0, (False, False)),
        Judged(1, (0, 1), 0, 0, (True, False)),
        Judged(1, (1, 2), None, None, (None, None)),
    ]
    assert labelled_unsafe(rows, 0, PROMPTS, adversarial=False).value == 0.75  # (1/2 + 1) / 2
    assert labelled_unsafe(rows, 0, PROMPTS, adversarial=True).value == 1.0
    assert labelled_unsafe(rows[3:], 1, PROMPTS, adversarial=False) is None
