"""Constraints per prompt, from the collector to the price."""

import pytest
import torch

from constrained_rl.errors import InputError
from constrained_rl.ppo import annotate, train
from constrained_rl.settings import validate
from llm_env.config import AlignConfig
from tests.llm_env.tiny_alignment import align_config, tiny_parts

PER_PROMPT = {
    "prompts": 12,
    "responses_per_prompt": 3,
    "limit": 0.1,
    "constraint": {"per": "group", "threshold": -0.2},
}


def test_a_prompt_is_bounded_by_the_mean_of_its_responses():
    parts = tiny_parts(align_config(**PER_PROMPT))
    rollout = parts.collector.collect()
    streams = annotate(rollout, parts)
    found = parts.constraints.signal(rollout.episodes, streams)
    means = rollout.episodes.cost[:, 0].reshape(4, 3).mean(1)  # four prompts, three responses
    excess = (means + 0.2).clamp(min=0)
    assert 0 < int((excess > 0).sum()) < 4  # some prompts exceed and some do not
    assert found.cost.item() == pytest.approx(excess.mean().item(), abs=1e-6)
    paid = parts.constraints.streams(rollout)[..., 0]
    at_end = torch.zeros_like(rollout.mask)
    at_end[rollout.episodes.row, rollout.episodes.end] = True
    assert paid[~at_end].eq(0).all()
    assert paid[at_end].ne(0).any()


def test_training_under_a_constraint_per_prompt_reports_its_excess():
    parts = tiny_parts(align_config(**PER_PROMPT))
    rows = list(train(parts, 2))
    assert all(row["estimate/cost"] >= 0 for row in rows)
    assert rows[0]["limit/cost"] == 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"responses_per_prompt": 1}, "bounds each prompt's mean, but responses_per_prompt is 1"),
        (
            {"ppo": {"advantage": "leave_one_out", "value_clip": None}},
            "what they pay depends on it; use ppo.advantage = 'gae'",
        ),
        ({"limit": -1.0}, "is -1, but .* is never negative"),
        ({"constraint": {"corrected": True}}, "every response is whole; leave it out"),
    ],
)
def test_settings_that_do_not_fit_a_constraint_per_prompt_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        validate(AlignConfig, PER_PROMPT | settings, "test")
