"""Bad finite problems: arrays, files of them, what has no optimum, what is no finite problem."""

import gymnasium
import numpy as np

from constrained_rl.enumeration import from_gymnasium
from constrained_rl.oracle import evaluate_policy, load_cmdp
from tests.bad_input.case import TINY, Case, both
from tests.bad_input.of_runs import edited

TWO_STATES = {
    "transition": np.array([[[0.5, 0.5], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]]),
    "reward": np.array([[1.0, 0.0], [0.0, 0.0]]),
    "cost": np.array([[[1.0, 0.0], [0.0, 0.0]]]),
    "initial": np.array([1.0, 0.0]),
    "discount": np.array(0.9),
    "limit": np.array([2.0]),
}
TRAIN = ("train", "env.file=mine.npz", *(s for s in TINY if not s.startswith("network")))


def problem(**changes):
    """A setup: mine.npz, sound but for the changes."""
    return lambda folder: np.savez(folder / "mine.npz", **{**TWO_STATES, **changes})


def entry(name, place, value):
    """A setup: mine.npz with another number in one place of an array."""
    array = TWO_STATES[name].copy()
    array[place] = value
    return problem(**{name: array})


def begun(folder):
    """A run on mine.npz that is not finished, whose file was changed since."""
    from constrained_rl.cli import run_config
    from constrained_rl.run import start

    problem()(folder)
    file = f"env.file={folder / 'mine.npz'}"
    start(run_config(None, [file, *TRAIN[2:]]), folder / "run")
    (folder / "run/policy.safetensors").unlink()


CASES = (
    Case(
        "transition row",
        "a transition row that does not sum to 1",
        ("solve", "mine.npz"),
        ("mine.npz: CMDP transition[0, 1] sums to 0.9, expected 1", "divide it by its sum"),
        entry("transition", (0, 1), (0.0, 0.9)),
    ),
    Case(
        "negative probability",
        "a negative probability",
        ("solve", "mine.npz", "--json"),
        ("transition[0, 0, 1] is -0.5, expected a probability",),
        entry("transition", (0, 0), (1.5, -0.5)),
    ),
    Case(
        "unknown initial state",
        "an episode that begins in a state that does not exist",
        ("solve", "mine.npz"),
        ("initial[2] is 0.25, but there are only S = 2 states", "give 2 probabilities"),
        problem(initial=np.array([0.75, 0.0, 0.25])),
    ),
    Case(
        "initial distribution",
        "first states whose probabilities do not sum to 1",
        TRAIN,
        ("mine.npz: CMDP initial sums to 0.75, expected 1",),
        entry("initial", 0, 0.75),
    ),
    Case(
        "dimensions",
        "costs of three states in a problem of two",
        ("solve", "mine.npz"),
        ("cost has shape (1, 3, 2), expected (1, 2, 2)", "S = 2 states"),
        problem(cost=np.zeros((1, 3, 2))),
    ),
    Case(
        "limits and costs",
        "two limits for one cost",
        TRAIN,
        ("cost has shape (1, 2, 2), expected (2, 2, 2)", "K = 2 from limit"),
        problem(limit=np.array([1.0, 2.0])),
    ),
    Case(
        "reward that is no number",
        "a reward that is no number",
        ("solve", "mine.npz"),
        ("reward[1, 0] is nan", "expected finite numbers"),
        entry("reward", (1, 0), np.nan),
    ),
    Case(
        "discount above 1",
        "a discount above 1",
        ("solve", "mine.npz"),
        ("discount is 1.1, expected 0 ≤ discount ≤ 1",),
        problem(discount=np.array(1.1)),
    ),
    Case(
        "endless episodes",
        "undiscounted sums of episodes that never end",
        ("solve", "mine.npz"),
        ("discount is 1.0, but no state is absorbing", "--average", "--horizon"),
        problem(discount=np.array(1.0), reward=np.ones((2, 2)), transition=np.full((2, 2, 2), 0.5)),
    ),
    Case(
        "unbounded problem",
        "a loop that pays for ever, undiscounted",
        ("solve", "mine.npz"),
        ("the problem is unbounded", "state 0 action 0 gains 1 per decision"),
        problem(
            discount=np.array(1.0),
            transition=np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]),
            cost=np.zeros((1, 2, 2)),
        ),
    ),
    Case(
        "problem file missing",
        "a file of a problem that is not there",
        TRAIN,
        ("mine.npz cannot be read (No such file or directory)", "give the .npz file"),
    ),
    Case(
        "problem of text",
        "a file that is no archive of arrays",
        ("solve", "mine.npz"),
        ("mine.npz: not a readable .npz archive", "np.savez"),
        lambda folder: (folder / "mine.npz").write_text("hello"),
    ),
    Case(
        "file and id",
        "a file and an id of an environment at once",
        (*TRAIN, "env.id=CartPole-v1"),
        ("found both file = 'mine.npz' and id = 'CartPole-v1'", "give one"),
        problem(),
    ),
    Case(
        "changed problem",
        "a problem that was changed since the run began",
        ("resume", "run"),
        ("mine.npz has changed: its SHA-256 is", "start a new run"),
        both(begun, problem(limit=np.array([3.0]))),
    ),
    Case(
        "moved problem",
        "a run whose problem is no longer where it was",
        ("resume", "run"),
        ("other.npz cannot be read (No such file or directory)", "put back"),
        both(begun, edited("run/config.toml", "mine.npz", "other.npz")),
    ),
    Case(
        "front of no constraint",
        "the front of a constraint that does not exist",
        ("solve", "mine.npz", "--front", "1"),
        ("constraint 1 does not exist", "K = 1, counted from 0"),
        problem(),
    ),
    Case(
        "two criteria",
        "two criteria at once",
        ("solve", "mine.npz", "--average", "--horizon", "3"),
        ("found both --average and --horizon", "give one"),
        problem(),
    ),
    Case(
        "no decision",
        "episodes of no decision",
        ("solve", "mine.npz", "--horizon", "0"),
        ("horizon is 0, expected at least 1",),
        problem(),
    ),
    Case(
        "policy of another problem",
        "a policy whose probabilities do not sum to 1",
        lambda: evaluate_policy(load_cmdp("mine.npz"), np.full((2, 2), 0.4)),
        ("policy[0] sums to 0.8, expected 1", "actions"),
        problem(),
    ),
    Case(
        "environment that cannot be enumerated",
        "an exact problem of an environment with random steps and no table",
        lambda: from_gymnasium(gymnasium.make("CartPole-v1"), limit=1.0, discount=0.9),
        ("draws random numbers", "write the table yourself as a FiniteCMDP"),
    ),
)
