"""limit={"energy": 29, "cold": 9}: by name in Python, in TOML, on the command line, for scores."""

import tomllib

import pytest

from constrained_rl.agent import Agent, ppo_lagrangian
from constrained_rl.assembly import one_of_each
from constrained_rl.config import RunConfig
from constrained_rl.errors import InputError
from constrained_rl.logging import read_metrics
from constrained_rl.settings import merge, read_layers, read_run_config, to_toml, validate
from llm_env.training.config import TrainConfig
from tests.constrained_rl.helpers import PENDULUM, tiny
from tests.constrained_rl.test_cli import TINY, crl

__all__ = ["crl"]  # the fixture
BY_NAME = {"effort": 2.5, "speed": 20.0}  # not in the order of the channels


def limits(agent):
    return {c.name: (c.channel, c.limit) for c in agent.parts.constraints.constraints}


def test_each_cost_gets_the_limit_of_its_name():
    assert one_of_each("limit", BY_NAME, ("speed", "effort")) == (20.0, 2.5)
    agent = tiny(env=PENDULUM, limit=BY_NAME)
    assert limits(agent) == {"speed": (0, 20.0), "effort": (1, 2.5)}
    metrics = agent.train(128)
    assert (metrics["limit/speed"], metrics["limit/effort"]) == (20.0, 2.5)


def test_a_saved_agent_keeps_the_names(tmp_path):
    agent = tiny(env=PENDULUM, limit=BY_NAME)
    agent.save(tmp_path / "agent")
    assert limits(Agent.load(tmp_path / "agent")) == limits(agent)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"speed": 1.0}, r"names speed, but the costs are speed, effort.*limit\.effort=…"),
        ({"speeed": 1.0, "effort": 1.0}, r"names 'speeed'.*did you mean limit\.speed\?"),
        ({"a": 1.0}, r"names 'a', but the costs are speed, effort; give one for each"),
        ({}, r"names none, but the costs are speed, effort"),
    ],
)
def test_names_that_do_not_match_the_costs_are_refused(given, said):
    with pytest.raises(InputError, match=said):
        ppo_lagrangian(PENDULUM, limit=given)


def test_a_file_names_them_and_an_override_changes_one(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[limit]\nspeed = 20\neffort = 2.5\n")
    tree, _ = read_layers(file, ["limit.effort=3"])
    config = validate(RunConfig, tree, "test")
    assert config.limit == {"speed": 20.0, "effort": 3.0}
    assert validate(RunConfig, tomllib.loads(to_toml(config)), "again") == config


def test_a_run_of_the_command_line(crl, tmp_path):
    named = (f"env.id={PENDULUM}", "limit.effort=2.5", "limit.speed=20")
    code, _, err = crl("train", *TINY, *named, "ppo.horizon=32", "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    row = read_metrics(tmp_path / "run/metrics.jsonl")[-1]
    assert (row["limit/speed"], row["limit/effort"]) == (20.0, 2.5)
    assert read_run_config(tmp_path / "run").limit == BY_NAME
    code, out, _ = crl("preset", "ppo_lagrangian", *named)
    assert code == 0
    assert tomllib.loads(out)["limit"] == BY_NAME


# costs of language models


def language(**over):
    score = {"path": "nowhere", "direction": "higher_is_worse"}
    tree = {
        "policy": {"path": "nowhere"},
        "reward": {"path": "nowhere", "direction": "higher_is_better"},
        "costs": {"harm": score, "rudeness": score},
        "prompts": [{"path": "nowhere"}],
    }
    return validate(TrainConfig, merge(tree, over), "test")


def test_scores_are_bounded_by_name():
    given = {"align": {"limit": {"rudeness": 0.3, "harm": 0.1}}}
    assert language(**given).limits == (0.1, 0.3)
    # a cost with a limit of its own needs no other, and keeps it
    own = {"costs": {"harm": {"limit": 0.2}}}
    assert language(**own, align={"limit": {"rudeness": 0.3}}).limits == (0.2, 0.3)
    assert language(**own, align={"limit": 0.05}).limits == (0.2, 0.05)


def test_a_score_that_there_is_not_has_no_limit():
    with pytest.raises(InputError, match=r"align\.limit names 'harms'.*did you mean align\.limit"):
        language(align={"limit": {"harms": 0.1, "rudeness": 0.3}})
    with pytest.raises(InputError, match=r"the costs are harm, rudeness.*align\.limit\.rudeness=…"):
        language(align={"limit": {"harm": 0.1}})
