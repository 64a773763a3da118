import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from typer.testing import CliRunner

import constrained_rl as crl
from constrained_rl.check import check_cmdp
from constrained_rl.cli import app
from constrained_rl.cmdp import make_vec
from constrained_rl.costs import Cost
from constrained_rl.envs import BUILT_IN
from constrained_rl.errors import InputError
from tests.constrained_rl.helpers import CARTPOLE, pendulum
from tests.constrained_rl.test_costs import SafetyStyle


class Room(gymnasium.Env):
    """Ten steps; `cost(env)` is what a step reports, and `reset_cost` what a reset does."""

    action_space = Discrete(2)

    def __init__(self, cost, reset_cost=None, names=("risk",), space=None, length=10):
        self.cost, self.reset_cost, self.cost_names = cost, reset_cost, names
        self.observation_space = space or Box(0, 1, (2,), np.float32)
        self.length, self.noise = length, np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        info = {} if self.reset_cost is None else {"cost": self.reset_cost}
        return np.zeros(2, np.float32), info

    def step(self, action):
        self.time += 1
        self.action, self.last = int(action), self.time == self.length
        cost = self.cost(self)
        info = {} if cost is None else {"cost": cost}
        return np.zeros(2, np.float32), 1.0, self.last, False, info


def good(env):
    return 0.5 * env.action


def levels(report):
    return {finding.check: finding.level for finding in report.findings}


def errors(report):
    return [f"{f.check}: {f.found}" for f in report.findings if f.level == "error"]


@pytest.mark.parametrize("env_id", BUILT_IN)
def test_built_in_environments_pass(env_id):
    report = check_cmdp(env_id)
    assert report.ok
    # Random actions do not find every cost, and 400 steps may end no episode of a mean length of
    # 500; nothing else may be doubtful.
    warned = [check for check, level in levels(report).items() if level != "ok"]
    long = {"vector form (NativeVectorEnv): episodes end", "episodes end"}
    assert set(warned) <= {"cost channels", *(long if "Corridor" in env_id else ())}


@pytest.mark.parametrize(
    "env", [CARTPOLE, pendulum, lambda: Room(good), Room(good), make_vec(CARTPOLE, 2, 0)]
)
def test_ids_factories_environments_and_vector_environments_are_taken(env):
    report = check_cmdp(env)
    assert report.ok
    report.raise_for_errors()
    forms = [check for check in levels(report) if check.startswith("vector form")]
    assert bool(forms) == (not isinstance(env, gymnasium.Env))


def test_the_report_can_be_read():
    text = str(check_cmdp(Room(good)))
    assert "  ok      cost present: at each of 400 steps, 40 of them last steps\n" in text
    assert "cost channels: K = 1, values 0 … 0.5\n" in text


@pytest.mark.parametrize(
    ("cost", "check", "found"),
    [
        (lambda env: None, "cost present", "400 of 400 steps lack"),
        (
            lambda env: None if env.last else 0.0,
            "cost present",
            r"40 of 400 steps lack info\[\"cost\"\], 40 of them last steps",
        ),
        (lambda env: 0, "cost type", r"first 0 \(int\)"),
        (lambda env: env.last, "cost type", r"first False \(bool\)"),
        (lambda env: [0.5], "cost type", r"first \[0\.5\] \(list\)"),
        (lambda env: np.array([1, 2]), "cost type", r"\(int64\)"),
        (lambda env: np.zeros(1 + env.last), "cost channels", r"shapes \[\(1,\), \(2,\)\]"),
        (lambda env: np.zeros((1, 1)), "cost channels", r"expected one shape, \(\) or \(K,\)"),
        (lambda env: float("nan") if env.last else 0.0, "cost finite", r"step 9 costs \[nan\]"),
        (lambda env: env.noise.random(), "cost repeatable", "differs under the same seed"),
        (lambda env: np.ones(2), "cost names", r"1 names \('risk',\) for costs of \[2\] channels"),
        (lambda env: 1 / 0, "stepping", "ZeroDivisionError"),
    ],
)
def test_a_broken_cost_is_one_error_that_says_what_was_found(cost, check, found):
    report = check_cmdp(Room(cost))
    assert not report.ok
    assert levels(report)[check] == "error"
    with pytest.raises(InputError, match=rf"(?s)error\(s\), expected none.*{check}: .*{found}"):
        report.raise_for_errors()


