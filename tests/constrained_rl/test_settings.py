import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from constrained_rl.agent import ppo_lagrangian
from constrained_rl.config import PPOConfig, RunConfig
from constrained_rl.constraint_config import WindowConfig
from constrained_rl.envs import BUILT_IN
from constrained_rl.errors import InputError
from constrained_rl.multiplier_config import GradientConfig, PIDConfig
from constrained_rl.presets import PRESETS, SUMMARIES, defaults
from constrained_rl.settings import merge, parse_override, read_layers, read_toml, to_toml, validate


def run_config(*overrides, name="pid_lagrangian", file=None):
    tree, source = read_layers(file, overrides)
    return validate(RunConfig, merge(defaults(name, None), tree), source)


def problems(*overrides, **where):
    with pytest.raises(InputError) as error:
        run_config(*overrides, **where)
    return str(error.value)


# overrides


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("seed=3", {"seed": 3}),
        ("ppo.clip=0.3", {"ppo": {"clip": 0.3}}),
        ("limit=[1, 2.5]", {"limit": [1, 2.5]}),
        ("constrained=false", {"constrained": False}),
        ("env.id=CartPole-v1", {"env": {"id": "CartPole-v1"}}),
        ("env.id='a=b'", {"env": {"id": "a=b"}}),
        ("env.kwargs={horizon = 9}", {"env": {"kwargs": {"horizon": 9}}}),
        (" seed = 3", {"seed": 3}),
    ],
)
def test_an_override_is_a_path_and_a_toml_value_or_else_a_string(text, tree):
    assert parse_override(text) == tree


@pytest.mark.parametrize("text", ["seed", "=3", " =3"])
def test_what_is_no_override_is_refused_with_an_example(text):
    with pytest.raises(InputError, match=r"key\.path=value, e\.g\."):
        parse_override(text)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("learning_rate=1", "ppo.learning_rate or multiplier.learning_rate"),
        ("num_envs=3", "env.num_envs or evaluation.num_envs"),  # and not env, which is near too
        ("ppo.num_envs=3", "env.num_envs or evaluation.num_envs"),
        ("learningrate=1", "ppo.learning_rate or multiplier.learning_rate"),
        ("hiden=[3]", "network.hidden"),
        ("decay=0.3", "constraint.estimator.decay"),
        ("ppo.limit=3", "limit"),
    ],
)
def test_a_key_in_the_wrong_section_is_shown_its_own(text, places):
    key = text.partition("=")[0]
    assert f"{key}: unknown key; did you mean {places}?" in problems(text)


def test_a_near_key_of_the_section_comes_before_one_of_another():
    assert "did you mean 'epochs'?" in problems("ppo.epoch=3")
    assert "did you mean 'limit'?" in problems("limt=3")


def test_python_is_told_how_a_nested_key_is_written():
    said = r"learning_rate: unknown key; did you mean ppo\.learning_rate"
    with pytest.raises(InputError, match=said) as error:
        ppo_lagrangian("constrained_rl/Detour-v0", learning_rate=1e-3)
    assert "a.b is written a={'b': …}" in str(error.value)


def test_the_command_line_beats_the_file_and_the_file_the_preset(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("seed = 1\n[multiplier]\nkp = 9\nki = 8\n")
    config = run_config("multiplier.ki=7", file=file)
    assert (config.seed, config.multiplier.kp, config.multiplier.ki) == (1, 9, 7)
    assert config.multiplier.relative  # the preset's


# errors


def test_an_unknown_key_names_the_nearest():
    assert "ppo.epoch: unknown key; did you mean 'epochs'?" in problems("ppo.epoch=3")
    assert "did you mean 'limit'" in problems("limits=3")
    assert "did you mean 'size'" in problems(
        "constraint.estimator.kind=window", "constraint.estimator.sise=3"
    )


def test_an_unknown_key_far_from_all_lists_what_there_is():
    assert "known keys: bounds, deviation, hidden, normalize_observations" in problems(
        "network.xyz=3"
    )


def test_an_unknown_key_of_a_controller_names_keys_of_that_controller_only():
    text = problems("multiplier.kind=gradient", "multiplier.kp=1")
    assert "learning_rate" in text
    assert "derivative_delay" not in text


def test_all_problems_are_reported_at_once_with_path_and_value():
    text = problems("ppo.clip=-1", "seed=two", "ppo.schedule=cosin", "checkpoint.evry=3")
    assert "4 problem(s)" in text
    assert "ppo.clip: found -1" in text
    assert "seed: found 'two'" in text
    assert "ppo.schedule: found 'cosin'" in text
    assert "'linear'" in text  # what it could be
    assert "checkpoint.evry: unknown key; did you mean 'every'?" in text


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "[1.0, inf]"])
def test_a_limit_that_is_no_number_is_refused(value):
    assert "limit" in problems(f"limit={value}")


