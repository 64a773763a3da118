import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import (
    NormalizeObservation,
    NormalizeReward,
    TimeLimit,
    TransformObservation,
)
from gymnasium.wrappers import vector as vector_wrappers
from gymnasium.wrappers.utils import RunningMeanStd
from typer.testing import CliRunner

import constrained_rl as crl
from constrained_rl.cli import app
from constrained_rl.costs import Cost, FromSixTuple
from constrained_rl.errors import InputError
from constrained_rl.normalizers import require_no_statistics
from tests.constrained_rl.helpers import cartpole, tiny
from tests.constrained_rl.odd_envs import Normed, Walk, odd
from tests.constrained_rl.test_cli import TINY


def observed():
    return NormalizeObservation(Walk())


class VecEnv:
    """Stands for Stable-Baselines3's base class of vector environments."""


class VecNormalize(VecEnv):
    """As Stable-Baselines3's: statistics by observation, `training` moves them."""

    def __init__(self, venv, training=True):
        self.venv, self.training = venv, training
        self.obs_rms = {"place": RunningMeanStd(shape=(2,))}


class Adapted(Walk):
    """A single environment inside which another package's normaliser works."""

    def __init__(self, training=True):
        super().__init__()
        self.inner = [VecNormalize(None, training)]
        self.env = self.inner[0]


def agent_on(env, **sub):
    return tiny("ppo_lagrangian", env, 1.0, sub=sub)


def transformed():
    """Statistics in the closure of a function."""
    statistics = RunningMeanStd(shape=(2,))

    def standardized(obs):
        statistics.update(obs[None])
        return ((obs - statistics.mean) / np.sqrt(statistics.var)).astype(np.float32)

    return TransformObservation(Walk(), standardized, None)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (observed, "NormalizeObservation"),
        (transformed, "TransformObservation"),
        (lambda: NormalizeReward(Walk()), "NormalizeReward"),
        (lambda: TimeLimit(Cost(observed(), ("risk",)), 3), "NormalizeObservation"),
        (lambda: Normed(Walk()), "Normed"),
        (lambda: Cost(Adapted(), ("risk",)), "VecNormalize"),
        (lambda: FromSixTuple(Adapted()), "VecNormalize"),
    ],
)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_normaliser_in_the_factory_is_refused_by_name(make, name, vectorization):
    with pytest.raises(InputError, match=rf"contains .*{name}, .*network\.normalize_observations"):
        agent_on(make, vectorization=vectorization)


def test_one_of_several_factories_is_enough():
    def rewarded():
        return NormalizeReward(Walk())

    for vectorization in ("sync", "async"):
        with pytest.raises(InputError, match="NormalizeReward"):
            agent_on([Walk, rewarded], vectorization=vectorization)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: SyncVectorEnv([observed] * 2), "NormalizeObservation"),
        (lambda: AsyncVectorEnv([observed] * 2), "NormalizeObservation"),
        (lambda: AsyncVectorEnv([lambda: NormalizeReward(Walk())] * 2), "NormalizeReward"),
        (
            lambda: vector_wrappers.NormalizeObservation(SyncVectorEnv([Walk] * 2)),
            "vector.*NormalizeObservation",
        ),
        (
            lambda: vector_wrappers.RecordEpisodeStatistics(
                vector_wrappers.NormalizeReward(SyncVectorEnv([Walk] * 2))
            ),
            "vector.*NormalizeReward",
        ),
    ],
)
def test_a_normaliser_of_a_given_vector_environment_is_refused(make, name):
    envs = make()
    with pytest.raises(InputError, match=name):
        agent_on(envs)
    envs.close()


def test_a_vector_environment_of_another_package_is_refused_by_name():
    with pytest.raises(InputError, match=r"a VecNormalize of Stable-Baselines3, whose running"):
        agent_on(VecNormalize(None))


def test_a_registered_environment_with_one_is_refused_on_the_command_line(tmp_path):
    arguments = ["train", *TINY, f"env.id={odd('Normalized')}", "limit=1"]
    for vectorization in ("sync", "async"):
        more = [f"env.vectorization={vectorization}", "--out", str(tmp_path / vectorization)]
        result = CliRunner().invoke(app, [*arguments, *more])
        assert isinstance(result.exception, InputError)
        assert "NormalizeObservation" in str(result.exception)


def test_evaluation_and_loading_refuse_it_too(tmp_path):
    agent = agent_on(Walk)
    agent.save(tmp_path / "agent")
    with pytest.raises(InputError, match="NormalizeObservation"):
        agent.evaluate(4, env=observed)
    with pytest.raises(InputError, match="NormalizeObservation"):
        crl.load(tmp_path / "agent", env=observed)


def frozen():
    env = observed()
    env.obs_rms.mean, env.obs_rms.var = np.full(2, 1.0), np.full(2, 4.0)
    env.update_running_mean = False
    return env


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_frozen_statistics_are_constants_and_pass(vectorization):
    agent = agent_on(frozen, vectorization=vectorization)
    obs = agent.parts.collector.collect().obs
    assert np.allclose(obs, (0 - 1) / 2)
    agent.close()


def test_frozen_statistics_of_a_given_vector_environment_pass():
    envs = AsyncVectorEnv([frozen] * 2)
    assert agent_on(envs).train(16)["iteration"] == 1
    envs.close()
    require_no_statistics(Adapted(training=False))


@pytest.mark.parametrize(
    "make", [Walk, cartpole, lambda: gymnasium.wrappers.RecordEpisodeStatistics(cartpole())]
)
def test_other_wrappers_pass(make):
    require_no_statistics(make())


def test_fixed_statistics_of_ones_own_pass():
    class Scaled(gymnasium.ObservationWrapper):
        def __init__(self, env):
            super().__init__(env)
            self.mean, self.var = np.zeros(2), np.ones(2)

        def observation(self, obs):
            return obs

    require_no_statistics(Scaled(Walk()))


def test_the_numbers_of_a_bandit_are_no_statistics():
    class Bandit(Walk):
        def __init__(self):
            super().__init__()
            self.mean, self.var, self.count = 0.5, 1.0, 0

    require_no_statistics(Bandit())
    require_no_statistics(TimeLimit(Bandit(), 3))


class Hidden(gymnasium.ObservationWrapper):
    """Keeps a mean where nobody sees it."""

    def __init__(self, env):
        super().__init__(env)
        seen = []
        self.shift = lambda obs: (seen.append(obs), obs + 0.01 * len(seen))[1]

    def observation(self, obs):
        return self.shift(obs).astype(np.float32)


def test_check_cmdp_finds_both_kinds():
    errors = {f.check: f for f in crl.check_cmdp(observed).findings}
    assert errors["normalisers"].level == "error"
    hidden = {f.check: f for f in crl.check_cmdp(lambda: Hidden(Walk())).findings}
    assert hidden["normalisers"].level == "ok"
    assert hidden["observations repeatable"].level == "warning"
    result = CliRunner().invoke(app, ["check-env", odd("Normalized")])
    assert result.exit_code == 2
    assert "NormalizeObservation" in result.output
