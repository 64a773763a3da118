import os
import signal

import gymnasium
import numpy as np
import pytest

from constrained_rl.cmdp import make_vec, reset_envs, step_envs, vectorize
from constrained_rl.processes import ProcessEndedError, close_envs
from constrained_rl.stopping import stoppable
from tests.constrained_rl.helpers import CARTPOLE, cartpole

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


def test_this_process_keeps_its_own_handlers():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    close_envs(vectorize([lambda: gymnasium.make("CartPole-v1")]))
    close_envs(make_vec(CARTPOLE, 1, 0, "async"))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
