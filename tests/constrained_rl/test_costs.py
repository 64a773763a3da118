import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import NormalizeReward, TransformReward
from gymnasium.wrappers import vector as vector_wrappers

import constrained_rl as crl
from constrained_rl.cmdp import read_cost
from constrained_rl.costs import Cost, FromSixTuple
from constrained_rl.errors import InputError
from tests.constrained_rl.helpers import tiny
from tests.constrained_rl.test_cmdp import Scripted, played, step, sync


def one_step(env, action=0):
    env.reset(seed=0)
    return env.step(action)[4]["cost"]


# Cost


def test_the_wrapper_repairs_the_type_that_the_first_sub_environment_would_impose():
    envs = sync(Cost(Scripted(0)), Cost(Scripted(0.5)))
    assert read_cost(step(envs), played(True, True), 1).tolist() == [[0.0], [0.5]]


def test_the_cost_of_a_terminal_step_is_read_and_the_reset_step_pays_nothing():
    # Sub-environment 0 ends after two steps, so its third step is the reset: one idle step.
    envs = sync(Cost(Scripted(0.0, 9.0)), Cost(Scripted(1.0, 2.0, 4.0)))
    assert read_cost(step(envs, 2), played(True, True), 1).tolist() == [[9.0], [2.0]]
    assert read_cost(step(envs, 3), played(False, True), 1).tolist() == [[0.0], [4.0]]


def test_the_wrapper_computes_the_cost_by_a_function():
    def cost(obs, action, reward, info):
        return [reward, 10 * info["cost"] + action]

    env = Cost(Scripted(0.25), names=("a", "b"), cost=cost)
    # reward 1; 10 · 0.25 + action 1 = 3.5
    assert one_step(env, 1).tolist() == [1.0, 3.5]


def test_a_mapping_of_functions_names_the_channels():
    env = Cost(
        Scripted(0.25),
        cost={"act": lambda obs, action, *_: action > 0, "pay": lambda o, a, reward, i: 3 * reward},
    )
    assert env.cost_names == ("act", "pay")
    assert one_step(env, 1).tolist() == [1.0, 3.0]
    with pytest.raises(InputError, match="leave names out"):
        Cost(Scripted(0.0), names=("x",), cost={"act": lambda *_: 0.0})


@pytest.mark.parametrize(
    "found",
    [2, True, np.float32(2), np.array(2.0), [2], np.array([2]), torch.tensor([2.0])],
    ids=str,
)
def test_whatever_is_a_number_becomes_float64(found):
    cost = one_step(Cost(Scripted(0.0), cost=lambda *_: found))
    assert cost.dtype == np.float64
    assert cost.tolist() == [float(found if np.ndim(found) == 0 else found[0])]


def test_the_wrapper_refuses_a_missing_cost_and_says_how_to_compute_it():
    with pytest.raises(InputError, match=r"no info\[\"cost\"\], only \['costs'\]; compute it"):
        one_step(Cost(Scripted(1.0, key="costs")))


@pytest.mark.parametrize("bad", [np.nan, [1.0, 2.0], "much", "1.5", {}])
def test_the_wrapper_refuses_a_cost_that_is_not_one_finite_number_per_name(bad):
    with pytest.raises(InputError, match=r"cost of .* expected"):
        one_step(Cost(Scripted(bad)))


@pytest.mark.parametrize("names", ["cost", (), ("a", "a"), (1,), ("",)])
def test_the_wrapper_refuses_names_that_are_no_distinct_tuple(names):
    with pytest.raises(InputError, match="expected distinct names in a tuple"):
        Cost(Scripted(0.0), names=names)


@pytest.mark.parametrize("cost", [3.0, {"a": 3.0}, {"a": None}])
def test_a_cost_that_cannot_be_called_is_refused_at_once(cost):
    with pytest.raises(InputError, match="expected a callable on"):
        Cost(Scripted(0.0), cost=cost)


