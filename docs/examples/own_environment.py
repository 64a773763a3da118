"""Train on an environment of one's own with two costs: `my_env.py`, beside this file."""

# [readme]
from my_env import Room

import constrained_rl as crl

costs = {
    "energy": lambda obs, action, reward, info: info["energy"],
    "cold": lambda obs, action, reward, info: info["cold"],
}
agent = crl.ppo_lagrangian(lambda: crl.Cost(Room(), cost=costs), limit=(29.0, 9.0))
agent.train(100_000)
print(agent.evaluate(100).intervals())
# [/readme]
