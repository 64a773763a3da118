"""What environments return: numbers and flags of other types, infos, shapes, old signatures."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from typer.testing import CliRunner

import constrained_rl as crl
from constrained_rl.cli import app
from constrained_rl.cmdp import reset_envs, step_envs, vectorize
from constrained_rl.costs import Cost, FromSixTuple
from constrained_rl.errors import InputError
from constrained_rl.logging import read_metrics
from tests.constrained_rl.helpers import tiny
from tests.constrained_rl.odd_envs import Column, NativeWalk, Path, Walk, odd
from tests.constrained_rl.test_cli import TINY

FIVE_STEPS = {"episode/length": 5.0, "return/mean": 5.0, "cost/risk": 2.5}


NAMES = ("obs", "reward", "terminated", "truncated", "info")


def changed(**returned):
    """A class of `Walk` whose step returns some of obs, reward, terminated, truncated, info."""

    class Changed(Walk):
        def step(self, action):
            names = ("obs", "reward", "terminated", "truncated", "info")
            return tuple(
                returned.get(n, x) for n, x in zip(names, super().step(action), strict=True)
            )

    return Changed


def with_reset(reset):
    """A class of `Walk` with another `reset`."""

    class Old(Walk):
        pass

    Old.reset = reset
    return Old


def trained(env, steps=64, **settings):
    metrics = tiny("ppo_lagrangian", env, 1.0, **settings).train(steps)
    return {name: metrics[name] for name in FIVE_STEPS if name in metrics}


# Numbers and flags


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("make", [Column, lambda: Cost(Column(), ("risk",)), lambda: Path()])
def test_arrays_of_one_element_are_numbers_and_other_infos_do_not_matter(make, vectorization):
    assert trained(make, sub={"vectorization": vectorization}) == FIVE_STEPS


@pytest.mark.parametrize("name", ["Column", "Path"])
def test_the_command_line_trains_on_them(tmp_path, name):
    settings = [*TINY, f"env.id={odd(name)}", "limit=1", "evaluation.every=0"]
    result = CliRunner().invoke(app, ["train", *settings, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    last = read_metrics(tmp_path / "run/metrics.jsonl")[-1]
    assert {key: last[key] for key in FIVE_STEPS} == FIVE_STEPS


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_a_native_environment_may_return_flags_as_0_and_1(dtype, shape):
    def convert(x):
        return x.astype(dtype if x.dtype == bool else x.dtype).reshape(shape)

    metrics = tiny("ppo_lagrangian", NativeWalk(convert), 1.0).train(64)
    assert (metrics["episode/length"], metrics["cost/0"]) == (5.0, 2.5)
    assert metrics["return/mean"] == 5.0


def test_a_native_environment_may_return_tensors():
    agent = tiny("ppo_lagrangian", NativeWalk(torch.tensor), 1.0)
    assert agent.train(64)["episode/length"] == 5.0


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"reward": np.ones(2)}, r"the reward is array\(\[1., 1.\]\) of shape \(2,\).*float\(rew"),
        ({"reward": None}, "the reward is None"),
        ({"reward": "1"}, "the reward is '1'"),
        ({"terminated": 0.5}, "the flag terminated is 0.5.*expected True or False"),
        ({"truncated": np.zeros(2, bool)}, "the flag truncated is array"),
        ({"info": None}, "the info None, expected a dict"),
        ({"info": {"cost": torch.tensor(0.5)}}, r"tensor\(0.5000\), of type Tensor.*float\(cost\)"),
        ({"info": {"cost": "0.5"}}, "'0.5', of type str, expected a float"),
    ],
    ids=str,
)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_is_no_number_or_flag_is_named(returned, message, vectorization):
    with pytest.raises(InputError, match=message):
        trained(changed(**returned), sub={"vectorization": vectorization})


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda x: np.repeat(x[:, None], 2, axis=1), r"rewards of shape \(2, 2\)"),
        (lambda x: x * 2.0, "terminations = .*expected truth values, or 0 and 1"),
        (lambda x: x.astype(object), "dtype object"),
    ],
)
def test_a_native_environment_with_other_flags_is_refused(convert, message):
    with pytest.raises(InputError, match=message):
        tiny("ppo_lagrangian", NativeWalk(convert), 1.0).train(64)


@pytest.mark.parametrize(
    ("cost", "found"),
    [(torch.tensor(0.5), "tensor(0.5000), of type Tensor"), ("0.5", "'0.5', of type str")],
)
def test_costs_of_a_given_vector_environment_are_named_for_what_they_are(cost, found):
    envs = SyncVectorEnv([changed(info={"cost": cost})] * 2)
    with pytest.raises(InputError) as caught:
        tiny("ppo_lagrangian", envs, 1.0)
    assert found in str(caught.value)
    assert "cut off" not in str(caught.value)


def test_a_native_step_of_another_length_is_refused_without_advice_for_single_ones():
    class Four(NativeWalk):
        def step(self, actions):
            return super().step(actions)[:4]

    with pytest.raises(InputError, match=r"number of values \(4\).*truncated, info$"):
        tiny("ppo_lagrangian", Four(), 1.0)


# Infos of a given vector environment


def nested(env):
    """An info whose shape differs only inside a dict."""

    class Nested(Walk):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, {**info, "map": {"seen": np.zeros(self.time)}}

    return Nested()


def play(envs, steps):
    for _ in range(steps):
        step_envs(envs, np.zeros(2, np.int64))


@pytest.mark.parametrize(("make", "key"), [(Path, "path"), (lambda: nested(Walk()), "seen")])
def test_the_info_that_does_not_fit_is_named_and_the_cost_is_not_blamed(make, key):
    envs = SyncVectorEnv([make] * 2)
    reset_envs(envs, 0)
    if key == "seen":
        envs.envs[0].unwrapped.time = 2
    with pytest.raises(InputError, match=rf'info\["{key}"\].*functions that make one') as caught:
        play(envs, 20)
    assert "number of channels" not in str(caught.value)


# Observations


def seeing(space, obs):
    """A class whose space is not that of its observations."""

    class Seeing(Walk):
        observation_space = space

        def observe(self):
            return obs

    return Seeing


PLANE = Walk.observation_space


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (PLANE, np.zeros(3, np.float32), r"shape \(3,\), but its observation space .* \(2,\)"),
        (PLANE, np.zeros(1, np.float32), r"shape \(1,\), but"),
        (PLANE, None, r"shape \(\), but"),
        (Discrete(4), 4, r"observations hold 4, which is no category of Discrete\(4\)"),
        (Discrete(4, start=2), 1, "hold 1, which is no category"),
        (MultiDiscrete([3, 2]), np.array([0, 2]), "hold 2, which is no category"),
    ],
    ids=str,
)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_observations_of_another_shape_or_category_are_refused(space, obs, message, vectorization):
    with pytest.raises(InputError, match=message):
        trained(seeing(space, obs), sub={"vectorization": vectorization})


def test_a_native_environment_that_returns_other_shapes_is_refused():
    envs = NativeWalk(observe=lambda: np.zeros((2, 3), np.float32))
    with pytest.raises(InputError, match=r"observations of shape \(2, 3\), expected \(2, 2\)"):
        tiny("ppo_lagrangian", envs, 1.0)


@pytest.mark.parametrize("vector", [SyncVectorEnv, AsyncVectorEnv])
def test_what_a_given_vector_environment_cannot_stack_is_explained(vector):
    envs = vector([changed(obs=np.zeros(3, np.float32))] * 2)
    reset_envs(envs, 0)
    with pytest.raises(InputError, match=r"observations of Box.*functions that make one"):
        step_envs(envs, np.zeros(2, np.int64))
    envs.close()


def test_sub_environments_of_different_spaces_are_refused():
    other = seeing(Box(-1, 1, (3,), np.float32), np.zeros(3, np.float32))
    with pytest.raises(InputError, match=r"do not fit together.*not equivalent"):
        trained([Walk, other])


@pytest.mark.parametrize("wrong", [{}, {"observation_space": (2,), "action_space": Discrete(2)}])
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_without_spaces_is_refused(wrong, vectorization):
    bare = type("Bare", (gymnasium.Env,), wrong)
    with pytest.raises(InputError, match=r"gymnasium\.spaces"):
        trained(bare, sub={"vectorization": vectorization})


# Resets


def no_seed(self):
    self.time = 0
    return np.zeros(2, np.float32), {}


def alone(self, *, seed=None, options=None):
    self.time = 0
    return np.zeros(2, np.float32)


def nothing(self, *, seed=None, options=None):
    self.time = 0


OLD = [
    (no_seed, "takes no seed"),
    (alone, "the pair"),
    (nothing, "returned None.*the pair"),
]


@pytest.mark.parametrize(("reset", "message"), OLD)
@pytest.mark.parametrize("wrap", [lambda env: env, Cost, gymnasium.wrappers.TimeAwareObservation])
def test_a_reset_of_the_old_form_is_explained(reset, message, wrap):
    wrapped = wrap in (Cost, gymnasium.wrappers.TimeAwareObservation)
    make = with_reset(reset)

    def limited():
        return wrap(gymnasium.wrappers.TimeLimit(make(), 9) if wrapped else make())

    with pytest.raises(InputError, match=rf"{message}|reset returns \(observation, info\)"):
        trained(limited)


class Needy(Walk):
    def reset(self, seed, options=None):
        return super().reset(seed=seed)


def test_a_reset_that_cannot_do_without_a_seed_is_explained_when_the_next_episode_begins():
    with pytest.raises(InputError, match="cannot be called without arguments"):
        trained(Needy)
    with pytest.raises(InputError, match="cannot be called without arguments"):
        tiny("ppo_lagrangian", SyncVectorEnv([Needy]), 1.0).train(64)


@pytest.mark.parametrize("vector", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("reset", [no_seed, alone, nothing])
def test_a_given_vector_environment_with_an_old_reset_too(reset, vector):
    message = r"takes no seed|reset returns \(observation, info\)"
    with pytest.raises(InputError, match=message):
        tiny("ppo_lagrangian", vector([with_reset(reset)] * 2), 1.0).train(64)


def test_options_that_nobody_gives_need_not_be_taken():
    def reset(self, seed=None):
        return Walk.reset(self, seed=seed)

    assert trained(with_reset(reset)) == FIVE_STEPS


class Six:
    """Six values, as safety-gymnasium; no `gymnasium.Env`."""

    observation_space, action_space = Walk.observation_space, Walk.action_space

    def reset(self):
        self.time = 0
        return np.zeros(2)

    def step(self, action):
        self.time += 1
        return np.zeros(2), np.ones(1), [0.5], torch.tensor(self.time >= 5), np.zeros(1), {}


def test_a_six_tuple_without_a_seed_is_explained_and_its_arrays_are_numbers():
    with pytest.raises(InputError, match=r"Six.*takes no seed"):
        trained(lambda: FromSixTuple(Six(), ("risk",)))
    Six.reset = lambda self, seed=None: no_seed(self)[0]
    try:
        assert trained(lambda: FromSixTuple(Six(), ("risk",))) == FIVE_STEPS
    finally:
        Six.reset = no_seed


# Errors of an environment's own code


def broken(self, action):
    return int("x")


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_error_of_the_environment_itself_is_not_explained_away(vectorization, given):
    class Broken(Walk):
        step = broken

    kinds = {"sync": SyncVectorEnv, "async": AsyncVectorEnv}
    envs = kinds[vectorization]([Broken]) if given else vectorize([Broken], vectorization)
    reset_envs(envs, 0)
    with pytest.raises(ValueError, match="invalid literal") as caught:
        step_envs(envs, np.zeros(1, np.int64))
    assert not isinstance(caught.value, InputError)
    envs.close()


# check_cmdp


@pytest.mark.parametrize(
    ("make", "check", "found"),
    [
        (with_reset(no_seed), "stepping", "takes no seed"),
        (with_reset(alone), "stepping", "the pair"),
        (changed(info=None), "stepping", "expected a dict"),
        (changed(reward=np.ones(2)), "vector form (SyncVectorEnv)", "the reward is"),
        (changed(info={"cost": torch.tensor(0.5)}), "cost type", "Tensor"),
        (changed(obs=np.zeros(3, np.float32)), "observations", "400 of 4"),
    ],
)
def test_check_cmdp_reports_instead_of_raising(make, check, found):
    errors = {f.check: f.found for f in crl.check_cmdp(make).findings if f.level == "error"}
    assert found in errors[check]
