"""Finite CMDPs that several tests solve by hand."""

import numpy as np

from constrained_rl.oracle import FiniteCMDP, evaluate_policy


def coin(**changes):
    """One state; action 0 pays 1 and costs 1, action 1 nothing; γ = 1/2, cost at most 1."""
    arrays = {
        "transition": np.ones((1, 2, 1)),
        "reward": np.array([[1.0, 0.0]]),
        "cost": np.array([[[1.0, 0.0]]]),
        "initial": np.ones(1),
        "discount": 0.5,
        "limit": np.array([1.0]),
    }
    return FiniteCMDP(**{**arrays, **changes})


def leave(**changes):
    """State 0: stay (0) pays 1 and costs 1; leave (1) goes for ever to state 1, where all is 0."""
    arrays = {
        "transition": np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]),
        "reward": np.array([[1.0, 0.0], [0.0, 0.0]]),
        "cost": np.array([[[1.0, 0.0], [0.0, 0.0]]]),
        "initial": np.array([1.0, 0.0]),
        "discount": 1.0,
        "limit": np.array([0.5]),
    }
    return FiniteCMDP(**{**arrays, **changes})


def random_cmdp(seed, states, actions, channels):
    """A random CMDP whose limits lie between its least costs and those of a random policy."""
    rng = np.random.default_rng(seed)
    cmdp = FiniteCMDP(
        transition=rng.dirichlet(np.full(states, 0.3), (states, actions)),
        reward=rng.normal(size=(states, actions)),
        cost=rng.normal(size=(channels, states, actions)),
        initial=rng.dirichlet(np.ones(states)),
        discount=float(rng.uniform(0, 0.99)),
        limit=np.zeros(channels),
    )
    witness = rng.dirichlet(np.ones(actions), states)
    slack = 0.05 * rng.random(channels)
    limit = evaluate_policy(cmdp, witness)[1] + slack  # the witness makes it feasible
    return FiniteCMDP(**{**vars(cmdp), "limit": limit})
