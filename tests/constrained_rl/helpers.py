"""Small environments and agents that several tests share."""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from constrained_rl.agent import build
from constrained_rl.checkpoint import pack, unpack
from constrained_rl.costs import Cost


def restored(state):
    """A state after its way through a checkpoint."""
    tensors = {}
    packed = pack(state, tensors)
    return unpack(packed, tensors)


class Scripted(gymnasium.Env):
    """Plays a script of episodes over and over, whatever the actions.

    A step is (reward, cost [K]); the last step of an episode ends it as `ends` says. The
    observation is (number of the episode, steps made in it).
    """

    observation_space = Box(-1e3, 1e3, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, *script, ends="terminated"):
        self.script, self.ends, self.episode = script, ends, -1

    def observe(self):
        return np.array([self.episode, self.time], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode = 0 if seed is not None else self.episode + 1
        self.time = 0
        return self.observe(), {}

    def step(self, action):
        steps = self.script[self.episode % len(self.script)]
        reward, *cost = steps[self.time]
        self.time += 1
        last = self.time == len(steps)
        info = {"cost": np.array(cost, np.float64)}
        ended = last and self.ends == "terminated", last and self.ends == "truncated"
        return self.observe(), reward, *ended, info


def vector(*envs):
    return SyncVectorEnv(
        [lambda env=env: env for env in envs], autoreset_mode=AutoresetMode.NEXT_STEP
    )


def cartpole(poison_after=None):
    """CartPole, paying for the cart's distance; NaN rewards after so many steps."""
    env = gymnasium.make("CartPole-v1", max_episode_steps=30)
    return Poisoned(Cost(env, ("distance",), lambda obs, *_: abs(float(obs[0]))), poison_after)


class Poisoned(gymnasium.Wrapper):
    """Returns NaN as reward from some step on."""

    def __init__(self, env, after):
        super().__init__(env)
        self.after, self.steps, self.cost_names = after, 0, ("distance",)

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.steps += 1
        bad = self.after is not None and self.steps > self.after
        return obs, float("nan") if bad else reward, *rest


def pendulum():
    """Pendulum with two costs: speed and effort; short episodes that are truncated."""
    env = gymnasium.make("Pendulum-v1", max_episode_steps=25)
    return Cost(
        env,
        ("speed", "effort"),
        lambda obs, action, *_: [float(abs(obs[2]) > 1), float(np.abs(action).sum())],
    )


# Found by `crl train env.id=tests.constrained_rl.helpers:tests/CartPole-v0` and in the tests.
CARTPOLE, PENDULUM = (
    f"tests.constrained_rl.helpers:tests/{name}-v0" for name in ("CartPole", "Pendulum")
)
gymnasium.register("tests/CartPole-v0", "tests.constrained_rl.helpers:cartpole")
gymnasium.register("tests/Pendulum-v0", "tests.constrained_rl.helpers:pendulum")

DETOUR = "constrained_rl/Detour-v0"


def tiny(preset="pid_lagrangian", env=DETOUR, limit=None, **settings):
    """An agent that trains in milliseconds; `settings` are merged into the tiny ones."""
    ppo = {"horizon": 8, "epochs": 2, "minibatches": 2, "learning_rate": 3e-4} | settings.pop(
        "ppo", {}
    )
    tree = {
        "device": "cpu",
        "env": {"num_envs": 4} | settings.pop("sub", {}),
        "network": {"hidden": (8,)},
        "ppo": ppo,
    }
    return build(preset, env, limit, tree | settings)


def weights(agent):
    """All parameters and statistics of policy and critic as one vector."""
    modules = (agent.policy, agent.parts.critic)
    return torch.cat([x.double().flatten() for m in modules for x in m.state_dict().values()])


def gradients_of(learner, batch):
    """The clipped gradients of one step, which are gone when it is done, and its metrics."""
    found, optimizer = [], learner.engine.optimizer

    def keep(*_):
        found.extend(p.grad.clone() for p in optimizer.param_groups[0]["params"])

    hook = optimizer.register_step_pre_hook(keep)
    metrics = learner.step(batch)
    hook.remove()
    return found, metrics
