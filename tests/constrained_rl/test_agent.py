import gymnasium
import numpy as np
import pytest
import torch

import constrained_rl as crl
from constrained_rl.errors import InputError
from tests.constrained_rl.helpers import (
    CARTPOLE,
    DETOUR,
    PENDULUM,
    Scripted,
    cartpole,
    pendulum,
    tiny,
    vector,
    weights,
)


@pytest.mark.parametrize(
    "env", [DETOUR, CARTPOLE, PENDULUM, cartpole, pendulum, vector(Scripted([(1, 0)]))]
)
def test_an_environment_is_an_id_a_factory_or_a_vector_environment(env):
    metrics = tiny("ppo_lagrangian", env, 1.0).train(32)
    assert metrics["iteration"] >= 1


def test_a_list_of_factories_is_one_sub_environment_each():
    agent = tiny("ppo_lagrangian", [cartpole, cartpole, cartpole], 1.0)
    assert agent.envs.num_envs == agent.config.env.num_envs == 3
    assert agent.train(32)["iteration"] == 2  # 3 · 8 decisions each
    with pytest.raises(InputError, match="expected functions without arguments"):
        tiny("ppo_lagrangian", [], 1.0)


@pytest.mark.parametrize("env", [CARTPOLE, pendulum])
def test_processes_train_to_the_same_weights(env):
    agents = [tiny("ppo_lagrangian", env, 1.0, sub={"vectorization": v}) for v in ("sync", "async")]
    assert [agent.train(64)["iteration"] for agent in agents] == [2, 2]
    assert torch.equal(*map(weights, agents))
    names = [agent.parts.collector.cost_names for agent in agents]
    assert names[0] == names[1]
    for agent in agents:
        agent.close()
    assert not any(process.is_alive() for process in agents[1].envs.processes)


@pytest.mark.parametrize("deviation", ["constant", "state"])
@pytest.mark.parametrize("bounds", ["clip", "squash"])
def test_all_gaussian_policies_train_on(deviation, bounds):
    agent = tiny(
        env="constrained_rl/SpeedLimit-v0",
        network={"hidden": (8,), "deviation": deviation, "bounds": bounds},
    )
    before = weights(agent)
    metrics = agent.train(64)
    assert all(np.isfinite(value) for value in metrics.values())
    assert not torch.equal(before, weights(agent))
    obs = agent.envs.observation_space.sample()
    assert (np.abs(agent.predict(obs, deterministic=False)) <= 1).all()


def test_spaces_that_are_not_supported_are_refused_before_anything_is_played():
    def pictures():
        env = Scripted([(1, 0)])
        env.observation_space = gymnasium.spaces.Dict({"a": env.observation_space})
        return env

    with pytest.raises(InputError, match=r"observations are Dict.*FlattenObservation"):
        tiny(env=pictures, limit=1.0)


def test_a_limit_for_all_or_one_per_cost():
    for limit in (2.0, (2.0, 2.0)):
        constraints = tiny(env=PENDULUM, limit=limit).parts.constraints.constraints
        assert [(c.name, c.limit, c.channel) for c in constraints] == [
            ("speed", 2.0, 0),
            ("effort", 2.0, 1),
        ]
    with pytest.raises(InputError, match=r"3 entries.*2 cost"):
        tiny(env=PENDULUM, limit=(1.0, 2.0, 3.0))


def test_a_built_in_environment_has_a_default_limit():
    assert tiny().parts.constraints.constraints[0].limit == 4.0


@pytest.mark.parametrize("env", [CARTPOLE, cartpole, vector(Scripted([(1, 0)]))])
def test_any_other_environment_needs_a_limit(env):
    with pytest.raises(InputError, match="no limit given"):
        tiny(env=env)


def test_an_environment_without_costs_is_refused_unless_unconstrained():
    with pytest.raises(InputError, match=r"no info\[\"cost\"\]"):
        tiny(env="CartPole-v1", limit=1.0)
    assert tiny("ppo", "CartPole-v1").train(32)["iteration"] == 1


def test_weights_of_static_shaping_are_one_or_one_per_constraint():
    agent = crl.static_shaping(pendulum, weight=(1.0, 0.5), env={"num_envs": 2}, device="cpu")
    assert agent.parts.multiplier.lam.tolist() == [1.0, 0.5]
    with pytest.raises(InputError, match=r"3 entries for 2 constraint"):
        crl.static_shaping(pendulum, weight=(1.0, 0.5, 2.0), env={"num_envs": 2}, device="cpu")


def test_unknown_settings_are_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'epochs'"):
        crl.ppo(DETOUR, ppo={"epoch": 3})


@pytest.mark.parametrize(
    ("env", "shape"), [("constrained_rl/PointHazard-v0", (2,)), (PENDULUM, (1,)), (DETOUR, ())]
)
def test_predict_takes_one_observation_or_a_batch(env, shape):
    agent = tiny(env=env, limit=1.0)
    obs = agent.envs.observation_space.sample()
    actions = agent.predict(obs)
    assert actions.shape == (4, *shape)
    for i in range(4):
        single = agent.predict(obs[i])
        assert agent.envs.single_action_space.contains(np.asarray(single)[()])
        assert np.allclose(single, actions[i], atol=1e-6)


def test_predictions_are_deterministic_unless_asked_otherwise():
    agent = tiny(env="constrained_rl/PointHazard-v0")
    obs = agent.envs.single_observation_space.sample()
    assert np.array_equal(agent.predict(obs), agent.predict(obs))
    drawn = [agent.predict(obs, deterministic=False) for _ in range(2)]
    assert not np.array_equal(*drawn)


@pytest.mark.parametrize("env", [DETOUR, "constrained_rl/PointHazard-v0"])
def test_a_loaded_agent_continues_as_if_never_saved(tmp_path, env):
    original = tiny(env=env)
    original.train(64)
    original.save(tmp_path / "agent")
    copy = crl.load(tmp_path / "agent")
    assert torch.equal(weights(original), weights(copy))
    for agent in (original, copy):
        agent.train(64)
    assert torch.equal(weights(original), weights(copy))


def test_an_agent_of_a_factory_is_loaded_with_that_factory(tmp_path):
    original = tiny("ppo_lagrangian", cartpole, 1.0)
    original.save(tmp_path / "agent")
    with pytest.raises(InputError, match="given as an object"):
        crl.load(tmp_path / "agent")
    copy = crl.load(tmp_path / "agent", cartpole)
    assert torch.equal(weights(original), weights(copy))


def test_saving_replaces_an_agent_but_never_anything_else(tmp_path):
    agent = tiny()
    for _ in range(2):
        agent.save(tmp_path / "agent")
    (tmp_path / "agent" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        agent.save(tmp_path / "agent")


@pytest.mark.parametrize(
    "call",
    [
        lambda agent: agent.learn(total_timesteps=64),
        lambda agent: agent.learn(64, callback=print),
        lambda agent: agent.train(64, callback=print),
        lambda agent: agent.train(total_timesteps=64),
    ],
)
def test_names_of_other_libraries_show_the_way_here(call):
    agent = tiny()
    with pytest.raises(InputError, match=r"agent\.train\(steps\).*for metrics in agent\.iterate"):
        call(agent)
    assert agent.parts.iteration == 0


def test_training_in_two_parts_counts_on():
    agent = tiny()
    agent.train(64)
    assert agent.train(32)["iteration"] == 3
    assert agent.parts.decisions <= 96


def test_cuda_without_a_gpu_is_refused_with_advice(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"device=cpu"):
        tiny(device="cuda")


def test_building_an_agent_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tiny()
    assert torch.equal(torch.rand(1), expected)
