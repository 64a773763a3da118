"""A run in which no episode ends says so."""

import warnings

import gymnasium
import pytest

from constrained_rl import run
from constrained_rl.errors import InputError
from constrained_rl.unfinished import NoEpisodeNotice
from tests.constrained_rl.helpers import DETOUR, Scripted, tiny
from tests.constrained_rl.test_under_way import config_of


def walk(steps):
    """Episodes of so many steps, of cost 1 each."""
    return lambda: Scripted([(1, 1)] * steps)


def limited(steps, ends=10**6):
    """An environment whose time limit is known, and which ends earlier if `ends` says so."""
    return lambda: gymnasium.wrappers.TimeLimit(walk(ends)(), steps)


gymnasium.register("tests/LongWalk-v0", walk(40))
gymnasium.register("tests/LimitedWalk-v0", walk(10**6), max_episode_steps=120)
gymnasium.register("tests/Early-v0", walk(96), max_episode_steps=120)


def said(act):
    """What is said of episodes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(w.message) for w in caught if w.category is NoEpisodeNotice]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("env", "steps", "expected"),
    [
        (walk(17), 16, ["in the 8 steps", "in the 16 steps"]),  # after a quarter, and at the end
        (walk(17), 24, ["in the 8 steps"]),  # then one ended
        (walk(8), 16, []),
        (limited(17), 24, []),  # the limit promises an end in the third window
        (limited(30), 24, ["in the 8 steps", "in the 24 steps"]),
        (limited(30, ends=20), 24, ["in the 8 steps"]),
    ],
)
def test_it_is_said_after_a_quarter_and_at_the_end(vectorization, env, steps, expected):
    agent = tiny("ppo_lagrangian", env, 1.0, sub={"num_envs": 2, "vectorization": vectorization})
    found = said(lambda: agent.train(2 * steps))
    agent.close()
    assert len(found) == len(expected)
    for text, part in zip(found, expected, strict=True):
        assert part in text
        assert "λ holds still" in text


def test_what_ended_before_a_save_counts(tmp_path):
    agent = tiny("ppo_lagrangian", walk(30), 1.0, sub={"num_envs": 2})
    assert said(lambda: agent.train(2 * 8)) != []
    assert said(lambda: agent.train(2 * 24)) == []  # the first ends at step 30
    agent.save(tmp_path / "agent")
    again = type(agent).load(tmp_path / "agent", walk(30))
    assert said(lambda: again.train(2 * 8)) == []


def test_an_unconstrained_run_is_told_too():
    agent = tiny("ppo", DETOUR, sub={"num_envs": 1})
    found = said(lambda: agent.train(8)) if agent.parts.episodes == 0 else []
    assert len(found) == (agent.parts.episodes == 0)


def test_a_run_of_a_folder_is_told(tmp_path):
    config = config_of("tests/LongWalk-v0", iterations=4, total_steps=4 * 8 * 16)
    found = said(lambda: run.start(config, tmp_path / "run"))
    assert ["8 steps" in found[0], "32 steps" in found[1]] == [True, True]
    assert "the environment has no time limit" in found[0]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_run_that_ends_before_the_time_limit_is_stopped_early(tmp_path, vectorization):
    env = {"id": "tests/LimitedWalk-v0", "num_envs": 2, "vectorization": vectorization}
    config = config_of(env=env, total_steps=14 * 8 * 2)  # 112 steps each, 120 are needed
    expected = r"112 steps.*after 120.*first 104 steps.*total_steps=240.*env.num_envs=2"
    with pytest.raises(InputError, match=expected):
        run.start(config, tmp_path / "run")
    with pytest.raises(InputError, match="no episode is going to end"):
        run.resume(tmp_path / "run")
    longer = config.model_copy(update={"total_steps": 240})
    assert said(lambda: run.start(longer, tmp_path / "longer")) == []


def test_a_run_whose_environment_ends_its_episodes_itself_goes_on(tmp_path):
    env = {"id": "tests/Early-v0", "num_envs": 2}
    config = config_of(env=env, total_steps=14 * 8 * 2)  # the first episode ends at step 96
    assert said(lambda: run.start(config, tmp_path / "run")) == []


def test_a_short_trial_is_not_stopped(tmp_path):
    config = config_of("tests/LimitedWalk-v0", iterations=4)
    (text,) = said(lambda: run.start(config, tmp_path / "run"))
    assert "in the 32 steps" in text
    assert "the time limit is 120" in text
