"""Constrained reinforcement learning: maximise return subject to bounds on expected costs.

`import constrained_rl as crl`, then `crl.ppo_lagrangian(env, limit=25).train(steps)`.
"""

from constrained_rl.agent import (
    Agent,
    pid_lagrangian,
    ppo,
    ppo_lagrangian,
    scale_free,
    static_shaping,
)
from constrained_rl.check import check_cmdp
from constrained_rl.costs import Cost, FromSixTuple
from constrained_rl.errors import InputError, NonFiniteError

load = Agent.load

__all__ = [
    "Agent",
    "Cost",
    "FromSixTuple",
    "InputError",
    "NonFiniteError",
    "check_cmdp",
    "load",
    "pid_lagrangian",
    "ppo",
    "ppo_lagrangian",
    "scale_free",
    "static_shaping",
]
