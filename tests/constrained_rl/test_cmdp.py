import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from constrained_rl.cmdp import (
    SavesState,
    cost_names,
    generator_state,
    make_vec,
    read_cost,
    read_ending,
    require_finite_observations,
    require_next_step,
    restore_generator,
    step_envs,
    vectorize,
)
from constrained_rl.costs import Cost
from constrained_rl.errors import InputError


class Scripted(gymnasium.Env):
    """Returns the given info["cost"] values one after another; the last one terminates."""

    observation_space = Box(0, 1, (1,), np.float32)
    action_space = Discrete(2)

    def __init__(self, *costs, key="cost"):
        self.costs, self.key = costs, key

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {"cost": 0}

    def step(self, action):
        cost = self.costs[self.time]
        self.time += 1
        info = {} if cost is None else {self.key: cost}
        return np.zeros(1, np.float32), 1.0, self.time == len(self.costs), False, info


def sync(*envs):
    return SyncVectorEnv([lambda env=env: env for env in envs])


def step(envs, times=1):
    """Info of the last of `times` steps after a reset."""
    envs.reset(seed=0)
    for _ in range(times):
        info = envs.step(np.zeros(envs.num_envs, dtype=np.int64))[4]
    return info


def played(*flags):
    return np.array(flags, dtype=bool)


# read_cost


def test_scalar_costs_become_one_channel_of_float64():
    info = step(sync(Scripted(0.5), Scripted(2.0)))
    cost = read_cost(info, played(True, True), None)
    assert cost.dtype == np.float64
    assert cost.tolist() == [[0.5], [2.0]]


def test_array_costs_keep_their_channels():
    info = step(sync(Scripted(np.array([0.5, 1.0])), Scripted(np.array([0.0, 3.0]))))
    assert read_cost(info, played(True, True), 2).tolist() == [[0.5, 1.0], [0.0, 3.0]]


def test_a_missing_key_is_an_error_that_names_the_keys_found_and_the_wrapper():
    info = step(sync(Scripted(1.0, key="costs")))
    with pytest.raises(InputError, match=r"no info\[\"cost\"\], only \['costs'\].*Cost\(env"):
        read_cost(info, played(True), 1)


def test_one_sub_environment_without_cost_is_an_error_not_zero():
    info = step(sync(Scripted(1.0), Scripted(None)))
    assert info["cost"].tolist() == [1.0, 0.0]  # what Gymnasium reports: indistinguishable
    with pytest.raises(
        InputError, match=r"sub-environments \[1\] played an action but returned no"
    ):
        read_cost(info, played(True, True), 1)


def test_a_first_sub_environment_returning_int_would_cut_off_decimals_and_is_refused():
    info = step(sync(Scripted(0), Scripted(0.5)))
    assert info["cost"].tolist() == [0, 0]  # 0.5 is lost
    with pytest.raises(InputError, match=r"dtype int64, expected float64.*float\(cost\)"):
        read_cost(info, played(True, True), 1)


def test_a_first_sub_environment_returning_bool_is_refused():
    info = step(sync(Scripted(True), Scripted(3)))
    assert info["cost"].tolist() == [True, True]  # 3 became True
    with pytest.raises(InputError, match="dtype bool, expected float64"):
        read_cost(info, played(True, True), 1)


def test_costs_in_a_list_arrive_as_objects_and_are_refused():
    info = step(sync(Scripted([0.1, 0.2]), Scripted([0.3, 0.4])))
    with pytest.raises(InputError, match=r"dtype object.*np\.asarray\(cost, dtype=np\.float64\)"):
        read_cost(info, played(True, True), 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_costs_that_are_not_finite_are_refused(bad):
    info = step(sync(Scripted(0.0), Scripted(bad)))
    with pytest.raises(InputError, match=r"NaN or infinite in sub-environments \[1\]"):
        read_cost(info, played(True, True), 1)


def test_a_changing_number_of_channels_is_refused():
    info = step(sync(Scripted(np.array([0.5, 1.0]))))
    with pytest.raises(InputError, match="K = 2 channels, expected 3 as before"):
        read_cost(info, played(True), 3)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 1, 1)])
