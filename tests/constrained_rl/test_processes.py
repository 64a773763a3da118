import os
import signal
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import VectorWrapper

from constrained_rl import run
from constrained_rl.cmdp import make_vec, reset_envs, step_envs, vectorize
from constrained_rl.errors import Notice
from constrained_rl.processes import ProcessEndedError, close_envs
from constrained_rl.stopping import stoppable
from llm_env import cli
from tests.constrained_rl.helpers import CARTPOLE, Scripted, cartpole, tiny, vector
from tests.constrained_rl.test_under_way import config_of

ACTIONS = np.zeros(2, np.int64)


@pytest.fixture(params=["id", "factories"])
def envs(request):
    """Two processes that a run would have forked while it answers SIGTERM itself."""
    with stoppable():
        if request.param == "id":
            made = make_vec(CARTPOLE, 2, 0, "async")
        else:
            made = vectorize([cartpole] * 2, "async")
            made.reset(seed=0)
    yield made
    close_envs(made)


def send(envs, number):
    for process in envs.processes:
        os.kill(process.pid, number)


def test_ctrl_c_for_the_whole_terminal_is_left_to_the_parent(envs):
    send(envs, signal.SIGINT)
    assert len(step_envs(envs, ACTIONS)) == 5
    assert all(process.is_alive() for process in envs.processes)


def test_processes_that_were_ended_are_named_and_leave_quietly(envs, capfd):
    send(envs, signal.SIGTERM)
    for process in envs.processes:
        process.join()
    with pytest.raises(ProcessEndedError, match=r"exit codes \[-15, -15\].*crl resume"):
        step_envs(envs, ACTIONS)
    assert envs.closed
    assert "Traceback" not in capfd.readouterr().err


def test_a_reset_says_so_too(envs):
    send(envs, signal.SIGKILL)
    for process in envs.processes:
        process.join()
    with pytest.raises(ProcessEndedError, match=r"\[-9, -9\]"):
        reset_envs(envs, 0)


def test_closing_does_not_wait_for_what_was_asked_of_processes(envs):
    envs.step_async(ACTIONS)  # as after Ctrl-C in the middle of a step
    close_envs(envs)
    assert envs.closed
    assert not any(process.is_alive() for process in envs.processes)
    close_envs(envs)  # a second time changes nothing


class Stuck(Scripted):
    """Cannot be closed."""

    closed = 0

    def close(self):
        Stuck.closed += 1
        raise AttributeError("'NoneType' object has no attribute 'quit'")


gymnasium.register("tests/Stuck-v0", lambda: Stuck([(1, 0.5)] * 5))


@pytest.fixture(autouse=True)
def _none_closed():
    Stuck.closed = 0


def test_what_a_close_raises_is_a_warning_and_the_others_are_closed():
    envs = vector(Stuck([(1, 0)]), Stuck([(1, 0)]), Stuck([(1, 0)]))
    with pytest.warns(Notice, match=r"has no attribute 'quit'") as told:
        close_envs(envs)
    assert (len(told), Stuck.closed, envs.closed) == (3, 3, True)
    close_envs(envs)  # a second time changes nothing
    assert Stuck.closed == 3


@pytest.mark.parametrize("env", ["tests/Stuck-v0", lambda: Stuck([(1, 0.5)] * 5)])
def test_environments_in_processes_that_cannot_be_closed_train_too(env, capfd):
    sub = {"vectorization": "async", "num_envs": 2}
    with pytest.warns(Notice, match="no attribute 'quit'"):  # the one that shows its spaces
        agent = tiny("ppo_lagrangian", env, 1.0, sub=sub)
    agent.train(32)
    with pytest.warns(Notice, match="no attribute 'quit'"):
        assert agent.evaluate(4).cost.tolist() == [[2.5]] * 4
    agent.close()
    assert not any(process.is_alive() for process in agent.envs.processes)
    assert "Traceback" not in capfd.readouterr().err


def test_an_error_of_a_training_is_not_hidden_by_one_of_closing(tmp_path):
    agent = tiny("ppo_lagrangian", "tests/Stuck-v0", 1.0)

    def train():
        try:
            raise KeyError
        finally:
            agent.close()

    with pytest.warns(Notice, match="closing an environment failed"), pytest.raises(KeyError):
        train()


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_an_evaluation_is_not_lost_where_its_environments_cannot_be_closed(vectorization):
    class Native(VectorWrapper):
        def close(self, **_):
            raise OSError("no display")

    agent = tiny("ppo_lagrangian", lambda: Stuck([(1, 0.5)] * 5), 1.0)
    env = "tests/Stuck-v0"
    if vectorization == "native":  # somebody else's, given to be played on and then closed by hand
        env = Native(vector(Scripted([(1, 0.5)] * 5)))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = agent.evaluate(4, env=env)
        if vectorization == "native":
            close_envs(env)
    assert found.cost.tolist() == [[2.5]] * len(found)
    assert [issubclass(w.category, Notice) for w in told] == [True] * max(1, Stuck.closed)


def test_a_run_and_its_commands_are_finished_where_nothing_can_be_closed(capsys, tmp_path):
    config = config_of("tests/Stuck-v0", iterations=2, evaluation={"every": 1, "episodes": 2})
    with pytest.warns(Notice, match="no attribute 'quit'"):
        folder = run.start(config, tmp_path / "run")
    assert (folder / "policy.safetensors").is_file()
    for command in (["evaluate", "--episodes", "2"], ["certify", "--episodes", "2"]):
        with pytest.warns(Notice, match="no attribute 'quit'"), pytest.raises(SystemExit) as ended:
            cli.app([command[0], str(folder), *command[1:]])
        assert ended.value.code == 0
    assert "2.5" in capsys.readouterr().out


def test_this_process_keeps_its_own_handlers():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    close_envs(vectorize([lambda: gymnasium.make("CartPole-v1")]))
    close_envs(make_vec(CARTPOLE, 1, 0, "async"))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
