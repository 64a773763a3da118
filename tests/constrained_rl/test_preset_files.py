"""`crl preset NAME > run.toml`, then `crl train run.toml …`: for which environment is the file?"""

import tomllib
import warnings

import pytest

from constrained_rl import cli
from constrained_rl.agent import Agent
from constrained_rl.config import RunConfig
from constrained_rl.envs import BUILT_IN
from constrained_rl.finite import save_cmdp
from constrained_rl.presets import PRESETS, OtherEnvironment, defaults
from constrained_rl.settings import merge, read_run_config, to_toml, validate
from tests.constrained_rl.helpers import DETOUR
from tests.constrained_rl.small_cmdps import coin
from tests.constrained_rl.test_cli import TINY, crl

__all__ = ["crl"]  # the fixture
HAZARD = "constrained_rl/PointHazard-v0"


@pytest.fixture
def write(crl, tmp_path):
    """What `crl preset …` prints, as a file."""

    def to_file(*arguments):
        code, out, err = crl("preset", *arguments)
        assert (code, err) == (0, "")
        file = tmp_path / "run.toml"
        file.write_text(out)
        return file

    return to_file


def run_config(*settings):
    return cli.run_config(None, [str(text) for text in settings])


@pytest.mark.parametrize("env_id", [*BUILT_IN, "CartPole-v1"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_file_without_an_environment_is_the_presets_own_defaults_on_any(write, name, env_id):
    file = write(name)
    assert "id" not in tomllib.loads(file.read_text())["env"]
    own = validate(RunConfig, merge(defaults(name, None), {"env": {"id": env_id}}), "own")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run_config(file, f"env.id={env_id}")
    # unset keys included: a critic's rate that an environment has would not fit the others
    assert found == own
    assert found.network.hidden == (64, 64)
    assert found.ppo.critic_learning_rate is None


@pytest.mark.parametrize("env_id", BUILT_IN)
def test_a_file_for_an_environment_is_what_is_known_to_work_there(write, env_id):
    expected = validate(RunConfig, defaults("scale_free", env_id), "known")
    assert run_config(write("scale_free", f"env.id={env_id}")) == expected


def test_a_short_file_leaves_the_rest_to_the_environment(tmp_path):
    (tmp_path / "mine.toml").write_text("preset = 'ppo'\n[ppo]\nclip = 0.3\n")
    found = run_config(tmp_path / "mine.toml", f"env.id={DETOUR}")
    expected = merge(defaults("ppo", DETOUR), {"ppo": {"clip": 0.3}})
    assert found == validate(RunConfig, expected, "short")


def test_a_file_for_one_environment_says_so_when_it_is_used_for_another(write):
    file = write("ppo", f"env.id={DETOUR}")
    said = f"holds the settings of {DETOUR}, which are used for {HAZARD}.*crl preset NAME env.id="
    with pytest.warns(OtherEnvironment, match=said):
        found = run_config(file, f"env.id={HAZARD}")
    assert found.env.id == HAZARD
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_config(file, f"env.id={DETOUR}").env.id == DETOUR
        assert run_config(file, "seed=4").seed == 4


def test_an_override_names_another_problem_than_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, limit in (("a", 0.5), ("b", 0.75)):
        save_cmdp(coin(limit=[limit]), tmp_path / f"{name}.npz")
    agent = Agent(run_config("env.file=a.npz", *TINY))
    (tmp_path / "config.toml").write_text(to_toml(agent.config))
    with pytest.warns(OtherEnvironment, match=r"a\.npz, which are used for b\.npz"):
        other = run_config("config.toml", "env.file=b.npz")
    assert (other.env.file, other.env.id, other.env.digest) == ("b.npz", "b.npz", None)
    with pytest.warns(OtherEnvironment):
        registered = run_config("config.toml", f"env.id={HAZARD}")
    assert (registered.env.file, registered.env.id) == (None, HAZARD)


def test_the_two_lines_of_the_readme_train(crl, write, tmp_path):
    file = write("ppo_lagrangian")
    steps = ("total_steps=256", "env.num_envs=4", "ppo.horizon=64", "device=cpu")
    quick = ("evaluation.every=0", f"env.id={HAZARD}", *steps)
    code, _, err = crl("train", file, *quick, "--out", tmp_path / "a")
    assert (code, err) == (0, "")
    config = read_run_config(tmp_path / "a")
    assert config.network.normalize_observations
    assert config.ppo.learning_rate == 3e-4
    # the run's own file, used again, and for another environment
    code, _, err = crl("train", tmp_path / "a/config.toml", "seed=1", "--out", tmp_path / "b")
    assert (code, err) == (0, "")
    again = ("train", tmp_path / "a/config.toml", f"env.id={DETOUR}", "--out", tmp_path / "c")
    code, _, err = crl(*again)
    assert code == 0
    assert err.startswith(f"warning: {tmp_path}/a/config.toml holds the settings of {HAZARD}")
