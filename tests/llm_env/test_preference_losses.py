import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_env.preference_losses import (
    cost_model_loss,
    ranking_accuracy,
    reward_model_loss,
    sign_accuracy,
)

VECTORS = json.loads((Path(__file__).parents[1] / "reference_vectors.json").read_text("utf-8"))
SCORES = st.lists(st.floats(-5, 5), min_size=4, max_size=4)


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("case", VECTORS["preference_losses"])
def test_losses_equal_the_reference_vectors(case):
    mu, expected = case["regularization"], case["expected"]
    reward = reward_model_loss(vector(case["chosen_reward"]), vector(case["rejected_reward"]), mu)
    cost = cost_model_loss(
        vector(case["more_harmful_cost"]),
        vector(case["less_harmful_cost"]),
        vector(case["more_harmful_sign"]),
        vector(case["less_harmful_sign"]),
        mu,
    )
    for value, key in ((reward, "reward_model_loss"), (cost, "cost_model_loss")):
        assert abs(value.item() - expected[key]) <= 1e-6 * max(1, abs(expected[key]))


def test_equal_scores_cost_ln_2_per_comparison_and_the_regularizer_is_the_mean_square():
    # −log σ(0) = ln 2; mean of 1² and 1² is 1, times μ = 0.5
    loss = reward_model_loss(vector([1.0]), vector([1.0]), 0.5)
    assert loss.item() == pytest.approx(math.log(2) + 0.5)
    zero, plus, minus = vector([0.0]), vector([1.0]), vector([-1.0])
    assert cost_model_loss(zero, zero, plus, minus).item() == pytest.approx(3 * math.log(2))


@settings(deadline=None)
@given(SCORES, SCORES)
def test_sign_terms_are_comparisons_with_a_virtual_response_of_cost_zero(more, less):
    # y_0 lies on the boundary, C(y_0) = 0: an unsafe response beats it, a safe one loses to it
    more, less, boundary = vector(more), vector(less), torch.zeros(4, dtype=torch.float64)
    unsafe = torch.ones(4, dtype=torch.float64)
    sign_only = cost_model_loss(more, less, unsafe, -unsafe, ranking=False)
    bradley_terry = reward_model_loss(more, boundary) + reward_model_loss(boundary, less)
    torch.testing.assert_close(sign_only, bradley_terry)


@settings(deadline=None)
@given(SCORES, SCORES, st.floats(0, 1))
def test_the_three_terms_add_up(more, less, mu):
    more, less = vector(more), vector(less)
    signs = vector([1.0, 1.0, -1.0, 1.0]), vector([-1.0, 1.0, -1.0, -1.0])
    both = cost_model_loss(more, less, *signs, mu)
    ranking = cost_model_loss(more, less, *signs, mu, sign=False)
    sign = cost_model_loss(more, less, *signs, 0.0, ranking=False)
    torch.testing.assert_close(both, ranking + sign)
    torch.testing.assert_close(ranking, reward_model_loss(more, less, mu))


@settings(deadline=None)
@given(SCORES, SCORES, st.permutations(range(4)))
def test_the_order_of_pairs_does_not_matter(more, less, order):
    more, less = vector(more), vector(less)
    torch.testing.assert_close(
        reward_model_loss(more, less, 0.1), reward_model_loss(more[order], less[order], 0.1)
    )


def test_accuracies_count_pairs_and_sides_and_a_tie_is_wrong():
    # 2 > 1 right, 0 > 3 wrong, 1 > 1 tie, 5 > −1 right: 2 of 4
    assert ranking_accuracy(vector([2, 0, 1, 5]), vector([1, 3, 1, -1])) == 0.5
    # s · c: 2, −1, 0, 4 → 2 of 4 above zero
    assert sign_accuracy(vector([2, 1, 0, -4]), vector([1, -1, 1, -1])) == 0.5