def test_costs_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match=r"shape .*, expected \[2\] or \[2, K\]"):
        read_cost({"cost": np.zeros(shape)}, played(True, True), 1)


def test_where_nothing_was_played_the_cost_is_zero_whatever_is_written_there():
    info = {"cost": np.array([5.0, np.nan, 2.0]), "_cost": played(True, False, True)}
    assert read_cost(info, played(False, False, True), 1).tolist() == [[0], [0], [2]]


def test_a_step_on_which_all_sub_environments_reset_may_lack_the_key():
    assert read_cost({}, played(False, False), 3).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_the_returned_cost_is_a_copy():
    info = {"cost": np.ones((2, 1))}
    read_cost(info, played(True, True), 1)[:] = 7
    assert info["cost"].tolist() == [[1], [1]]


# cost_names


def test_names_come_from_native_environments_and_from_wrapped_sub_environments():
    assert cost_names(make_vec("constrained_rl/Detour-v0", 2, seed=0)) == ("risk",)
    assert cost_names(sync(Cost(Scripted(0.0), ("a",)), Cost(Scripted(0.0), ("a",)))) == ("a",)


def test_names_are_found_under_vector_wrappers():
    envs = RecordEpisodeStatistics(make_vec("constrained_rl/Detour-v0", 2, seed=0))
    assert cost_names(envs) == ("risk",)


def test_environments_that_do_not_name_their_costs_have_none():
    assert cost_names(sync(Scripted(0.0))) is None


def test_sub_environments_with_different_names_are_refused():
    with pytest.raises(InputError, match="differ in cost_names"):
        cost_names(sync(Cost(Scripted(0.0), ("a",)), Cost(Scripted(0.0), ("b",))))


def test_a_single_string_is_no_tuple_of_names():
    env = Scripted(0.0)
    env.cost_names = "risk"
    with pytest.raises(InputError, match="is 'risk', expected a tuple of strings"):
        cost_names(sync(env))


# make_vec, require_next_step


def test_unknown_environments_are_refused_with_near_names_ours_first():
    with pytest.raises(InputError, match=r"near names: constrained_rl/Detour-v0"):
        make_vec("Detuor-v0", 2, seed=0)
    with pytest.raises(InputError, match=r"near names: .*CartPole-v1"):
        make_vec("CartPol-v1", 2, seed=0)
    with pytest.raises(InputError, match=r"near names: constrained_rl/Coin-v0, constrained_rl/De"):
        make_vec("xyzzy", 2, seed=0)
    with pytest.raises(InputError, match="module no_such_module cannot be imported"):
        make_vec("no_such_module:Thing-v0", 2, seed=0)


def test_a_module_before_the_colon_is_imported():
    assert make_vec("constrained_rl.envs:constrained_rl/Detour-v0", 3, seed=0).num_envs == 3


def test_settings_the_environment_does_not_know_are_refused():
    with pytest.raises(InputError, match=r"could not be created with \{'colour': 'red'\}"):
        make_vec("constrained_rl/PointHazard-v0", 2, seed=0, colour="red")
    with pytest.raises(InputError, match="num_envs is 0"):
        make_vec("constrained_rl/PointHazard-v0", 0, seed=0)


