import json
import tomllib
from typing import Literal

import pytest
from pydantic import Field
from typer.testing import CliRunner

from constrained_rl.cli import app
from constrained_rl.config import RunConfig
from constrained_rl.describe import completions, settings_of, to_commented_toml, to_markdown
from constrained_rl.multiplier_config import FixedConfig, GradientConfig
from constrained_rl.presets import PRESETS, defaults
from constrained_rl.sections import Section
from constrained_rl.settings import validate

RUNNER = CliRunner()
SETTINGS = {setting.path: setting for setting in settings_of(RunConfig)}


@pytest.mark.parametrize("setting", settings_of(RunConfig), ids=lambda s: s.path)
def test_every_key_has_a_meaning_and_a_type(setting):
    assert setting.meaning
    assert setting.type


def test_types_and_bounds_are_words():
    assert SETTINGS["seed"].type == "integer ≥ 0"
    assert SETTINGS["ppo.clip"].type == "number > 0"
    assert SETTINGS["ppo.gamma"].type == "number ≥ 0 and ≤ 1"
    assert SETTINGS["ppo.target_kl"].type == "number > 0 or unset"
    assert SETTINGS["ppo.target_kl"].default == "—"
    assert SETTINGS["network.hidden"].type == "list of integer ≥ 1"
    assert SETTINGS["constrained"].type == "boolean"
    assert SETTINGS["constraint.transform"].default == '"identity"'


def test_a_key_of_one_kind_of_section_says_so():
    assert SETTINGS["multiplier.kd"].when == 'multiplier.kind = "pid"'
    assert SETTINGS["multiplier.weight"].when == 'multiplier.kind = "fixed"'
    assert SETTINGS["multiplier.kind"].type == '"fixed" | "gradient" | "pid" | "scale_free"'
    assert SETTINGS["multiplier.kind"].when == SETTINGS["ppo.clip"].when == ""


class Item(Section):
    """A section of which there are several."""

    path: str
    """where"""
    kind: Literal["a", "b"] = "a"
    """which"""


class Several(Section):
    """Sections in a list and in a table."""

    files: tuple[Item, ...] = Field(min_length=1)
    """a list"""
    named: dict[str, Item] = Field({})
    """a table"""


def test_sections_in_lists_and_tables_are_opened():
    found = {setting.path: setting for setting in settings_of(Several)}
    assert list(found) == [
        "files", "files[].path", "files[].kind", "named", "named.NAME.path", "named.NAME.kind",
    ]  # fmt: skip
    assert found["files"].default == found["named.NAME.path"].default == "required"
    assert found["files[].kind"].default == '"a"'


def test_a_shell_completes_below_a_name_that_was_typed():
    assert completions(Several, "nam") == ["named="]
    assert completions(Several, "named.harm.") == ["named.harm.kind=", "named.harm.path="]
    assert completions(Several, "named.harm.kind=") == ["named.harm.kind=a", "named.harm.kind=b"]
    assert completions(Several, "files") == ["files="]  # an item of a list has no key of its own


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("env", ["constrained_rl/Detour-v0", "CartPole-v1"])
def test_a_printed_preset_reads_back_as_itself(name, env):
    config = validate(RunConfig, {**defaults(name, env), "limit": [1.0, -2.5]}, "test")
    text = to_commented_toml(config)
    assert validate(RunConfig, tomllib.loads(text), "printed") == config


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(multiplier=FixedConfig(weight=(0.5, 2.0))),
        RunConfig(multiplier=GradientConfig(learning_rate=1e-7)),
        validate(RunConfig, {"env": {"kwargs": {"a": [1, 2], "b": {"c": "d"}}}}, "test"),
    ],
)
def test_commented_toml_reads_back(config):
    assert RunConfig.model_validate(tomllib.loads(to_commented_toml(config))) == config


def test_commented_toml_explains_every_key():
    lines = to_commented_toml(RunConfig()).splitlines()
    index = lines.index("clip = 0.2")
    assert lines[index - 1] == "# ratio clip ε (number > 0)"
    assert "# target_kl =" in lines  # unset, but there to be found
    assert '# controller ("fixed" | "gradient" | "pid" | "scale_free")' in lines


def test_markdown_has_a_row_per_key():
    lines = to_markdown(RunConfig).splitlines()
    assert len(lines) == 2 + len(settings_of(RunConfig))
    assert all(line.replace("\\|", "").count("|") == 5 for line in lines)


def test_completion_offers_keys_then_values():
    assert completions(RunConfig, "ppo.cl") == ["ppo.clip="]
    assert completions(RunConfig, "multiplier.kind=") == [
        "multiplier.kind=fixed",
        "multiplier.kind=gradient",
        "multiplier.kind=pid",
        "multiplier.kind=scale_free",
    ]
    assert completions(RunConfig, "constrained=f") == ["constrained=false"]
    assert completions(RunConfig, "seed=") == []


def run(*arguments, **options):
    result = RUNNER.invoke(app, arguments, **options)
    assert result.exit_code == 0, result.output
    return result.output


def test_schema_is_json_schema_with_descriptions():
    schema = json.loads(run("schema"))
    assert schema["$defs"]["PPOConfig"]["properties"]["clip"]["exclusiveMinimum"] == 0
    assert schema["$defs"]["PPOConfig"]["properties"]["clip"]["description"] == "ratio clip ε"


def test_schema_prints_for_docs_and_for_people():
    assert run("schema", "--format", "markdown") == to_markdown(RunConfig)
    assert "ppo.clip" in run("schema", "--format", "table", env={"COLUMNS": "200"})


def test_preset_prints_what_train_would_use():
    text = run("preset", "ppo_lagrangian", "env.id=constrained_rl/PointHazard-v0", "ppo.clip=0.3")
    tree = tomllib.loads(text)
    assert tree["multiplier"]["kind"] == "gradient"
    assert tree["ppo"]["clip"] == 0.3
    assert tree["ppo"]["entropy"] == 0.001  # known to work there


def test_the_shell_completes_settings(monkeypatch):
    environment = {"_ROOT_COMPLETE": "complete_bash", "COMP_WORDS": "x train ppo.cl"}
    result = RUNNER.invoke(app, [], prog_name="root", env={**environment, "COMP_CWORD": "2"})
    assert "ppo.clip=" in result.output
