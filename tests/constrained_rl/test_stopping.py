# ruff: noqa: PT012 (it is a signal that raises, not a statement)
import os
import signal

import pytest

from constrained_rl.stopping import Stopped, finishing_steps, note_sigterm, stoppable


def ask():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def usual():
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_raises_at_once_where_nothing_has_to_be_finished():
    done = []
    with pytest.raises(Stopped), stoppable():
        done.append(1)
        ask()
        done.append(2)
    assert done == [1]


def test_sigterm_is_noted_in_a_loop_that_finishes_its_step():
    done = []
    with pytest.raises(Stopped, match="after 2"), stoppable(), finishing_steps() as stopping:
        for step in range(5):
            if step == 2:
                ask()
                ask()  # a second request changes nothing
            done.append(step)
            if stopping():
                raise Stopped("after 2")
    assert done == [0, 1, 2]


def test_a_request_that_a_loop_did_not_answer_raises_at_its_end():
    done = []
    with pytest.raises(Stopped), stoppable():
        with finishing_steps():
            ask()
            done.append("loop")
        done.append("after")
    assert done == ["loop"]


def test_after_a_loop_sigterm_raises_at_once_again():
    with pytest.raises(Stopped), stoppable():
        with finishing_steps() as stopping:
            assert not stopping()
        ask()
        raise AssertionError("not reached")


def test_what_unwinds_is_not_interrupted_by_a_second_request():
    done = []
    with pytest.raises(Stopped), stoppable():
        try:
            ask()
        finally:
            ask()
            done.append("saved")
    assert done == ["saved"]


def test_a_request_before_the_work_stops_it_before_it_begins():
    before = signal.getsignal(signal.SIGTERM)
    note_sigterm()
    try:
        ask()
        with pytest.raises(Stopped), stoppable():
            raise AssertionError("not reached")
        with stoppable():  # the request is answered; the next work is not stopped by it
            pass
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_anybody_who_stops_a_loop_is_never_asked():
    with finishing_steps() as stopping:
        assert not stopping()