def test_environments_without_a_native_form_are_stepped_one_by_one():
    envs = make_vec(
        "Acrobot-v1", 2, seed=0, wrappers=[lambda env: Cost(env, cost=lambda o, a, r, i: abs(o[0]))]
    )
    assert isinstance(envs, SyncVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert read_cost(step(envs), played(True, True), None).shape == (2, 1)


def test_the_seed_decides_what_follows():
    first, again, other = (make_vec("constrained_rl/PointHazard-v0", 2, seed=s) for s in (1, 1, 2))
    assert (first.reset()[0] == again.reset()[0]).all()
    assert (first.reset()[0] != other.reset()[0]).any()


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_refused_with_the_cure(mode):
    envs = SyncVectorEnv([lambda: Scripted(0.0)], autoreset_mode=mode)
    with pytest.raises(InputError, match=r"expected AutoresetMode\.NEXT_STEP.*make_vec"):
        require_next_step(envs)


# State


def test_a_generator_continues_to_the_last_bit_from_its_saved_state():
    generator = np.random.default_rng(3)
    generator.random(5)
    generator.integers(10, dtype=np.int32)  # leaves half a word in the generator's buffer
    saved = generator_state(generator)
    expected = generator.integers(10, size=4, dtype=np.int32).tolist(), generator.random(4).tolist()
    other = np.random.default_rng(4)
    restore_generator(other, saved)
    assert saved.dtype == np.uint8
    assert (
        other.integers(10, size=4, dtype=np.int32).tolist(),
        other.random(4).tolist(),
    ) == expected


def test_native_environments_save_their_state_and_others_do_not():
    assert isinstance(make_vec("constrained_rl/Detour-v0", 2, seed=0), SavesState)
    assert not isinstance(sync(Scripted(0.0)), SavesState)


# vectorize, step_envs


def rooms(*costs):
    """A factory of an environment that pays these costs."""
    return lambda: Cost(Scripted(*costs), names=("risk",))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_list_of_factories_makes_one_sub_environment_each(vectorization):
    envs = vectorize([rooms(0.5, 1.0), rooms(2.0, 1.0)], vectorization)
    assert isinstance(envs, AsyncVectorEnv) == (vectorization == "async")
    require_next_step(envs)
    assert cost_names(envs) == ("risk",)
    assert read_cost(step(envs), played(True, True), 1).tolist() == [[0.5], [2.0]]
    envs.close()


def test_processes_that_do_not_name_their_costs_stay_alive():
    envs = vectorize([lambda: Scripted(0.5, 0.5)], "async")
    assert cost_names(envs) is None
    assert step(envs)["cost"].tolist() == [0.5]
    envs.close()


@pytest.mark.parametrize("wrong", [[], [3], ["CartPole-v1"]])
def test_a_list_of_anything_else_is_refused(wrong):
    with pytest.raises(InputError, match="expected functions without arguments"):
        vectorize(wrong)


def test_a_factory_that_makes_no_environment_is_named():
    def three():
        return 3

    with pytest.raises(InputError, match=r"three returned a int, expected a gymnasium\.Env"):
        vectorize([three])


@pytest.mark.parametrize("needy", [lambda seed: Scripted(0.5), SyncVectorEnv])
def test_a_factory_that_needs_arguments_is_named(needy):
    with pytest.raises(InputError, match=r"needs arguments \(missing .*lambda: Mine"):
        vectorize([needy])


@pytest.mark.parametrize("env_id", ["constrained_rl/PointHazard-v0", "Acrobot-v1"])
@pytest.mark.parametrize(
    ("vectorization", "kind"), [("sync", SyncVectorEnv), ("async", AsyncVectorEnv)]
)
def test_the_vectorization_may_be_chosen(env_id, vectorization, kind):
    envs = make_vec(env_id, 2, 0, vectorization)
    assert isinstance(envs, kind)
    require_next_step(envs)
    envs.close()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_sub_environments_with_different_numbers_of_channels_are_refused(vectorization):
    two, three = np.zeros(2), np.zeros(3)
    for first, second in ((two, three), (0.5, two)):
        envs = vectorize([lambda x=x: Scripted(x) for x in (first, second)], vectorization)
        envs.reset(seed=0)
        with pytest.raises(InputError, match=r"do not fit.*same number of channels.*Cost\(env"):
            step_envs(envs, np.zeros(2, dtype=np.int64))
        envs.close()


def test_a_cost_that_grows_a_channel_during_an_episode_is_refused():
    envs = sync(Scripted(np.zeros(1), np.zeros(2)), Scripted(np.zeros(1), np.zeros(2)))
    read_cost(step(envs), played(True, True), None)
    with pytest.raises(InputError, match="K = 2 channels, expected 1 as before"):
        read_cost(envs.step(np.zeros(2, dtype=np.int64))[4], played(True, True), 1)


def test_an_error_of_a_process_is_raised_here_with_its_traceback_as_a_note():
    envs = vectorize([lambda: Cost(Scripted(0.0), cost=lambda *_: 1 / 0)], "async")
    envs.reset(seed=0)
    with pytest.raises(InputError, match="ZeroDivisionError: division by zero"):
        step_envs(envs, np.zeros(1, dtype=np.int64))
    envs.close()


def test_other_errors_of_an_environment_pass_unchanged():
    envs = sync(Scripted())  # steps beyond its script
    envs.reset(seed=0)
    with pytest.raises(IndexError):
        step_envs(envs, np.zeros(1, dtype=np.int64))


# The four silent traps of info["cost"] in vector environments


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_the_trap_of_the_first_type_is_an_error_in_processes_too(vectorization):
    for first, dtype in ((0, "int64"), (True, "bool")):
        envs = vectorize([lambda x=x: Scripted(x) for x in (first, 0.5)], vectorization)
        with pytest.raises(InputError, match=f"dtype {dtype}, expected float64"):
            read_cost(step(envs), played(True, True), 1)
        envs.close()


def test_same_step_autoreset_would_hide_the_last_cost():
    envs = SyncVectorEnv([lambda: Scripted(1.0, 9.0)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    info = step(envs, 2)
    assert info["final_info"]["cost"].tolist() == [9.0, 9.0]
    assert info["cost"].tolist() != [9.0, 9.0]  # the trap: the reset's
    with pytest.raises(InputError, match="SAME_STEP, expected"):
        require_next_step(envs)


def test_an_absent_cost_of_all_is_an_error_where_somebody_acted():
    info = step(sync(Scripted(None), Scripted(None)))
    with pytest.raises(InputError, match="missing cost is never taken for 0"):
        read_cost(info, played(True, True), 1)
    with pytest.raises(InputError, match="missing cost is never taken for 0"):
        read_cost(info, played(False, True), 1)


# require_finite_observations


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_observations_that_are_not_finite_name_their_sub_environment(bad):
    obs = np.zeros((3, 2, 2), np.float32)
    require_finite_observations(obs)
    obs[1, 1, 0] = bad
    with pytest.raises(InputError, match=r"sub-environments \[1\].*\(1 of 3\); the first at \[2\]"):
        require_finite_observations(obs)


def test_observations_that_are_no_floats_need_no_look():
    require_finite_observations(np.zeros(3, np.int64))
    require_finite_observations({"a": np.full(3, np.nan)})


@pytest.mark.parametrize("names", [3, ["a", 1]])
def test_cost_names_of_another_type_are_said_in_one_message(names):
    env = Scripted(0.0)
    env.cost_names = names
    with pytest.raises(InputError, match="expected a tuple of strings"):
        cost_names(sync(env))


def test_lists_of_names_that_differ_are_named():
    one, other = Scripted(0.0), Scripted(0.0)
    one.cost_names, other.cost_names = ["a"], ["b"]
    with pytest.raises(InputError, match="differ in cost_names"):
        cost_names(sync(one, other))


# read_ending


def test_an_unknown_chance_of_ending_is_nan_where_something_was_played():
    assert np.isnan(read_ending({}, played(True, False))).tolist() == [True, False]


def test_a_known_chance_of_ending_is_read_where_something_was_played():
    info = {"termination": np.array([0.25, 0.5])}
    assert read_ending(info, played(True, False)).tolist() == [0.25, 0.0]


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan")])
def test_a_chance_of_ending_that_is_no_probability_is_refused(wrong):
    with pytest.raises(InputError, match=r"termination.*sub-environment 1.*\[0, 1\]"):
        read_ending({"termination": np.array([0.5, wrong])}, played(True, True))


def test_a_sub_environment_without_a_chance_of_ending_has_none_and_not_0():
    # As SyncVectorEnv merges {"termination": 0.25} with {}.
    info = {"termination": np.array([0.25, 0.0]), "_termination": np.array([True, False])}
    found = read_ending(info, played(True, True))
    assert found[0] == 0.25
    assert np.isnan(found[1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.array([0, 1]), r'"termination".*int64'),
        (np.array([0.5]), r'"termination".*shape \(1,\)'),
    ],
)
def test_a_chance_of_ending_of_another_type_or_shape_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        read_ending({"termination": wrong}, played(True, True))
