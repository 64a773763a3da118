"""What environments return, objects in place of what makes them, and what `predict` is given."""

import gymnasium
import numpy as np
import torch

import constrained_rl as crl
from tests.bad_input import envs
from tests.bad_input.case import Case, train


def vector(make):
    return gymnasium.vector.SyncVectorEnv([make] * 2)


def agent_on(make):
    return crl.ppo_lagrangian(
        make, limit=1.0, device="cpu", env={"num_envs": 2}, ppo={"horizon": 8, "minibatches": 1}
    )


def varying_infos():
    """An info of varying length, in a vector environment."""

    class Finds(envs.Walk):
        def pay(self):
            return {"cost": 0.5, "found": np.zeros(self.time)}

    several = vector(Finds)
    several.envs[0].time = 2
    several.reset()
    several.envs[1].step = lambda action: several.envs[0].step(action)
    agent_on(several).train(16)


def trained_with_arguments_twice():
    """Keyword arguments beside a function that has its own."""
    crl.ppo_lagrangian(envs.Walk, limit=1.0, env={"kwargs": {"cost": 1.0}})


def loaded_without_its_wrappers(folder="agent"):
    """A vector environment with a wrapper, and only its id."""
    mode = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}
    several = gymnasium.make_vec(
        "bad/Sound-v0",
        2,
        vectorization_mode="sync",
        vector_kwargs=mode,
        wrappers=[lambda env: gymnasium.wrappers.TimeLimit(env, 3)],
    )
    agent_on(several).evaluate(4)


CASES = (
    Case(
        "reset without seed",
        "a reset that takes no seed, as in old Gym",
        train("NoSeed"),
        ("takes no seed", "def reset(self, *, seed=None, options=None)"),
    ),
    Case(
        "reset of the observation",
        "a reset that returns the observation alone, as in old Gym",
        train("Alone"),
        ("expected the pair (observation, info)", "def reset(self, *, seed=None"),
    ),
    Case(
        "two rewards",
        "a reward that is an array of two",
        train("TwoRewards"),
        ("the reward is array([1., 1.])", "return float(reward)"),
    ),
    Case(
        "half a flag",
        "a flag that is no truth value",
        train("HalfEnded"),
        ("the flag terminated is 0.5", "return bool(terminated)"),
        seen="training",
    ),
    Case(
        "observations wider",
        "observations of another shape than their space",
        train("Wider"),
        ("has shape (3,)", "has (2,)", "correct observation_space"),
    ),
    Case(
        "cost tensor",
        "a tensor as a cost",
        train("Tensor"),
        ("tensor(0.5000), of type Tensor", "return float(cost)"),
    ),
    Case(
        "infos vary",
        "an info whose length varies, in a vector environment",
        varying_infos,
        ('info["found"]', "functions that make one environment each"),
    ),
    Case(
        "normalised observations",
        "an environment that standardises its observations by running statistics",
        train("Normalized"),
        ("NormalizeObservation", "network.normalize_observations"),
    ),
    Case(
        "normalised rewards",
        "a wrapper inside that standardises rewards by running statistics",
        train("Rewarded", "env.vectorization=async", "env.num_envs=1"),
        ("NormalizeReward", "ppo.normalize_values=true"),
    ),
    Case(
        "check-env normalised",
        "`crl check-env` on an environment that standardises its observations",
        ("check-env", "tests.bad_input.envs:bad/Normalized-v0"),
        ("error", "NormalizeObservation"),
        said="report",
    ),
    Case(
        "actions of the largest float",
        "the largest floats as bounds of actions",
        train("Largest"),
        ("is unbounded", "TransformAction"),
    ),
    Case(
        "a single object",
        "an environment object where a function belongs",
        lambda: agent_on(envs.Walk()),
        ("the single object", "its class Walk, a function such as lambda: Walk"),
    ),
    Case(
        "no environment",
        "a number where an environment belongs",
        lambda: agent_on(3),
        ("the environment is 3, of type int", "expected an id"),
    ),
    Case(
        "arguments twice",
        "keyword arguments beside a function that makes the environment",
        trained_with_arguments_twice,
        ("env.kwargs is {'cost': 1.0}", "lambda: Mine"),
    ),
    Case(
        "wrappers that no id makes",
        "evaluation of an agent whose vector environment has a wrapper",
        loaded_without_its_wrappers,
        ("no second one", "pass env="),
    ),
    Case(
        "cost around several",
        "a cost around a vector environment",
        lambda: crl.Cost(vector(envs.Walk), ("harm",)),
        ("Cost got the vector environment", "wrappers=[lambda env: Cost(env"),
    ),
    Case(
        "predict a reset",
        "a whole reset given to predict",
        lambda: agent_on(envs.Walk).predict(envs.Walk().reset()),
        ("the pair (observation, info)", "obs, info = env.reset()"),
    ),
    Case(
        "predict another shape",
        "observations of another shape given to predict",
        lambda: agent_on(envs.Walk).predict(np.zeros((3, 1))),
        ("shape (3, 1)", "('N', 2)"),
    ),
    Case(
        "predict nan",
        "observations that are no numbers given to predict",
        lambda: agent_on(envs.Walk).predict(torch.full((2,), torch.nan)),
        ("NaN or infinite", "cannot read"),
    ),
)
