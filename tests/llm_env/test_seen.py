"""Prompts that a model is measured on and has learned from are named, whoever measures."""

import re
import shutil
import warnings

import pytest

from constrained_rl.distributed import World
from constrained_rl.settings import to_toml, validate
from llm_env.data.digests import prompt_digest, share_of
from llm_env.data.seen import SeenWarning, learned_from
from llm_env.data_sources import read_demonstrations
from llm_env.fitting.config import SFTRunConfig
from llm_env.fitting.work import read_parts
from llm_env.training.build import build
from llm_env.training.config import TrainConfig
from tests.llm_env.data_files import pku, write
from tests.llm_env.test_score_kinds import home as models  # noqa: F401 — a fixture

SEEN = [f"can you help with {i}?" for i in range(8)]
FRESH = [f"what is {i}?" for i in range(8)]


def text(path, prompts):
    path.write_text("".join(f"{prompt}\n" for prompt in prompts))
    return str(path)


def train_config(models, folder, asked, **more):  # noqa: F811
    source = {"sign_check": "off"}
    tree = {
        "device": "cpu",
        "policy": {"path": str(models / "policy")},
        "reward": {**source, "path": str(models / "reward"), "direction": "higher_is_better"},
        "costs": {"harm": {**source, "path": str(models / "cost"), "direction": "higher_is_worse"}},
        "prompts": [{"path": text(folder / "trained.txt", SEEN)}],
        "align": {"prompts": 4, "max_new_tokens": 4},
        "evaluation": {"prompts": [{"path": text(folder / "asked.txt", asked)}]},
    }
    return validate(TrainConfig, {**tree, **more}, "test")


def test_a_run_names_held_out_prompts_that_it_trains_on(models, tmp_path):  # noqa: F811
    # another spacing is the same prompt
    config = train_config(models, tmp_path, [*FRESH[:5], *SEEN[:2], "can  you help with 2?"])
    with pytest.warns(SeenWarning, match=r"3 of 8 prompts of evaluation.prompts .* help with 0"):
        build(config, World())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(train_config(models, tmp_path, FRESH), World())


def test_demonstrations_count_only_where_they_are_imitated(models, tmp_path):  # noqa: F811
    shown = write(tmp_path / "d.jsonl", [{"prompt": FRESH[0], "response": "use fire"}])
    more = {"demonstrations": [{"path": str(shown)}]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(train_config(models, tmp_path, FRESH, **more), World())
    more["align"] = {"prompts": 4, "max_new_tokens": 4, "ptx_coefficient": 1.0}
    with pytest.warns(SeenWarning, match="1 of 8 prompts"):
        build(train_config(models, tmp_path, FRESH, **more), World())


def test_a_fit_names_held_out_rows_that_it_learns_from(tmp_path):
    rows = [{"prompt": prompt, "response": "no"} for prompt in SEEN]
    data = write(tmp_path / "a.jsonl", rows)
    held = write(tmp_path / "b.jsonl", [*rows[:3], {"prompt": FRESH[0], "response": "no"}])
    tree = {"model": {"path": "x"}, "data": [{"path": str(data)}]}
    config = validate(SFTRunConfig, {**tree, "held_out": [{"path": str(held)}]}, "t")
    with pytest.warns(SeenWarning, match=r"3 of 4 prompts of held_out are trained on by this fit"):
        read_parts(config, read_demonstrations)


@pytest.fixture
def run(models, tmp_path):  # noqa: F811
    """A run of RL on top of an SFT fit, of which only folders and configs are there."""
    rows = [{"prompt": prompt, "response": "no"} for prompt in FRESH]
    data = write(tmp_path / "shown.jsonl", rows)
    fit = {"data": [{"path": str(data)}], "held_out_share": 0.5}
    shutil.copytree(models / "policy", tmp_path / "sft/model")
    shutil.copytree(models / "policy", tmp_path / "run/policy")
    start = {"model": {"path": str(models / "policy")}}
    (tmp_path / "sft/config.toml").write_text(to_toml(validate(SFTRunConfig, {**fit, **start}, "")))
    config = train_config(models, tmp_path, [], policy={"path": str(tmp_path / "sft/model")})
    (tmp_path / "run/config.toml").write_text(to_toml(config))
    return tmp_path / "run"


def test_what_a_model_learned_from_stands_in_the_configs_behind_it(run, models):  # noqa: F811
    shown = [prompt for prompt in FRESH if share_of(prompt_digest(prompt)) >= 0.5]
    assert 0 < len(shown) < len(FRESH)
    assert learned_from(run / "policy") == {prompt_digest(p) for p in [*SEEN, *shown]}
    assert learned_from(models / "policy") == set()
    (run.parent / "trained.txt").unlink()
    assert learned_from(run / "policy") == {prompt_digest(p) for p in shown}


def test_evaluate_names_them_on_the_command_line(run, models, tmp_path, monkeypatch, crl):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    asked = text(tmp_path / "q.txt", [*SEEN[:3], "new"])
    small = ["max_new_tokens=2", "device=cpu", 'modes=["greedy"]', "--reward", models / "reward"]
    options = ["aligned=" + str(run / "policy"), "--prompts", asked, "reward.sign_check=off"]
    code, _, error = crl("llm", "evaluate", *options, *small)
    assert code == 0, error
    said = (
        "3 of 4 prompts of this evaluation are trained on by aligned, e.g. 'can you help with 0?'"
    )
    assert said in " ".join(error.split())


def test_calibrate_names_them_on_the_command_line(models, tmp_path, monkeypatch, crl):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    data = write(tmp_path / "pairs.jsonl", [pku("how?", safe=(True, False), better=1)] * 2)
    shutil.copytree(models / "cost", tmp_path / "fit/model")
    config = f'task = "score"\nkind = "cost"\nheld_out_share = 0.0\ndata = [{{path = "{data}"}}]\n'
    (tmp_path / "fit/config.toml").write_text(config + '[model]\npath = "x"\n')
    code, _, error = crl("llm", "calibrate", "--cost-model", "fit/model", "--data", data)
    said = "2 of 2 prompts of .*pairs.jsonl are trained on by cost model fit/model"
    assert re.search(said, " ".join(error.split())), (code, error)
