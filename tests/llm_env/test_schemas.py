"""`crl llm schema` and the shell's completion know the config of every command."""

import json

import pytest
from typer.main import get_command

from constrained_rl.describe import settings_of
from llm_env.cli import app
from llm_env.fitting.config import SCORE_DEFAULTS, SFT_DEFAULTS, ScoreRunConfig, SFTRunConfig
from llm_env.schemas import Command, complete, config_of


@pytest.mark.parametrize("command", Command)
def test_every_key_of_every_command_has_a_meaning_and_a_type(command):
    found = settings_of(config_of(command))
    assert [s.path for s in found if not (s.meaning and s.type)] == []
    assert len({(s.path, s.when) for s in found}) == len(found)


@pytest.mark.parametrize("command", Command)
def test_a_shell_completes_the_keys_of_every_command(command):
    found = get_command(app).commands["llm"].commands[command]
    (argument,) = [p for p in found.params if p.param_type_name == "argument"]
    key = next(s.path for s in settings_of(config_of(command)) if "[]" not in s.path)
    offered = argument.shell_complete(found.make_context("x", [], resilient_parsing=True), key)
    assert f"{key}=" in [item.value for item in offered]


def test_a_cost_that_is_given_a_name_has_keys():
    offer = complete(Command.train)
    assert offer("costs.harm.dir") == ["costs.harm.direction="]
    assert offer("costs.harm.direction=") == [
        "costs.harm.direction=higher_is_better",
        "costs.harm.direction=higher_is_worse",
    ]


def test_schema_prints_the_config_of_the_command_that_is_named(crl):
    code, out, _ = crl("llm", "schema", "score")
    assert code == 0
    assert json.loads(out)["title"] == "ScoreRunConfig"
    code, out, _ = crl("llm", "schema", "serve-scores", "--format", "markdown")
    assert code == 0
    assert "| `costs.NAME.direction` |" in out
    code, out, _ = crl("llm", "schema")
    assert json.loads(out)["title"] == "CompareConfig"
    code, _, errors = crl("llm", "schema", "chat")
    assert code == 2
    assert "serve-scores" in errors


@pytest.mark.parametrize(
    ("model", "recommended"), [(SFTRunConfig, SFT_DEFAULTS), (ScoreRunConfig, SCORE_DEFAULTS)]
)
def test_the_defaults_that_are_shown_are_those_that_are_used(model, recommended):
    shown = {s.path: s.default for s in settings_of(model)}
    for name, value in recommended.items():
        assert shown[f"fit.{name}"] == json.dumps(value)