@pytest.mark.parametrize(
    "bad",
    ["ppo.gamma=1.5", "ppo.epochs=0", "total_steps=0", "seed=-1", "multiplier.kp=nan"],
)
def test_values_out_of_bounds_are_refused(bad):
    path = bad.partition("=")[0]
    assert path.split(".")[-1] in problems(bad)


def test_a_table_where_a_number_belongs_is_refused():
    assert "seed" in problems("seed.x=3")


def test_an_unknown_controller_lists_those_there_are():
    text = problems("multiplier.kind=adam")
    assert "'fixed', 'gradient', 'pid'" in text


def test_the_file_is_named_in_its_errors(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("sed = 1\n")
    assert str(file) in problems(file=file)
    file.write_text("seed = \n")
    assert "line 1" in problems(file=file)
    assert "does not exist" in problems(file=tmp_path / "other.toml")
    file.write_bytes(b"\xff\xfe\x00")
    assert "not readable as TOML" in problems(file=file)


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(InputError, match="ppo_lagrangian, pid_lagrangian"):
        defaults("ppolag", None)


# tagged unions


def test_an_inline_table_of_another_kind_replaces_the_presets():
    config = run_config("multiplier={kind = 'gradient', learning_rate = 0.1}")
    assert config.multiplier == GradientConfig(learning_rate=0.1)


@pytest.mark.parametrize("order", [1, -1])
def test_a_kind_and_its_settings_may_be_overridden_in_any_order(order):
    overrides = ["multiplier.kind=gradient", "multiplier.learning_rate=0.1"][::order]
    assert run_config(*overrides).multiplier == GradientConfig(learning_rate=0.1)
    overrides = ["constraint.estimator.kind=window", "constraint.estimator.size=9"][::order]
    assert run_config(*overrides).constraint.estimator == WindowConfig(size=9)


def test_the_same_kind_keeps_what_is_not_overridden():
    config = run_config("multiplier.kind=pid", "multiplier.ki=0.2")
    assert config.multiplier == PIDConfig(kp=1.0, ki=0.2, relative=True)


def test_a_kind_in_a_file_replaces_the_presets(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[multiplier]\nkind = 'gradient'\noptimizer = 'adam'\n")
    config = run_config("multiplier.learning_rate=0.1", file=file)
    assert config.multiplier == GradientConfig(learning_rate=0.1, optimizer="adam")


tables = st.dictionaries(
    st.sampled_from("abc"), st.one_of(st.integers(), st.just({}), st.just({"x": 1})), max_size=3
)


@given(tables, tables)
def test_merging_keeps_what_is_not_overridden_and_changes_neither(base, over):
    kept = {**base}
    merged = merge(base, over)
    assert base == kept
    assert set(merged) == set(base) | set(over)
    assert merge(base, {}) == base
    assert merge({}, over) == over
    assert merge(merged, over) == merged  # a second time changes nothing


# round trip


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_toml(name, tmp_path):
    config = run_config(name=name)
    file = tmp_path / "c.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    assert RunConfig.model_validate(read_toml(file)) == config
    assert config.preset == name


@given(
    limit=st.one_of(
        st.none(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=3),
    ),
    clip=st.floats(1e-6, 1e6),
    hidden=st.lists(st.integers(1, 512), max_size=3),
    kind=st.sampled_from(["fixed", "gradient", "pid"]),
    env_id=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_config_survives_toml(tmp_path_factory, limit, clip, hidden, kind, env_id):
    tree = {
        "limit": limit,
        "ppo": {"clip": clip},
        "network": {"hidden": hidden},
        "multiplier": {"kind": kind},
        "env": {"id": env_id, "kwargs": {"flag": True, "list": [1, 2], "deep": {"a": "b"}}},
    }
    config = RunConfig.model_validate(tree)
    file = tmp_path_factory.mktemp("toml") / "c.toml"
    file.write_text(to_toml(config), encoding="utf-8", newline="")
    assert RunConfig.model_validate(read_toml(file)) == config


@pytest.mark.parametrize("env_id", BUILT_IN)
@pytest.mark.parametrize("name", PRESETS)
def test_settings_of_built_in_environments_are_valid_and_named(name, env_id):
    config = validate(RunConfig, defaults(name, env_id), "built in")
    assert (config.preset, config.env.id) == (name, env_id)
    assert config.constrained == (name != "ppo")


def test_configs_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().seed = 1


def test_every_setting_is_described():
    for model in (RunConfig, PPOConfig, PIDConfig, GradientConfig):
        undescribed = [n for n, field in model.model_fields.items() if not field.description]
        assert undescribed == []
    assert set(SUMMARIES) == set(PRESETS)


def test_environments_need_critics():
    with pytest.raises(InputError, match=r"environments need ppo\.advantage='gae'"):
        validate(RunConfig, {"ppo": {"advantage": "leave_one_out", "gamma": 1.0}}, "test")
