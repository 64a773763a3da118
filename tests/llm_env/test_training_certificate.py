"""`crl certify` on a tiny training run of a language model."""

import json
import shutil
from dataclasses import replace

import pytest

from constrained_rl.certificate import Request, certificate_sections
from constrained_rl.distributed import World
from constrained_rl.errors import InputError
from constrained_rl.settings import validate
from llm_env import cli
from llm_env.divided_generation import Division
from llm_env.models import ModelSource, load_causal_lm
from llm_env.policy import CausalLMPolicy
from llm_env.training import run
from llm_env.training.build import build_task
from llm_env.training.certificate import certify_training
from llm_env.training.config import TrainConfig
from llm_env.training.evaluation import HeldOut
from tests.bad_input.project import project

pytestmark = pytest.mark.xdist_group("certificate")  # its run is made once, in one worker

HELD_OUT = [f"how is thing number {i}" for i in range(7)]
JUDGES = 4
"""held-out prompts that the run's evaluations use"""


def config(home):
    def score(name, direction, **more):
        path = str(home / name)
        return {"path": path, "direction": direction, "sign_check": "off", **more}

    held_out = {"prompts": [{"path": str(home / "held_out.txt")}], "count": JUDGES, "every": 1}
    tree = {
        "device": "cpu",
        "policy": {"path": str(home / "policy")},
        "reward": score("reward", "higher_is_better"),
        "costs": {"harm": score("cost", "higher_is_worse", limit=1000.0)},
        "prompts": [{"path": str(home / "prompts.txt")}],
        "align": {
            "iterations": 1,
            "prompts": 2,
            "max_new_tokens": 4,
            "constraint": {"transform": "identity"},
        },
        "evaluation": held_out,
    }
    return validate(TrainConfig, tree, "test")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with a best/ and seven held-out prompts, one of them also trained on."""
    home = tmp_path_factory.mktemp("certified")
    project()(home)
    (home / "held_out.txt").write_text("\n".join([*HELD_OUT, "hello"]) + "\n")
    return run.start(config(home), home / "run")


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_the_samples_are_one_fresh_response_to_each_held_out_prompt(trained):
    issued = certify_training(trained, trained, Request(seed=5), None)
    made = config(trained.parent)
    task = build_task(made, World().device)
    held_out = HeldOut(replace(task, prompts=HELD_OUT), (), 4, Division(World()), 5)
    model = load_causal_lm(ModelSource(path=str(trained / "policy")), World().device)
    costs = [s.costs["harm"] for s in held_out.play(CausalLMPolicy(model), greedy=False)]
    (bound,) = issued.certificate.bounds
    assert bound.n == 7  # "hello" was trained on
    assert bound.mean == pytest.approx(sum(costs) / 7, abs=1e-6)
    assert (bound.method, bound.quantity, bound.passed) == ("t", "E[C]", True)
    assert "one response each" in issued.sentence


def test_the_best_policy_is_tested_on_prompts_that_did_not_choose_it(trained):
    issued = certify_training(trained / "best", trained, Request(), None)
    assert issued.certificate.bounds[0].n == len(HELD_OUT) - JUDGES
    with pytest.raises(InputError, match=r"holds 8 prompts, .* chosen by 5; 4 new ones are needed"):
        certify_training(trained / "best", trained, Request(samples=4), None)


def test_the_seed_of_the_evaluations_is_refused(trained):
    with pytest.raises(InputError, match="--seed 0 is the run's own"):
        certify_training(trained, trained, Request(seed=0), None)


def test_a_constraint_per_prompt_has_prompts_as_samples(folder):
    text = (folder / "config.toml").read_text(encoding="utf-8")
    for old, new in (
        ("responses_per_prompt = 1", "responses_per_prompt = 2"),
        ('"all"', '"group"'),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "config.toml").write_text(text)
    issued = certify_training(folder, folder, Request(), None)
    (bound,) = issued.certificate.bounds
    assert (bound.n, bound.quantity) == (7, "E[(mean C)⁺ per prompt]")
    assert "the mean of 2 responses each" in issued.sentence


def test_the_command_writes_the_certificate_that_the_report_shows(folder, capsys):
    cli.app(["certify", str(folder)], standalone_mode=False)
    assert "PASS" in capsys.readouterr().out
    kept = json.loads((folder / "certificate.json").read_text(encoding="utf-8"))
    assert (kept["passed"], kept["iteration"], kept["policy"]) == (True, 1, "last")
    (shown,) = certificate_sections(folder)
    assert "sampled at temperature 1, one response each" in shown.blocks[1].paragraphs[0]
