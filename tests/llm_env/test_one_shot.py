"""The one-shot estimate of λ*: from samples, and as the command `crl llm dual`."""

import json
from dataclasses import replace

import numpy as np
import pytest

from constrained_rl.errors import InputError
from constrained_rl.settings import parse_override
from llm_env.one_shot.estimate import Samples, effective_sizes, estimate, require_trust
from llm_env.one_shot.report import override
from tests.bad_input.project import project


def samples(rewards, costs=None):
    """Scores [X, n]; the cost is the reward where none is given."""
    reward = np.array(rewards, float)
    return Samples(reward, (reward if costs is None else np.array(costs, float))[None])


def half(n=10, prompts=3):
    """R = C = 1 for half of the samples of each prompt, and 0 for the others."""
    return samples([[1] * (n // 2) + [0] * (n // 2)] * prompts)


def test_samples_in_the_references_proportions_give_the_exact_price():
    found = estimate(half().problem(np.array([0.6]), 1.0, "reward"), resamples=3)
    # σ(1 − λ) = .6: λ = 1 − ln 1.5, as in the two-response language
    assert found.multipliers == pytest.approx([0.5945], abs=1e-4)
    # five weights of .6/5 and five of .4/5: 1 / (5 · .0144 + 5 · .0064)
    assert found.effective == pytest.approx([9.615] * 3, abs=1e-3)
    assert (found.per_prompt, found.total) == pytest.approx((9.615, 28.846), abs=1e-3)
    assert (float(found.low[0]), float(found.high[0])) == pytest.approx((0.5945, 0.5945), abs=1e-4)
    assert found.start_cost == pytest.approx([0.5])
    require_trust(found, 10)


def test_the_interval_holds_what_prompts_differ_in():
    rewards = np.random.default_rng(0).normal(size=(12, 50))
    costs = rewards + np.random.default_rng(1).normal(size=(12, 1))
    found = estimate(samples(rewards, costs).problem(np.array([0.3]), 1.0, "reward"), 20)
    assert found.low[0] < found.multipliers[0] < found.high[0]


def test_effective_sizes_of_equal_and_of_lonely_weights():
    weights = np.array([[0.25, 0.25, 0.25, 0.25], [1.0, 1e-12, 1e-12, 1e-12]])
    assert effective_sizes(np.log(weights)) == pytest.approx([4.0, 1.0])


def test_prompts_together_count_less_than_their_sum_where_one_is_poor():
    found = estimate(half(8, 2).problem(np.array([0.9]), 1.0, "reward"), resamples=2)
    # λ = 0: weights σ(1)/4 and σ(−1)/4; the total of equal prompts is their sum
    size = 1 / (4 * (0.7311 / 4) ** 2 + 4 * (0.2689 / 4) ** 2)
    assert found.total == pytest.approx(2 * size, abs=1e-2)


def test_a_few_samples_with_all_weight_are_refused():
    rng = np.random.default_rng(0)
    found = estimate(
        samples(rng.normal(size=(4, 64)), rng.normal(size=(4, 64))).problem(
            np.array([-0.5]), 0.02, "reward"
        ),
        resamples=2,
    )
    assert found.per_prompt < 2
    with pytest.raises(InputError, match=r"effective sample size is 1\.\d of 64 .* at least 7"):
        require_trust(found, 64)


def test_a_limit_below_every_sample_is_refused_with_what_was_seen():
    with pytest.raises(InputError, match=r"least E\[t\(C\)\] is 0 .*mean is 0.5, the limit -0.1"):
        estimate(half().problem(np.array([-0.1]), 1.0, "reward"))


def test_one_prompt_has_no_interval():
    with pytest.raises(InputError, match="found 1 prompt"):
        estimate(half(prompts=1).problem(np.array([0.6]), 1.0, "reward"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    project()(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


ASKED = ("--samples", 24, "--count", 3, "device=cpu", "align.max_new_tokens=4")
MODELS = ("--model", "policy", "--prompts", "prompts.txt", "--reward", "reward", "--cost", "cost")
QUIET = ("reward.sign_check=off", "costs.cost.sign_check=off", "align.ppo.kl_coefficient=1")


def test_the_command_prints_what_a_run_can_start_from(crl, folder):
    code, out, errors = crl("llm", "dual", *MODELS, *ASKED, *QUIET, "align.limit=0.3", "--json")
    assert (code, errors) == (0, "")
    found = json.loads(out)
    assert found["kl_streams"] == "both"  # the default of `crl llm train`
    lam = found["multipliers"]["cost"]
    assert found["override"] == f"align.multiplier.initial={lam:.4g}"
    assert found["cost"]["cost"] <= 0.3 + 1e-9
    assert len(found["effective_sample_size"]["prompts"]) == 3
    low, high = found["interval"]["cost"]
    assert low <= lam
    assert high is None or lam <= high


def test_with_two_costs_the_override_holds_a_price_of_each():
    one = estimate(half().problem(np.array([0.6]), 1.0, "reward"), resamples=3)
    setting = override(replace(one, multipliers=np.array([0.25, 2.0])))
    assert parse_override(setting) == {"align": {"multiplier": {"initial": [0.25, 2.0]}}}


def test_the_command_reads_a_training_config_and_its_transform(crl, folder):
    code, out, errors = crl(
        "llm", "dual", "train.toml", *ASKED, "align.ppo.kl_coefficient=1", "align.limit=0.9"
    )
    assert (code, errors) == (0, "")
    assert "harm\tP(C > 0)\t0.5\t" in out  # the cost's own limit
    assert "effective sample size" in out
    assert "crl llm train … align.multiplier.initial=" in out


def test_the_command_refuses_a_price_that_a_few_samples_carry(crl, folder):
    code, out, errors = crl("llm", "dual", "train.toml", *ASKED, "align.ppo.kl_coefficient=1e-4")
    assert (code, out) == (2, "")
    assert "effective sample size is 1" in errors
    assert "start λ at 0" in errors
