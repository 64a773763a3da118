"""A person's own environment: heat a room with two costs, energy used and minutes too cold."""

import gymnasium
import numpy as np


class Room(gymnasium.Env):
    """Keep a room at 21 °C when it is freezing outside."""

    cost_names = ("energy", "cold")
    observation_space = gymnasium.spaces.Box(-50.0, 50.0, (2,), np.float64)
    action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float64)  # power of the heater

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.warmth = 0, 12.0 + self.np_random.normal()
        return self._observe(), {}

    def step(self, action):
        power = float(action[0])
        self.warmth += 3.0 * power - 0.1 * self.warmth
        self.time += 1
        comfort = -abs(self.warmth - 21.0) / 10.0
        cost = np.array([power, float(self.warmth < 16.0)])
        return self._observe(), comfort, False, self.time == 48, {"cost": cost}

    def _observe(self):
        return np.array([self.warmth, self.time])


gymnasium.register("Room-v0", entry_point="my_env:Room")