@pytest.mark.parametrize("wrapper", [Cost, FromSixTuple])
@pytest.mark.parametrize("vector", [sync, lambda env: vector_wrappers.ClipReward(sync(env), 0, 1)])
def test_a_wrapper_around_a_vector_environment_is_refused_with_where_it_belongs(wrapper, vector):
    envs = vector(Scripted(0.0))
    with pytest.raises(InputError, match=rf"{wrapper.__name__} got the vector.*make_vec\(id"):
        wrapper(envs)


@pytest.mark.parametrize("thing", [Scripted, "CartPole-v1", 3])
def test_a_wrapper_around_no_environment_is_refused(thing):
    with pytest.raises(InputError, match=r"Cost got .*expected a single gymnasium\.Env"):
        Cost(thing)


def broken(obs, action, reward, info):
    """A user's function with a defect: Scripted has no such key."""
    return info["angle"]


NAME = r"cost function tests\.constrained_rl\.test_costs\.broken"


def test_a_function_that_raises_is_named_and_its_arguments_are_shown():
    with pytest.raises(InputError, match=NAME + r" raised KeyError: 'angle'.*action = 0") as caught:
        one_step(Cost(Scripted(0.0), cost=broken))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([1.0, 2.0, 3.0], r"is \[1\.0, 2\.0, 3\.0\] of shape \(3,\), expected 2 .*\('a', 'b'\)"),
        (0.5, r"is 0\.5 of shape \(\), expected 2"),
        (["x", 1.0], r"not a number: 'x'"),
        ([1.0, None], r"not a number: None"),
        (None, r"not a number: None"),
        ([1.0, float("nan")], r"'b' is nan"),
        ([[1.0], [1.0, 2.0]], r"is \[\[1\.0\], \[1\.0, 2\.0\]\], expected 2"),
        (torch.ones(2, requires_grad=True), "is tensor.*expected 2"),
    ],
)
def test_a_function_of_the_wrong_shape_or_type_is_named_with_the_item(found, says):
    def wrong(*_):
        return found

    env = Cost(Scripted(0.0), names=("a", "b"), cost=wrong)
    with pytest.raises(InputError, match=r"cost function .*\.wrong .*" + says):
        one_step(env)


def test_a_wrapped_environment_is_recreated_from_its_spec():
    env = Cost(gymnasium.make("constrained_rl/Detour-v0"), names=("danger",))
    assert env.spec.make().get_wrapper_attr("cost_names") == ("danger",)


# Rescaled rewards


@pytest.mark.parametrize(
    "wrap", [NormalizeReward, lambda env: TransformReward(env, lambda reward: 100 * reward)]
)
def test_wrappers_that_rescale_the_reward_leave_the_cost_alone(wrap):
    envs = sync(wrap(Cost(Scripted(0.25))), wrap(Scripted(4.0)))
    envs.reset(seed=0)
    _, reward, _, _, info = envs.step(np.zeros(2, dtype=np.int64))
    assert (reward != 1.0).all()
    assert read_cost(info, played(True, True), 1).tolist() == [[0.25], [4.0]]


@pytest.mark.parametrize(
    "wrap",
    [
        vector_wrappers.NormalizeReward,
        lambda envs: vector_wrappers.TransformReward(envs, lambda reward: 100 * reward),
    ],
)
def test_vector_wrappers_that_rescale_the_reward_leave_the_cost_alone(wrap):
    envs = wrap(sync(Cost(Scripted(0.25)), Cost(Scripted(4.0))))
    envs.reset(seed=0)
    _, reward, _, _, info = envs.step(np.zeros(2, dtype=np.int64))
    assert (reward != 1.0).all()
    assert read_cost(info, played(True, True), 1).tolist() == [[0.25], [4.0]]


# FromSixTuple


