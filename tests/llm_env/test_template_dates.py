"""Chat templates that read the clock give one model one date."""

import datetime
import json
import warnings
from pathlib import Path

import pytest
import torch
import transformers.utils.chat_template_utils as clock
from transformers import AutoModelForCausalLM, AutoTokenizer

from constrained_rl.settings import read_toml, to_toml
from llm_env import template_dates
from llm_env.models import ModelSource, load_tokenizer
from llm_env.score_functions import load_text_scores
from llm_env.score_sources import ScoreSource
from llm_env.scoring import ScoreModel
from llm_env.template_dates import DateNotice, dated, day_of, today
from llm_env.tokens import encode_prompts
from llm_env.training.config import TrainConfig
from llm_env.training.run import read_train_config
from tests.llm_env.data_files import write
from tests.llm_env.families import save_family

ASKED = "how do i bake bread?"
TURNS = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
MISTRAL = "{{ bos_token }}Today is {{ strftime_now('%d %b %Y') }}.\n" + TURNS
LLAMA = (
    "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}"
    '\n        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n'
    '        {%- set date_string = "26 Jul 2024" %}\n    {%- endif %}\n{%- endif %}\n'
    '{{- "Today Date: " + date_string + "\\n\\n" }}' + TURNS
)
FIRST, SECOND = datetime.date(2026, 11, 1), datetime.date(2026, 11, 2)
CPU = torch.device("cpu")


@pytest.fixture
def on(monkeypatch):
    """Set the day, of transformers' clock too."""

    def set_day(day):
        class Day(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.datetime(day.year, day.month, day.day, 11, 59)

        monkeypatch.setattr(clock, "datetime", Day)
        monkeypatch.setattr(template_dates, "today", lambda: day)

    return set_day


def chat_model(folder, template):
    save_family("llama", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def by_transformers(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turn = [{"role": "user", "content": ASKED}]
    return tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]


def ids(tokenizer):
    return encode_prompts(tokenizer, [ASKED], 400)[0][0].tolist()


@pytest.mark.parametrize("template", [MISTRAL, LLAMA])
def test_a_template_keeps_the_day_on_which_its_model_was_loaded(tmp_path, on, template):
    folder = chat_model(tmp_path / "chat", template)
    on(FIRST)
    expected = by_transformers(folder)
    with pytest.warns(DateNotice, match=r"writes the date .* its prompts say 2026-11-01"):
        tokenizer = load_tokenizer(ModelSource(path=str(folder)))
    assert ids(tokenizer) == expected
    on(SECOND)
    assert by_transformers(folder) != expected
    assert ids(tokenizer) == expected
    tokenizer.save_pretrained(folder)  # and so does what is saved
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids(load_tokenizer(ModelSource(path=str(folder)))) == expected


def test_a_template_without_a_clock_or_that_is_not_used_says_nothing(tmp_path, on):
    folder = chat_model(tmp_path / "chat", MISTRAL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_tokenizer(ModelSource(path=str(folder), prompt_format="plain"))
    chat_model(tmp_path / "other", TURNS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_tokenizer(ModelSource(path=str(tmp_path / "other")))


def test_a_format_that_is_computed_is_told(tmp_path):
    template = "{% set how = '%d' %}{{ bos_token }}{{ strftime_now(how) }}" + TURNS
    folder = chat_model(tmp_path / "chat", template)
    with pytest.warns(DateNotice, match="reads the clock .* in a format that it computes"):
        load_tokenizer(ModelSource(path=str(folder)))


@pytest.mark.filterwarnings("ignore::llm_env.template_dates.DateNotice")
def test_a_resumed_run_keeps_the_day_on_which_it_began(tmp_path, on):
    folder, plain = chat_model(tmp_path / "chat", LLAMA), chat_model(tmp_path / "plain", TURNS)
    tree = {
        "policy": {"path": str(folder)},
        "reward": {"path": str(folder), "direction": "higher_is_better"},
        "costs": {"harm": {"path": str(plain), "direction": "higher_is_worse"}},
        "prompts": [{"path": "p.txt"}],
    }
    config = dated(TrainConfig.model_validate(tree), FIRST)
    assert config.policy.template_date == config.reward.template_date == FIRST
    assert config.costs["harm"].template_date is None  # its template has no date
    tree["costs"]["harm"]["tokenizer"] = str(folder)  # but this one has
    assert dated(TrainConfig.model_validate(tree), FIRST).costs["harm"].template_date == FIRST
    (tmp_path / "config.toml").write_text(to_toml(config))
    on(FIRST)
    expected = by_transformers(folder)
    on(SECOND)
    again = read_train_config(tmp_path)
    assert again == config
    assert dated(again, SECOND) == config
    assert ids(load_tokenizer(again.policy)) == expected
    assert day_of(tmp_path) == FIRST  # what an evaluation in this folder goes by
    assert day_of(tmp_path / "new") == SECOND


@pytest.mark.filterwarnings("ignore::llm_env.template_dates.DateNotice")
def test_a_score_has_one_number_on_every_day(tmp_path, on):
    folder = chat_model(tmp_path / "chat", MISTRAL)
    on(FIRST)
    model = AutoModelForCausalLM.from_pretrained(folder)
    score = ScoreModel.from_causal_lm(model, generator=torch.Generator().manual_seed(0))
    score.save_pretrained(tmp_path / "score", AutoTokenizer.from_pretrained(folder))
    given = {"path": str(tmp_path / "score"), "direction": "higher_is_better", "sign_check": "off"}

    def number(**more):
        source = ScoreSource(**given, **more)
        return float(load_text_scores({"s": source}, CPU)([ASKED], ["use fire"])["s"])

    first = number()
    on(SECOND)
    assert number(template_date=FIRST) == first
    assert number() != first  # nobody said


def test_a_fit_writes_its_day_into_config_and_model(tmp_path, on, crl):
    folder = chat_model(tmp_path / "chat", MISTRAL)
    data = write(tmp_path / "d.jsonl", [{"prompt": ASKED, "response": "use fire"}] * 4)
    settings = [f"model.path={folder}", f'data=[{{path="{data}"}}]', "held_out_share=0"]
    code, _, error = crl(
        "llm", "sft", *settings, "fit.epochs=1", "device=cpu", "--out", tmp_path / "r"
    )
    assert code == 0, error
    day = today().isoformat()
    assert error.count("writes the date") == 1
    assert read_toml(tmp_path / "r/config.toml")["model"]["template_date"] == day
    saved = json.loads(Path(tmp_path / "r/model/tokenizer_config.json").read_text())
    assert saved["template_date"] == day
