"""Constrained reinforcement learning: maximise return subject to bounds on expected costs.

`import constrained_rl as crl`, then `crl.ppo_lagrangian(env, limit=25).train(steps)`.
"""

from constrained_rl.agent import Agent, pid_lagrangian, ppo, ppo_lagrangian, static_shaping
from constrained_rl.cmdp import Cost
from constrained_rl.errors import InputError, NonFiniteError

load = Agent.load

__all__ = [
    "Agent",
    "Cost",
    "InputError",
    "NonFiniteError",
    "load",
    "pid_lagrangian",
    "ppo",
    "ppo_lagrangian",
    "static_shaping",
]