class SafetyStyle(gymnasium.Env):
    """Mimics safety-gymnasium: six values, float64 observations, cost as a Python number."""

    observation_space = Box(-1, 1, (2,), np.float64)
    action_space = Discrete(2)
    cost = 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.np_random.uniform(-1, 1, 2), {"cost": 0}

    def step(self, action):
        self.time += 1
        info = {"cost_sum": self.cost}
        obs = self.np_random.uniform(-1, 1, 2)
        return obs, np.float64(action), self.cost, self.time == 5, False, info


class OmniStyle:
    """Mimics OmniSafe: no gymnasium.Env at all, tensors everywhere, reset returns a bare tensor."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Discrete(2)

    def reset(self, seed=None):
        return torch.zeros(2)

    def step(self, action):
        costs = torch.tensor([0.5, 2.0])
        ended = torch.tensor(True), torch.tensor(False)
        return torch.ones(2), torch.tensor(3.0), costs, *ended, {}


def test_a_six_tuple_becomes_a_step_of_gymnasium_with_a_cost():
    env = FromSixTuple(SafetyStyle())
    assert env.reset(seed=0)[1] == {}
    _, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated) == (1.0, False, False)
    assert info["cost_sum"] == 1
    assert info["cost"].tolist() == [1.0]
    assert info["cost"].dtype == np.float64
    check_env(FromSixTuple(SafetyStyle()), skip_render_check=True)


def test_objects_that_are_no_gymnasium_environment_are_converted_too():
    env = FromSixTuple(OmniStyle(), names=("a", "b"))
    obs, info = env.reset()
    assert (obs.dtype, info) == (np.float32, {})
    obs, reward, terminated, truncated, info = env.step(0)
    assert obs.tolist() == [1.0, 1.0]
    assert (reward, terminated, truncated) == (3.0, True, False)
    assert info["cost"].tolist() == [0.5, 2.0]
    with pytest.raises(InputError, match=r"expected 1 finite number.*\('cost',\)"):
        one_step(FromSixTuple(OmniStyle()))


def test_a_converted_environment_trains():
    metrics = tiny(env=lambda: FromSixTuple(SafetyStyle()), limit=1.0).train(64)
    assert metrics["cost/cost"] == 5.0  # 1 in each of 5 steps


class Shown(OmniStyle):
    """Has a picture, and something to give back."""

    closed = 0

    def render(self):
        return "picture"

    def close(self):
        self.closed += 1


class ShownByGymnasium(SafetyStyle):
    """The same as an environment of Gymnasium."""

    closed, render, close = 0, Shown.render, Shown.close


@pytest.mark.parametrize("inside", [Shown, ShownByGymnasium])
def test_what_is_inside_is_shown_and_closed(inside):
    made = [inside() for _ in range(2)]
    names = ("a", "b") if inside is Shown else ("cost",)
    wrapped = [Cost(FromSixTuple(env, names), names) for env in made]
    assert [env.render() for env in wrapped] == ["picture", "picture"]
    agent = tiny(env=[lambda env=env: env for env in wrapped], limit=1.0)
    agent.train(16)
    agent.close()
    assert [env.closed for env in made] == [1, 1]


def test_what_cannot_be_shown_or_closed_is_left_alone():
    env = FromSixTuple(OmniStyle(), names=("a", "b"))
    env.close()
    assert env.render() is None


def test_five_values_are_not_converted():
    with pytest.raises(InputError, match=r"returned 5 values, expected 6.*Cost\(env\)"):
        one_step(FromSixTuple(Scripted(0.0)))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_unwrapped_six_tuple_names_the_wrapper(vectorization):
    with pytest.raises(InputError, match=r"(?s)wrap it in constrained_rl\.FromSixTuple\(env\)"):
        tiny(env=SafetyStyle, limit=1.0, sub={"vectorization": vectorization})
    with pytest.raises(InputError, match=r"OmniStyle, expected a gymnasium\.Env.*FromSixTuple"):
        tiny(env=OmniStyle, limit=1.0, sub={"vectorization": vectorization})


def test_the_public_names_are_there():
    assert (crl.Cost, crl.FromSixTuple) == (Cost, FromSixTuple)
