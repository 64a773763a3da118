"""Environments that are made again: from a vector environment, a single object, or an id."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import TransformReward

import constrained_rl as crl
from constrained_rl.cmdp import make_vec
from constrained_rl.config import EnvConfig
from constrained_rl.costs import Cost, FromSixTuple
from constrained_rl.environments import GIVEN
from constrained_rl.envs.problems import cmdp_of
from constrained_rl.errors import InputError
from constrained_rl.registered import recipe_of
from tests.constrained_rl.helpers import tiny
from tests.constrained_rl.odd_envs import Normed, Walk, odd

NEXT = {"autoreset_mode": AutoresetMode.NEXT_STEP}
gymnasium.register("tests/Long-v0", Walk)
gymnasium.register("tests/Limited-v0", Walk, max_episode_steps=4, kwargs={"length": 9})
LONG, LIMITED, RANDOM = "tests/Long-v0", "tests/Limited-v0", "constrained_rl/Random-v0"


def vec(env_id=LONG, mode="sync", **kwargs):
    options = {} if mode == "vector_entry_point" else NEXT
    return gymnasium.make_vec(env_id, 2, vectorization_mode=mode, vector_kwargs=options, **kwargs)


def agent_on(env, **settings):
    return tiny("ppo_lagrangian", env, 1.0, **settings)


def length_of(agent, env=None):
    return float(agent.evaluate(4, env=env).length.mean())


@pytest.mark.parametrize(
    ("make", "length"),
    [
        (lambda: vec(length=12), 12),
        (lambda: vec(mode="async", length=7), 7),
        (lambda: make_vec(LONG, 2, 0, length=6), 6),
        (lambda: make_vec(LONG, 2, 0, "async", length=6), 6),
        (lambda: vec(LIMITED), 4),
        (lambda: vec(LIMITED, length=3), 3),
        (lambda: vec(LIMITED, max_episode_steps=7), 7),
        (lambda: gymnasium.make(LONG, length=8), 8),
        (lambda: gymnasium.make(LIMITED, max_episode_steps=6), 6),
        (lambda: gymnasium.make(LIMITED), 4),
    ],
)
def test_a_loaded_agent_plays_the_same_environment(make, length, tmp_path):
    agent = agent_on(make())
    assert agent.train(2 * 8 * length)["episode/length"] == length
    assert length_of(agent) == length
    agent.save(tmp_path / "agent")
    loaded = crl.load(tmp_path / "agent")
    assert length_of(loaded) == length
    rows = list(loaded.iterate(2 * 8 * 2 * length))
    assert {row["episode/length"] for row in rows if row["episodes"]} == {length}
    for one in (agent, loaded):
        one.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: vec(wrappers=[lambda env: TimeLimit(env, 3)]),
        lambda: make_vec(LONG, 2, 0, wrappers=[lambda env: TimeLimit(env, 3)]),
        lambda: TransformReward(vec(), lambda reward: 2 * reward),
        lambda: vec(length=np.int64(3)),
        lambda: SyncVectorEnv([lambda: gymnasium.make(LONG, length=3)] * 2),
    ],
)
def test_what_no_file_holds_is_asked_for(make, tmp_path):
    agent = agent_on(make())
    with pytest.raises(InputError, match="env="):
        agent.evaluate(4)
    agent.save(tmp_path / "agent")
    with pytest.raises(InputError, match="env="):
        crl.load(tmp_path / "agent")
    loaded = crl.load(tmp_path / "agent", env=lambda: Walk(3))
    assert length_of(loaded, env=lambda: Walk(2)) == 2


def test_the_default_limit_is_that_of_the_problem_that_is_played():
    right = tuple(cmdp_of(RANDOM, seed=5).limit.tolist())
    for env in (make_vec(RANDOM, 2, 0), gymnasium.make_vec(RANDOM, 2)):
        assert tiny("scale_free", env).config.limit == tuple(cmdp_of(RANDOM).limit.tolist())
    for env in (gymnasium.make_vec(RANDOM, 2, seed=5), gymnasium.make(RANDOM, seed=5)):
        agent = tiny("scale_free", env)
        assert agent.config.limit == right
        assert agent.config.env.kwargs == {"seed": 5}


def test_another_id_has_its_own_defaults(tmp_path):
    agent = agent_on(LONG, sub={"kwargs": {"length": 8}})
    assert length_of(agent) == length_of(agent, env=LONG) == 8
    assert length_of(agent, env=LIMITED) == 4
    agent.save(tmp_path / "agent")
    assert length_of(crl.load(tmp_path / "agent", env=LONG)) == 8
    assert length_of(crl.load(tmp_path / "agent", env=LIMITED)) == 4
    assert length_of(crl.load(tmp_path / "agent", env=Walk)) == 5
    assert crl.load(tmp_path / "agent", env=Walk).config.env.kwargs == {}


def test_arguments_beside_an_object_would_be_forgotten_and_are_refused():
    for env in (Walk, vec(), gymnasium.make(LONG)):
        with pytest.raises(InputError, match=r"env.kwargs is .*lambda: Mine"):
            agent_on(env, sub={"kwargs": {"length": 8}})


def test_arguments_that_no_file_holds_are_not_lost_with_the_policy(tmp_path):
    agent = agent_on(LONG, sub={"kwargs": {"length": np.int64(3)}})
    agent.save(tmp_path / "agent")
    with pytest.raises(InputError, match="env="):
        crl.load(tmp_path / "agent")
    loaded = crl.load(tmp_path / "agent", env=lambda: Walk(3))
    assert all(map(torch.equal, loaded.policy.parameters(), agent.policy.parameters()))


def test_a_recipe_holds_what_was_given_and_not_what_was_registered():
    recipe = recipe_of(vec(LIMITED, length=3))
    assert (recipe.id, recipe.kwargs, recipe.vectorization) == (LIMITED, {"length": 3}, "sync")
    assert recipe_of(gymnasium.make(LIMITED)).kwargs == {}
    native = gymnasium.make_vec("CartPole-v1", 2)  # the vector form is told of 500 steps
    assert recipe_of(native).kwargs == {}
    assert recipe_of(native).vectorization == "auto"
    assert recipe_of(Walk()) is None


# A single object


def test_an_object_with_a_spec_is_made_again_with_its_wrappers():
    env = TimeLimit(Cost(gymnasium.make(LONG, length=9), ("a",), lambda *_: 2.0), 3)
    metrics = agent_on(env).train(64)
    assert (metrics["episode/length"], metrics["cost/a"]) == (3, 6.0)
    assert agent_on(env, sub={"vectorization": "async"}).train(64)["cost/a"] == 6.0


def test_an_object_of_a_built_in_problem_has_its_settings_and_no_window():
    agent = crl.scale_free(gymnasium.make("constrained_rl/Detour-v0"), env={"num_envs": 2})
    assert (agent.config.limit, agent.config.env.id) == ((4.0,), "constrained_rl/Detour-v0")
    shown = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    assert recipe_of(shown).kwargs == {"render_mode": "rgb_array"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Walk, r"no spec.*its class Walk, a function such as lambda: Walk"),
        (lambda: Cost(Walk(), ("risk",)), "no spec.*its class Walk"),
        (lambda: FromSixTuple(Walk()), "no spec"),
        (lambda: Normed(gymnasium.make(LONG)), "Normed does not record its arguments"),
        (lambda: 3, "is 3, of type int; expected an id"),
        (lambda: {"id": LONG}, "of type dict; expected an id"),
    ],
)
def test_an_object_without_one_is_refused_with_what_to_pass(make, message):
    with pytest.raises(InputError, match=message):
        agent_on(make())


def test_an_object_is_taken_for_evaluation_and_loading(tmp_path):
    agent = agent_on(Walk)
    assert length_of(agent, env=gymnasium.make(LONG, length=3)) == 3
    agent.save(tmp_path / "agent")
    assert agent.config.env.id == GIVEN
    assert length_of(crl.load(tmp_path / "agent", env=gymnasium.make(LONG, length=3))) == 3


def test_a_config_without_an_id_keeps_its_arguments():
    assert length_of(agent_on(odd("Walk"), sub={"kwargs": {"length": 2}})) == 2
    assert "id" not in EnvConfig(kwargs={"length": 2}).model_fields_set
