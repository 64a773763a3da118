"""Train on an environment of one's own with two costs: `my_env.py`, beside this file."""

# [readme]
import gymnasium
from my_env import Room  # its step returns info["cost"] = [energy, cold]

import constrained_rl as crl

agent = crl.scale_free(Room, limit={"energy": 29.0, "cold": 9.0})
agent.train(150_000)
print(agent.evaluate(100).intervals())

# somebody else's environment gets its costs by functions
costs = {"speed": lambda obs, action, reward, info: abs(obs[2]) > 6.0}
swing = crl.pid_lagrangian(lambda: crl.Cost(gymnasium.make("Pendulum-v1"), cost=costs), limit=20.0)
# [/readme]