def test_a_reset_may_report_a_float_but_not_an_integer():
    assert levels(check_cmdp(Room(good, reset_cost=0.0)))["cost at reset"] == "warning"
    assert levels(check_cmdp(Room(good, reset_cost=0)))["cost at reset"] == "error"


def test_costs_that_never_move_names_that_lack_and_episodes_that_never_end_are_warned_of():
    env = Room(lambda env: 0.0, length=10**6)
    del env.cost_names
    report = check_cmdp(env)
    assert report.ok
    for check in ("cost channels", "cost names", "episodes end"):
        assert levels(report)[check] == "warning"


def test_observations_outside_their_space_and_spaces_that_are_not_supported_are_errors():
    report = check_cmdp(Room(good, space=Box(1, 2, (2,), np.float32)))
    assert levels(report)["observations"] == "error"
    report = check_cmdp(Room(good, space=Dict({"a": Discrete(2)})))
    assert any("FlattenObservation" in text for text in errors(report))


def test_what_gymnasium_finds_becomes_lines():
    report = check_cmdp(gymnasium.make(CARTPOLE))
    warned = [f.found for f in report.findings if f.check == "Gymnasium's check_env"]
    assert "A Box observation space minimum value is -infinity. This is probably too low." in warned


def test_six_values_name_their_wrapper():
    report = check_cmdp(SafetyStyle)
    assert not report.ok
    assert any("FromSixTuple(env)" in finding.advice for finding in report.findings)
    assert check_cmdp(lambda: crl.FromSixTuple(SafetyStyle())).ok


def test_a_vector_environment_is_held_to_what_training_needs():
    envs = SyncVectorEnv([lambda: Room(good)], autoreset_mode=AutoresetMode.SAME_STEP)
    assert "expected AutoresetMode.NEXT_STEP" in errors(check_cmdp(envs))[0]
    mixed = SyncVectorEnv([lambda: Room(lambda env: 0), lambda: Room(good)])
    assert "dtype int64, expected float64" in errors(check_cmdp(mixed))[0]
    named = SyncVectorEnv([lambda: Cost(Room(good)), lambda: Room(good)])
    assert "differ in cost_names" in errors(check_cmdp(named))[0]


def test_anything_else_is_refused():
    with pytest.raises(InputError, match="got a int, expected an id, an environment"):
        check_cmdp(3)
    with pytest.raises(InputError, match="could not be created"):
        check_cmdp("constrained_rl/SpeedLimit-v0", kwargs={"color": 1})


def test_the_command_ends_with_2_where_there_is_an_error():
    result = CliRunner().invoke(app, ["check-env", "constrained_rl/SpeedLimit-v0", "horizon=20"])
    assert result.exit_code == 0
    assert "episodes end: 20 in 400 steps" in result.stdout
    result = CliRunner().invoke(app, ["check-env", "CartPole-v1"])
    assert result.exit_code == 2
    assert 'lack info["cost"]' in result.stdout


@pytest.mark.parametrize("names", [3, "risk", (1,)])
def test_names_that_are_no_tuple_of_strings_are_a_finding(names):
    assert "no tuple of strings" in errors(check_cmdp(Room(good, names=names)))[0]


def test_a_time_limit_beyond_the_steps_that_were_played_is_an_end():
    def limited():
        return gymnasium.wrappers.TimeLimit(Cost(Room(good, length=10**6)), 90)

    report = check_cmdp(limited, steps=50)
    assert levels(report)["episodes end"] == "ok"
    assert "none in 50 steps, but at 90 at the latest" in str(report)
    assert levels(check_cmdp(lambda: Room(good, length=10**6), steps=50))["episodes end"] == (
        "warning"
    )
