"""Bad environments: ids, constructors, spaces, costs, cost functions, vector forms."""

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

import constrained_rl as crl
from tests.bad_input import envs
from tests.bad_input.case import Case, train


def same_step():
    """Agents on vector environments whose last cost is lost."""
    vector = gymnasium.vector.SyncVectorEnv([envs.Walk] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    crl.ppo_lagrangian(vector, limit=1.0)


def evaluated_without_another():
    """An agent on one vector environment is asked to play on another."""
    vector = gymnasium.vector.SyncVectorEnv([envs.Walk] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    crl.ppo_lagrangian(vector, limit=1.0).evaluate(4)


def evaluated_on_training():
    """An agent is asked to play in its own environments."""
    agent = crl.ppo_lagrangian(envs.Walk, limit=1.0)
    agent.evaluate(4, env=agent.envs)


def differing_channels():
    """Sub-environments that report one cost and two."""
    crl.ppo_lagrangian([lambda n=n: envs.Walk(lambda _: np.ones(n)) for n in (1, 2)], limit=1.0)


def differing_names():
    """Sub-environments whose costs mean different things."""
    crl.ppo_lagrangian([lambda n=n: crl.Cost(envs.Walk(), names=(n,)) for n in "ab"], limit=1.0)


CASES = (
    Case(
        "no cost",
        "an environment without a cost",
        train("CartPole-v1"),
        ('returned no info["cost"]', "Cost(env, names=", "env.id=my_env:Name-v0", "--preset ppo"),
    ),
    Case(
        "cost sometimes",
        "a cost at some steps only",
        train("Forgetful"),
        ('returned no info["cost"]', "never taken for 0"),
        seen="training",
    ),
    Case(
        "cost late",
        "a cost at some steps only, where costs are not needed",
        train("Late", "--preset", "ppo"),
        ('returned info["cost"], but the first step had none', "return it at every step"),
        seen="training",
    ),
    Case(
        "unknown id",
        "a misspelt environment",
        train("constrained_rl/PointHazrd-v0"),
        ("no environment is registered as", "near names: constrained_rl/PointHazard-v0"),
    ),
    Case(
        "unknown module",
        "a module that cannot be found",
        train("not_here:Mine-v0"),
        ("module not_here cannot be imported",),
    ),
    Case(
        "broken module",
        "a module with a mistake in it",
        train("mine_broken:Mine-v0"),
        ("cannot be imported: mine_broken.py, line 2, in <module> raised ZeroDivisionError",),
        lambda folder: (folder / "mine_broken.py").write_text("x = 1\ny = x / 0\n"),
    ),
    Case(
        "module registers nothing",
        "a module that registers nothing",
        train("mine_empty:Zzz-v0"),
        ("no environment is registered as 'Zzz-v0'",),
        lambda folder: (folder / "mine_empty.py").write_text(""),
    ),
    Case(
        "unknown argument",
        "a constructor's argument that does not exist",
        train("Sound", 'env.kwargs={color = "red"}'),
        ("could not be created", "color"),
    ),
    Case(
        "refused argument",
        "a constructor's argument that is refused",
        train("FrozenLake-v1", 'env.kwargs={map_name = "9x9"}'),
        ("could not be created with {'map_name': '9x9'}", "KeyError: '9x9'"),
    ),
    Case(
        "constructor raises",
        "a constructor that raises",
        train("Unbuildable"),
        (
            "tests/bad_input/envs.py",
            "could not be created",
            "in unbuildable raised ValueError: no map was given",
        ),
    ),
    Case(
        "no limit",
        "no limit for an environment of one's own",
        ("train", "device=cpu", "env.id=tests.bad_input.envs:bad/Sound-v0", "--out", "run"),
        ("no limit given", "set limit="),
    ),
    Case(
        "too many limits",
        "a limit for a cost that does not exist",
        train("Sound", "limit=[1, 2]"),
        ("limit has 2 entries for the costs ('0',)", "give one"),
    ),
    Case(
        "too few limits",
        "one limit in a list for two costs",
        train("TwoCosts", "limit=[1]"),
        ("limit has 1 entries", "('speed', 'effort')"),
    ),
    Case(
        "channels change",
        "costs whose number of channels changes",
        train("MoreChannels"),
        ("K = 2 channels, expected 1 as before", "the same channels at every step"),
        seen="training",
    ),
    Case(
        "channels differ",
        "sub-environments with other numbers of costs",
        differing_channels,
        ("do not fit into one array", "same number of channels"),
    ),
    Case(
        "cost nan",
        "a cost that is no number",
        train("NotANumber"),
        ('info["cost"] is NaN or infinite', "return a finite number"),
        seen="training",
    ),
    Case("cost text", "a word as a cost", train("Text"), ('info["cost"]',)),
    Case(
        "cost whole",
        "whole numbers as costs, which Gymnasium cuts off",
        train("Whole"),
        ("dtype int", "float(cost)"),
    ),
    Case(
        "cost matrix",
        "a matrix as a cost",
        train("Matrix"),
        ('info["cost"] has shape (4, 2, 2)', "one number or K numbers"),
    ),
    Case(
        "observations nan",
        "observations that are no numbers",
        train("Blind"),
        ("observations of sub-environments", "Repair the environment"),
        seen="training",
    ),
    Case(
        "reward infinite",
        "a reward that becomes infinite while training",
        train("Rich", "total_steps=320", "checkpoint.every=1"),
        ("rollout reward", "its last checkpoint is intact", "crl resume"),
        seen="training",
    ),
    Case(
        "observations dict",
        "observations of several parts",
        train("Dict"),
        ("observations are Dict", "FlattenObservation"),
    ),
    Case(
        "observations images",
        "images as observations",
        train("Image"),
        ("observations are images (Box(8, 8, 3) of uint8)", "ResizeObservation"),
    ),
    Case(
        "actions several",
        "several choices per action",
        train("ManyChoices"),
        ("actions are MultiDiscrete", "one Discrete space"),
    ),
    Case(
        "actions unbounded",
        "actions without bounds",
        train("Unbounded"),
        ("is unbounded", "TransformAction"),
    ),
    Case(
        "actions integer",
        "whole numbers in a box as actions",
        train("Integers"),
        ("Box of int64", "ActionWrapper"),
    ),
    Case(
        "six values",
        "a step of six values",
        train("SixValues"),
        ("Gymnasium's five", "FromSixTuple(env)"),
    ),
    Case(
        "four values",
        "a step of four values, as in old Gym",
        train("FourValues"),
        ("Gymnasium's five", "before 0.26"),
    ),
    Case(
        "step raises",
        "an environment whose step raises",
        train("Broken"),
        ("tests/bad_input/envs.py", "in step raised KeyError: 'speed'", "repair it"),
    ),
    Case(
        "reset raises",
        "an environment whose reset raises",
        train("Unready"),
        ("tests/bad_input/envs.py", "in reset raised KeyError: 'map'", "repair it"),
    ),
    Case(
        "process raises",
        "an environment whose step raises in a process of its own",
        train("Broken", "env.vectorization=async", "env.num_envs=1"),
        ("tests/bad_input/envs.py", "in step raised KeyError"),
    ),
    Case(
        "syntax",
        "a module that Python cannot read",
        train("mine_new:Mine-v0"),
        ("module mine_new cannot be imported", "mine_new.py, line 1"),
        lambda folder: (folder / "mine_new.py").write_text("def\n"),
    ),
    Case(
        "cost function raises",
        "a cost function that raises",
        train("HarmRaises"),
        ("cost function tests.bad_input.envs.harm raised KeyError: 'speed'", "obs = array("),
    ),
    Case(
        "cost function twice",
        "a cost function that returns two numbers",
        train("HarmTwice"),
        ("two_numbers is [0.1, 0.2] of shape (2,)", "name every channel"),
    ),
    Case(
        "cost function text",
        "a cost function that returns a word",
        train("HarmText"),
        ("a_text is 'high'", "expected 1 finite number"),
    ),
    Case(
        "cost function infinite",
        "a cost function that returns infinity",
        train("HarmInfinite"),
        ("an_infinity is inf", "'harm' is inf"),
    ),
    Case(
        "cost function uncallable",
        "a number where a cost function belongs",
        train("HarmUncallable"),
        ("Cost got 0.5 as the function of 'harm'", "expected a callable"),
    ),
    Case(
        "cost names",
        "a word where a tuple of names belongs",
        train("OneName"),
        ("Cost names are 'harm'", 'in a tuple such as ("risk",)'),
    ),
    Case(
        "cost names of an environment",
        "an environment whose cost_names is a word",
        train("Misnamed"),
        ("cost_names", "expected a tuple of strings"),
    ),
    Case(
        "same step",
        "a vector environment that resets in the same step",
        same_step,
        ("autoreset mode AutoresetMode.SAME_STEP", "make_vec"),
    ),
    Case(
        "names differ",
        "sub-environments whose costs have other names",
        differing_names,
        ("differ in cost_names",),
    ),
    Case(
        "no second environment",
        "evaluation on a vector environment that exists once",
        evaluated_without_another,
        ("no second one", "pass env="),
    ),
    Case(
        "evaluation on training",
        "evaluation on the environments that the agent trains in",
        evaluated_on_training,
        ("environments that the agent trains in", "leave env out"),
    ),
    Case(
        "no episode ends",
        "a run that is over before the time limit ends an episode",
        train("Endless", "total_steps=1600"),
        ("no episode is going to end", "ends an episode after 1000", "Give total_steps=4000"),
        seen="training",
    ),
    Case(
        "factory of no environment",
        "a function that makes no environment",
        lambda: crl.ppo(lambda: 3),
        ("returned a int", "expected a gymnasium.Env"),
    ),
    Case(
        "check-env constructor",
        "`crl check-env` with a constructor that raises",
        ("check-env", "tests.bad_input.envs:bad/Unbuildable-v0"),
        (
            "could not be created",
            "in unbuildable raised ValueError: no map was given",
        ),
    ),
    Case(
        "check-env without cost",
        "`crl check-env` on an environment without a cost",
        ("check-env", "tests.bad_input.envs:bad/Free-v0"),
        ("error", 'info["cost"]'),
        said="report",
    ),
    Case(
        "diverging",
        "a learning rate that turns the weights into no numbers",
        train(
            "Sound",
            "ppo.learning_rate=1e38",
            "ppo.warmup=0.5",
            "total_steps=320",
            "checkpoint.every=1",
        ),
        ("NaN or infinite", "Lower the learning rate", "crl resume"),
        seen="training",
    ),
)
