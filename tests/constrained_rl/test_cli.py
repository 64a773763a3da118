import json
import os
import sys

import pytest
from typer.testing import CliRunner

from constrained_rl.cli import SchemaForm, app, envs, run_cli, schema, split_settings
from constrained_rl.config import RunConfig
from constrained_rl.describe import settings_of
from constrained_rl.envs import BUILT_IN
from constrained_rl.errors import InputError
from constrained_rl.logging import read_metrics
from constrained_rl.presets import PRESETS
from tests.constrained_rl.helpers import CARTPOLE

TINY = (
    *("env.num_envs=4", "ppo.horizon=8", "ppo.epochs=1", "ppo.minibatches=1"),
    *("network.hidden=[4]", "total_steps=64", "device=cpu"),
)


@pytest.fixture
def crl(monkeypatch, capsys):
    """Run a command line as the console script does; returns exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["crl", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "500")
        with pytest.raises(SystemExit) as stop:
            run_cli(app)
        output = capsys.readouterr()
        return stop.value.code or 0, output.out, output.err

    return call


def test_piped_environments_are_one_plain_id_per_line():
    result = CliRunner().invoke(app, ["envs"])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == list(BUILT_IN)


def test_piped_presets_are_one_plain_name_per_line():
    result = CliRunner().invoke(app, ["presets"])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == list(PRESETS)


def test_without_a_command_help_is_shown():
    result = CliRunner().invoke(app, [])
    assert all(name in result.output for name in ("envs", "train", "resume"))


def test_a_run_is_trained_into_a_new_directory_and_resumed_to_nothing(crl, tmp_path):
    folder = tmp_path / "run"
    code, out, _ = crl("train", *TINY, "--preset", "ppo_lagrangian", "--out", folder)
    assert code == 0
    assert f"finished: {folder}" in out
    assert len(read_metrics(folder / "metrics.jsonl")) == 2
    code, out, _ = crl("resume", folder)
    assert code == 0
    assert "nothing to do" in out


def test_the_default_directory_names_preset_environment_and_seed(crl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert crl("train", *TINY, "seed=7")[0] == 0
    (folder,) = (tmp_path / "runs" / "scale_free-constrained_rl_Detour-v0").iterdir()
    assert folder.name.endswith("-s7")


def test_a_config_file_and_overrides_are_read(crl, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("seed = 5\ntotal_steps = 32\n[multiplier]\nkind='gradient'\n")
    overrides = [s for s in TINY if "total_steps" not in s]
    folder = tmp_path / "run"
    code, _, err = crl("train", file, *overrides, "multiplier.learning_rate=0.5", "--out", folder)
    assert code == 0, err
    text = (folder / "config.toml").read_text()
    assert "seed = 5" in text
    assert "learning_rate = 0.5" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "ppo.epoch=3"], "did you mean 'epochs'?"),
        (["train", "limit=nan"], "limit"),
        (["train", "env.id=[1]"], "env.id: found [1]"),
        (["train", "env=1"], "env: found 1"),
        (["train", "missing.toml"], "config file missing.toml does not exist"),
        (["train", "a.toml", "b.toml"], "give at most one"),
        (["train", "env.id=Detuor-v0"], "constrained_rl/Detour-v0"),
        (["train", "--preset", "ppolag"], "choose from ppo, static_shaping"),
        (["train", "limit=[1, 2]"], "limit has 2 entries"),
        (["train", "env.id=CartPole-v1", "limit=1"], 'info["cost"]'),
        (["resume", "nowhere"], "nowhere is not a run directory"),
        (["train", "--nonsense"], "--nonsense"),
        (["fly"], "fly"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(crl, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = crl(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err
    assert os.listdir(tmp_path) == []


def test_an_existing_run_is_refused_and_untouched(crl, tmp_path):
    (tmp_path / "policy.safetensors").write_text("precious")
    code, _, err = crl("train", *TINY, "--out", tmp_path)
    assert code == 2
    assert "nothing was changed" in err
    assert f"crl resume {tmp_path}" in err
    assert os.listdir(tmp_path) == ["policy.safetensors"]
    assert (tmp_path / "policy.safetensors").read_text() == "precious"


def test_numbers_that_are_none_end_with_exit_code_2_and_what_to_do(crl, tmp_path):
    settings = (f"env.id={CARTPOLE}", "limit=1", "env.kwargs={poison_after = 9}")
    code, _, err = crl("train", *TINY, *settings, "--out", tmp_path / "run")
    assert code == 2
    assert "rollout reward" in err
    assert "crl resume" in err


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["crl", "--debug", "train", "seed=x"])
    with pytest.raises(InputError, match="seed"):
        run_cli(app)


def test_the_config_file_may_stand_anywhere_among_the_overrides():
    file, overrides = split_settings(["a=1", "c.toml", "b=2"])
    assert (str(file), overrides) == ("c.toml", ["a=1", "b=2"])
    assert split_settings([]) == (None, [])


@pytest.mark.parametrize("width", [80, 120])
def test_tables_show_every_id_and_key_whole(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    envs()
    schema(SchemaForm.table)
    out = capsys.readouterr().out
    assert all(name in out for name in BUILT_IN)
    assert all(setting.path in out for setting in settings_of(RunConfig))
    assert "[number ≥ 0" in out  # of ppo.betas: no markup
    assert "m…" not in out  # cut words, as in sub-environm…


def test_a_run_is_evaluated_by_name_and_an_unfinished_one_with_its_iteration(crl, tmp_path):
    folder = tmp_path / "run"
    crl("train", *TINY, "checkpoint.every=1", "evaluation.every=0", "--out", folder)
    code, out, _ = crl("evaluate", folder, "--episodes", 4, "--json")
    assert code == 0
    rows = json.loads(out)["policies"]
    assert [(r["policy"], r["mode"], r["episodes"]) for r in rows] == [
        ("last", "sampled", 4),
        ("last", "deterministic", 4),
    ]
    (folder / "policy.safetensors").unlink()
    _, out, _ = crl("evaluate", folder, "--episodes", 4)
    assert "last (iteration 2)" in out
