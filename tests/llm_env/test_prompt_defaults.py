"""A chat template is used for strings unless somebody said otherwise, and folders of before did."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from constrained_rl.settings import read_toml, to_toml
from llm_env.arena.chat import ChatOptions, open_chat
from llm_env.config import AlignConfig
from llm_env.models import ModelSource, load_tokenizer
from llm_env.prompts import prompt_format, render_prompt
from llm_env.score_functions import load_text_scores
from llm_env.score_sources import ScoreSource
from llm_env.scoring import ScoreModel
from llm_env.tokens import encode_pairs, encode_prompts
from llm_env.training.config import TrainConfig
from llm_env.training.export import Card, model_card
from llm_env.training.run import read_train_config
from tests.llm_env.data_files import write
from tests.llm_env.families import save_family

ASKED = "how do i bake bread?"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
CPU = torch.device("cpu")


@pytest.fixture
def home(tmp_path):
    """A chat model, as its maker saved it: nothing in it says how prompts become text."""
    save_family("llama", tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "chat")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "chat")
    return tmp_path


def by_transformers(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turn = [{"role": "user", "content": ASKED}]
    found = tokenizer.apply_chat_template(turn, add_generation_prompt=True)
    return found["input_ids"]


def ids(folder, **how):
    tokenizer = load_tokenizer(ModelSource(path=str(folder), **how))
    return encode_prompts(tokenizer, [ASKED], 200)[0][0].tolist()


def test_strings_go_through_the_chat_template_as_transformers_writes_it(home):
    assert ids(home / "chat") == by_transformers(home / "chat")
    plain = AutoTokenizer.from_pretrained(home / "chat")(ASKED)["input_ids"]
    assert ids(home / "chat", prompt_format="plain") == plain
    assert ids(home / "chat", prompt_format="auto") == plain


@pytest.mark.parametrize("form", [None, "plain", "beaver"])
def test_what_is_saved_says_its_format_whatever_the_default_will_be(home, form):
    tokenizer = load_tokenizer(ModelSource(path=str(home / "chat"), prompt_format=form))
    shutil.copytree(home / "chat", home / "saved")
    tokenizer.save_pretrained(home / "saved")
    said = json.loads((home / "saved/tokenizer_config.json").read_text())
    assert said["prompt_format"] == (form or "template")
    assert ids(home / "saved") == ids(home / "chat", prompt_format=form)


def score_folder(home, name, say):
    model = AutoModelForCausalLM.from_pretrained(home / "chat")
    score = ScoreModel.from_causal_lm(model, generator=torch.Generator().manual_seed(3))
    score.save_pretrained(
        home / name, AutoTokenizer.from_pretrained(home / "chat") if say else None
    )
    if not say:  # as they were saved once
        AutoTokenizer.from_pretrained(home / "chat").save_pretrained(home / name)
    return home / name


@pytest.mark.parametrize("say", [True, False])
def test_a_score_model_of_before_goes_on_reading_strings_as_they_are(home, say):
    folder = score_folder(home, "score", say)
    source = ScoreSource(
        path=str(folder), direction="higher_is_better", sign_check="off", append_eos=False
    )
    got = load_text_scores({"s": source}, CPU)([ASKED], ["use fire"])["s"]
    tokenizer = AutoTokenizer.from_pretrained(home / "chat")
    asked = by_transformers(home / "chat") if say else tokenizer(ASKED)["input_ids"]
    row = [*asked, *tokenizer("use fire", add_special_tokens=False)["input_ids"]]
    model = ScoreModel.from_pretrained(folder)
    expected = model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.bool))[0, -1, 0]
    torch.testing.assert_close(got[0], expected, atol=1e-5, rtol=1e-5)
    # and where it is tuned further
    assert prompt_format(load_tokenizer(ModelSource(path=str(folder)))) == (
        "template" if say else "auto"
    )


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ('[policy]\npath = "x"\nprompt_format = "auto"\n', "run/policy"),
        ('[policy]\npath = "x"\nprompt_format = "auto"\n', "run/best"),
        ('task = "sft"\n[model]\npath = "x"\nprompt_format = "auto"\n', "run/model"),
        ('[policy]\npath = "x"\nprompt_format = "auto"\n', "run/rounds/1/policy"),
    ],
)
def test_a_model_of_a_run_of_before_keeps_what_the_runs_config_says(home, config, place):
    folder = home / place
    folder.parent.mkdir(parents=True)
    (home / "chat").rename(folder)
    (home / "run/config.toml").write_text(config)
    plain = AutoTokenizer.from_pretrained(folder)(ASKED)["input_ids"]
    assert ids(folder) == plain
    (home / "run/config.toml").write_text(config.replace('prompt_format = "auto"', ""))
    assert ids(folder) == by_transformers(folder)  # a config of now


def test_an_exported_model_that_was_copied_keeps_what_its_card_says(home):
    config = TrainConfig.model_validate(train_tree(home, prompt_format="auto"))
    metrics = {"iteration": 1, "decisions": 2}
    card = model_card(Card("chat", (), metrics, to_toml(config), best=False))
    (home / "chat/README.md").write_text(card)
    plain = AutoTokenizer.from_pretrained(home / "chat")(ASKED)["input_ids"]
    assert ids(home / "chat") == plain
    (home / "chat/README.md").write_text(card.replace("with constrained-rl:", "with another:"))
    assert ids(home / "chat") == by_transformers(home / "chat")


def test_raw_lines_of_a_chat_are_used_as_they_are(home):
    for raw, written in ((True, ASKED), (False, f"<s>[user] {ASKED}\n[assistant] ")):
        options = ChatOptions(temperature=0.0, max_new_tokens=4, raw=raw, seed=0)
        room = open_chat(home / "chat", ({}, {}), options, "cpu")
        assert render_prompt(ASKED, room.model.tokenizer) == written


def train_tree(home, **policy):
    return {
        "policy": {"path": str(home / "chat"), **policy},
        "reward": {"path": "r", "direction": "higher_is_better"},
        "prompts": [{"path": "p.txt"}],
    }


def test_a_run_that_is_resumed_keeps_the_format_of_its_config(home):
    run = home / "run"
    run.mkdir()
    config = TrainConfig.model_validate(train_tree(home, prompt_format="auto"))
    (run / "config.toml").write_text(to_toml(config))  # the default of before, written out
    tokenizer = load_tokenizer(read_train_config(run).policy)
    assert render_prompt(ASKED, tokenizer) == ASKED
    (run / "config.toml").write_text(to_toml(TrainConfig.model_validate(train_tree(home))))
    assert render_prompt(ASKED, load_tokenizer(read_train_config(run).policy)) == (
        f"<s>[user] {ASKED}\n[assistant] "
    )


def test_fine_tuning_reads_strings_by_the_template_and_its_folder_says_so(home, crl):
    data = write(home / "d.jsonl", [{"prompt": ASKED, "response": "use fire"}] * 4)
    settings = [f"model.path={home}/chat", f'data=[{{path="{data}"}}]', "held_out_share=0"]
    small = ["fit.epochs=1", "fit.batch_size=4", "device=cpu"]
    code, _, error = crl("llm", "sft", *settings, *small, "--out", home / "run")
    assert code == 0, error
    said = json.loads((home / "run/model/tokenizer_config.json").read_text())
    assert said["prompt_format"] == "template"
    assert "prompt_format" not in read_toml(home / "run/config.toml")["model"]
    # one step from the same start: the first loss is of the templated row
    tokenizer = AutoTokenizer.from_pretrained(home / "chat")
    answer = [*tokenizer("use fire", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    asked = by_transformers(home / "chat")
    assert encode_pairs(
        load_tokenizer(ModelSource(path=f"{home}/chat")), [ASKED], ["use fire"]
    ) == [(asked, answer)]
    model = AutoModelForCausalLM.from_pretrained(home / "chat").eval()
    with torch.no_grad():
        logits = model(torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answer))
    first = json.loads((home / "run/metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(float(loss), abs=1e-4)


def test_learning_rates_are_the_papers_but_for_the_models_made_from_scratch():
    from llm_env.comparison.config import CompareConfig
    from llm_env.rounds.config import RoundsConfig

    ppo = AlignConfig().ppo
    assert (ppo.learning_rate, ppo.critic_learning_rate) == (9.65e-6, 5e-6)
    given = {"align": {"iterations": 3, "ppo": {"epochs": 1}}}  # in part: the rest stays
    # the config of a run of before, without critics, still holds the default of then
    before = {"advantage": "leave_one_out", "value_clip": None, "critic_learning_rate": 1e-3}
    AlignConfig.model_validate({"responses_per_prompt": 2, "ppo": before})
    for config in (CompareConfig(), CompareConfig.model_validate(given), RoundsConfig()):
        ppo = config.align.ppo
        assert (ppo.learning_rate, ppo.critic_learning_rate) == (5e-4, 1e-3)
    assert RoundsConfig.model_validate(given).round_align(2).ppo.learning_rate == 5e-4
