"""A folder that says what its score is, and sources that contradict it."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from constrained_rl.errors import InputError
from llm_env.collectors import by_model
from llm_env.env import TokenEnv
from llm_env.preferences import CostPair, RewardPair
from llm_env.score_formats import load_score_model, save_beaver
from llm_env.score_functions import load_scores, load_text_scores
from llm_env.score_kinds import stated_kind
from llm_env.score_sources import CostSource, ScoreSource
from llm_env.score_training import ScoreConfig, train_score_model
from llm_env.scoring import ScoreModel
from tests.llm_env.data_files import pku, write
from tests.llm_env.families import family_tokenizer, save_family

CPU = torch.device("cpu")
UP, DOWN = "higher_is_better", "higher_is_worse"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A policy, a reward model and a cost model, trained by one step each."""
    home = tmp_path_factory.mktemp("kinds")
    model = AutoModelForCausalLM.from_pretrained(save_family("llama", home / "policy"))
    tokenizer = AutoTokenizer.from_pretrained(home / "policy")
    pairs = {"reward": RewardPair("p", "a", "b"), "cost": CostPair("p", "a", "b", 1, -1)}
    for kind, pair in pairs.items():
        generator = torch.Generator().manual_seed(0)
        score = ScoreModel.from_causal_lm(model, generator=generator)
        train_score_model(score, tokenizer, [pair], kind, ScoreConfig(), generator)
        score.save_pretrained(home / kind, tokenizer)
    (home / "prompts.txt").write_text("how do i bake bread\nhello\n")
    write(home / "pairs.jsonl", [pku(safe=(True, False), better=1)] * 2)
    return home


def source(folder, direction, of=ScoreSource):
    return of(path=str(folder), direction=direction, sign_check="off")


def test_a_fitted_folder_says_what_it_is(home):
    for kind in ("reward", "cost"):
        assert json.loads((home / kind / "score_head.json").read_text())["kind"] == kind
        assert (
            ScoreModel.from_pretrained(home / kind).kind == stated_kind(home / kind, "crl") == kind
        )


@pytest.mark.parametrize(
    ("reward", "up", "cost", "down", "said"),
    [
        ("cost", UP, "reward", DOWN, "reward 'reward': .*cost is a cost model .*swapped"),
        ("reward", UP, "cost", UP, "cost 'harm': .*cost is a cost model .*higher_is_better"),
        ("reward", DOWN, "cost", DOWN, "reward 'reward': .*reward is a reward model"),
        ("cost", UP, "cost", DOWN, "reward 'reward' and cost 'harm' are one and the same score"),
        ("reward", UP, "reward", DOWN, "reward 'reward' and cost 'harm' are one and the same"),
    ],
)
def test_contradictions_are_errors_even_where_signs_are_not_checked(
    home, reward, up, cost, down, said
):
    wanted = source(home / reward, up), {"harm": source(home / cost, down, CostSource)}
    with pytest.raises(InputError, match=said):
        load_scores(*wanted, family_tokenizer("llama"), CPU)
    with pytest.raises(InputError, match=said):
        load_text_scores({"reward": wanted[0], **wanted[1]}, CPU)


def test_the_negative_of_a_model_may_be_meant(home):
    harmless = load_text_scores({"reward": source(home / "cost", DOWN)}, CPU)
    harm = load_text_scores({"harm": source(home / "cost", DOWN, CostSource)}, CPU)
    asked = (["hello"], ["go away"])
    assert torch.equal(harmless(*asked)["reward"], -harm(*asked)["harm"])


def test_a_folder_that_says_nothing_contradicts_nothing(home, tmp_path):
    shutil.copytree(home / "cost", tmp_path / "old")
    (tmp_path / "old/score_head.json").write_text(json.dumps({"names": []}))
    assert stated_kind(tmp_path / "old", "crl") is None
    load_scores(source(tmp_path / "old", UP), {}, family_tokenizer("llama"), CPU)
    # fits of before called their only head by what it was
    (tmp_path / "old/score_head.json").write_text(json.dumps({"names": ["cost"]}))
    with pytest.raises(InputError, match="is a cost model"):
        load_scores(source(tmp_path / "old", UP), {}, family_tokenizer("llama"), CPU)


@pytest.mark.parametrize(("called", "kind"), [("cost", "cost"), ("reward", None), ("x", None)])
def test_a_beaver_that_calls_itself_a_cost_is_one_and_a_reward_may_be_either(
    tmp_path, called, kind
):
    (tmp_path / "config.json").write_text(json.dumps({"score_type": called}))
    assert stated_kind(tmp_path, "beaver") == kind


OPTIONS = "--reward {h}/cost --cost {h}/reward --prompts {h}/prompts.txt"
SWAPPED = {
    "train": "policy.path={h}/policy reward.path={h}/cost costs.harm.path={h}/reward device=cpu "
    f"reward.direction={UP} costs.harm.direction={DOWN} reward.sign_check=off "
    'prompts=[{{path="{h}/prompts.txt"}}]',
    "evaluate": "{h}/policy " + OPTIONS,
    "arena": "a={h}/policy b={h}/again " + OPTIONS,
    "serve-scores": f"reward.path={{h}}/cost reward.direction={UP} port=0",
    "calibrate": "--cost-model {h}/reward --data {h}/pairs.jsonl",
    "dual": "--model {h}/policy " + OPTIONS,
}


@pytest.mark.parametrize("command", SWAPPED)
def test_every_command_refuses_swapped_folders(home, tmp_path, monkeypatch, crl, command):
    if not (home / "again").exists():
        shutil.copytree(home / "policy", home / "again")
    monkeypatch.chdir(tmp_path)
    code, _, error = crl("llm", command, *SWAPPED[command].format(h=home).split())
    assert code == 2
    assert " model (kind=" in error


def test_a_cost_keeps_its_kind_through_the_released_format(home, tmp_path):
    model = ScoreModel.from_pretrained(home / "cost")
    with pytest.raises(InputError, match="was trained as a cost, but score_type is 'reward'"):
        save_beaver(model, tmp_path / "wrong", "reward")
    save_beaver(model, tmp_path / "beaver", "cost", family_tokenizer("llama"))
    with pytest.raises(InputError, match="beaver is a cost model"):
        load_scores(source(tmp_path / "beaver", UP), {}, family_tokenizer("llama"), CPU)
    assert load_score_model(tmp_path / "beaver").kind == "cost"


def test_models_in_memory_know_what_they_were_trained_as(home):
    reward, cost = (ScoreModel.from_pretrained(home / kind) for kind in ("reward", "cost"))
    tokenizer = family_tokenizer("llama")
    with pytest.raises(InputError, match="the reward is a model that was trained as a cost"):
        TokenEnv(1, tokenizer, ["hi"], by_model(cost), {"harm": by_model(cost)}, 2)
    with pytest.raises(InputError, match="the cost 'harm' is a model that was trained as a reward"):
        TokenEnv(1, tokenizer, ["hi"], by_model(reward), {"harm": by_model(reward)}, 2)
    TokenEnv(1, tokenizer, ["hi"], by_model(reward), {"harm": by_model(cost)}, 2)
