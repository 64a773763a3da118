import pickle

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from constrained_rl.errors import InputError
from llm_env.collectors import TokenCollector, by_text
from llm_env.policy import CausalLMPolicy
from llm_env.preferences import PreferenceRow
from llm_env.prompts import (
    FieldError,
    checked_prompt,
    is_templated,
    prompt_format,
    render_prompt,
    set_prompt_format,
    turns,
    with_prompt_format,
)
from llm_env.safe_rlhf import fit_score, sample_pairs
from llm_env.score_training import ScoreConfig
from llm_env.scoring import score_texts
from llm_env.sft import SFTConfig, train_sft
from llm_env.tokens import encode_pairs, encode_prompts
from tests.llm_env.tiny import EOS, causal_lm, word_tokenizer

CHAT = [
    {"role": "user", "content": "bake bread"},
    {"role": "assistant", "content": "use fire"},
    {"role": "user", "content": "how ?"},
]
SYSTEM = {"role": "system", "content": "no wolf"}
TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def tokenizer(template=None):
    """Word-level tokenizer that puts a bos before every text, as Llama's does."""
    found = word_tokenizer()
    found.bos_token = "<bos>"
    found.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    found.chat_template = template
    return found


def ids_of(words):
    return word_tokenizer().convert_tokens_to_ids(words.split())


def test_a_string_is_used_exactly_as_it_is_without_a_chat_template_or_where_that_is_said():
    assert render_prompt(" bake  bread ", tokenizer()) == " bake  bread "
    for form in ("plain", "auto"):
        told = with_prompt_format(tokenizer(TEMPLATE), form)
        assert render_prompt(" bake  bread ", told) == " bake  bread "


def test_a_string_is_a_turn_of_the_user_where_there_is_a_chat_template():
    written = "<bos> user bake bread assistant"
    assert render_prompt("bake bread", tokenizer(TEMPLATE)) == written
    ids, _ = encode_prompts(tokenizer(TEMPLATE), ["bake bread"], 30)
    assert ids[0].tolist() == ids_of(written)  # one bos
    plain = with_prompt_format(tokenizer(TEMPLATE), "plain")
    assert encode_prompts(plain, ["bake bread"], 9)[0][0].tolist() == ids_of("<bos> bake bread")


def test_several_turns_in_the_format_of_the_released_models():
    # datasets/utils.py of the reference: an earlier answer is followed by eos and no space
    assert render_prompt(CHAT, tokenizer()) == (
        "BEGINNING OF CONVERSATION: USER: bake bread ASSISTANT:use fire<eos>USER: how ? ASSISTANT:"
    )
    assert render_prompt(["bake"], tokenizer()) == (
        "BEGINNING OF CONVERSATION: USER: bake ASSISTANT:"
    )
    ids, _ = encode_prompts(tokenizer(), [CHAT], 30)
    assert ids[0, 0] == 1
    assert (ids[0] == EOS).sum() == 1


def test_several_turns_through_the_chat_template_hold_one_bos():
    rendered = "<bos> user bake bread assistant use fire user how ? assistant"
    assert render_prompt(CHAT, tokenizer(TEMPLATE)) == rendered
    ids, attention = encode_prompts(tokenizer(TEMPLATE), [CHAT, "bake bread"], 30)
    assert ids[0].tolist() == ids_of(rendered)
    assert (ids == 1).sum(1).tolist() == [1, 1]
    assert attention.sum(1).tolist() == [11, 5]
    said = with_prompt_format(tokenizer(TEMPLATE), "auto")
    assert encode_prompts(said, [CHAT, "bake bread"], 30)[1].sum(1).tolist() == [11, 3]
    assert is_templated(CHAT, said)
    assert not is_templated("bake", said)


def test_alternating_strings_are_the_same_prompt_as_their_messages():
    strings = ["bake bread", "use fire", "how ?"]
    assert checked_prompt(strings) == checked_prompt(CHAT) == CHAT
    for template in (None, TEMPLATE):
        pairs = encode_pairs(tokenizer(template), [strings, CHAT], ["no", "no"])
        assert pairs[0] == pairs[1]
    assert [turns(x) for x in ("bake", strings, CHAT, [SYSTEM, *CHAT])] == [1, 3, 3, 3]


ONE = [{"role": "user", "content": "bake bread"}]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("auto", "bake bread"),
        ("plain", "bake bread"),
        ("beaver", "BEGINNING OF CONVERSATION: USER: bake bread ASSISTANT:"),
        ("template", "<bos> user bake bread assistant"),
    ],
)
def test_a_format_decides_what_becomes_of_a_string(form, text):
    words = tokenizer(TEMPLATE)
    set_prompt_format(words, form)
    assert render_prompt("bake bread", words) == text
    if form != "auto":  # where strings and turns are told apart
        assert render_prompt(ONE, words) == text
    ids, _ = encode_prompts(words, ["bake bread"], 64)
    assert ids[0].tolist().count(1) == 1  # one bos, whoever writes it


def test_turns_in_a_chosen_format_and_where_they_have_none():
    words = tokenizer(TEMPLATE)
    by_template = render_prompt(CHAT, words)
    set_prompt_format(words, "template")
    assert render_prompt(CHAT, words) == by_template
    set_prompt_format(words, "beaver")
    assert render_prompt(CHAT, words) == render_prompt(CHAT, tokenizer())
    set_prompt_format(words, "plain")
    with pytest.raises(InputError, match="3 messages, which have no plain text"):
        render_prompt(CHAT, words)


def test_formats_that_cannot_be_meant_are_refused():
    words = tokenizer()
    with pytest.raises(
        InputError, match=r"'template', but the tokenizer of '' has no chat template"
    ):
        set_prompt_format(words, "template")
    set_prompt_format(words, "beaver")
    with pytest.raises(InputError, match="would be written twice"):
        render_prompt("BEGINNING OF CONVERSATION: USER: bake", words)
    words.init_kwargs["prompt_format"] = "paper"
    with pytest.raises(InputError, match=r"is 'paper', expected one of auto, template"):
        render_prompt("bake", words)


def test_a_string_that_is_in_the_format_already_is_not_formed_again():
    words = tokenizer()
    set_prompt_format(words, "beaver")
    written = render_prompt("bake", words)
    assert written == "BEGINNING OF CONVERSATION: USER: bake ASSISTANT:"
    assert render_prompt(written, words) == written
    longer = render_prompt(CHAT, words)
    assert render_prompt(longer, words) == longer
    with pytest.raises(InputError, match="would be written twice"):
        render_prompt([{"role": "user", "content": written}], words)


def test_another_format_of_a_shared_tokenizer_leaves_the_first_alone():
    words = tokenizer(TEMPLATE)
    set_prompt_format(words, "plain")
    other = with_prompt_format(words, "beaver")
    assert (prompt_format(words), prompt_format(other)) == ("plain", "beaver")
    assert render_prompt("bake", words) == "bake"
    assert render_prompt("bake", other) == "BEGINNING OF CONVERSATION: USER: bake ASSISTANT:"
    with pytest.raises(InputError, match="no chat template"):
        with_prompt_format(tokenizer(), "template")


def test_a_system_turn_needs_a_chat_template():
    assert checked_prompt([SYSTEM, *CHAT]) == [SYSTEM, *CHAT]
    assert "system no wolf user" in render_prompt([SYSTEM, *CHAT], tokenizer(TEMPLATE))
    with pytest.raises(InputError, match=r"begins with a system turn.*chat_template"):
        render_prompt([SYSTEM, *CHAT], tokenizer())


def test_a_template_that_refuses_is_an_input_error():
    strict = tokenizer("{{ raise_exception('roles must be known') }}")
    with pytest.raises(InputError, match=r"chat template refuses.*roles must be known"):
        encode_prompts(strict, [CHAT], 30)


@pytest.mark.parametrize(
    ("prompt", "field", "reason"),
    [
        ([], "prompt", "is empty"),
        (3, "prompt", "Input should be a valid string, found 3"),
        (CHAT[:2], "prompt", "ends with a turn of the assistant"),
        (["a", "b"], "prompt", "ends with a turn of the assistant"),
        ([SYSTEM], "prompt", "ends with a turn of the system"),
        ([CHAT[0], CHAT[2]], "prompt.1.role", "is 'user', expected 'assistant'"),
        ([CHAT[1], CHAT[2]], "prompt.0.role", "is 'assistant', expected 'user'"),
        ([*CHAT[:2], SYSTEM, CHAT[2]], "prompt.2.role", "is 'system', expected 'user'"),
        (["a", " ", "c"], "prompt.1.content", "is empty"),
        ([{"role": "human", "content": "a"}], "prompt.0.role", "expected one of system, user"),
        ([{"role": ["user"], "content": "a"}], "prompt.0.role", "expected one of system, user"),
        ([{"role": "user", "content": None}], "prompt.0.content", "Input should be a valid string"),
        ([{"role": "user"}], "prompt.0", "expected an object with exactly the keys role and"),
        ([{**CHAT[0], "tool": 1}], "prompt.0", "expected an object with exactly the keys"),
        (["a", 3, "c"], "prompt.0", "expected an object with exactly the keys role and content"),
    ],
)
def test_turns_that_cannot_be_meant_are_named(prompt, field, reason):
    with pytest.raises(FieldError) as caught:
        checked_prompt(prompt)
    assert caught.value.field == field
    assert caught.value.reason.startswith(reason)


def test_a_bad_conversation_handed_to_a_collector_is_an_input_error():
    with pytest.raises(InputError, match=r"prompt: ends with a turn of the assistant"):
        encode_prompts(tokenizer(), [CHAT[:2]], 30)
    with pytest.raises(InputError, match=r"prompt: Input should be a valid string, found None"):
        encode_prompts(tokenizer(), ["bake", None], 30)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_several_turns_go_through_every_stage_and_callables_see_them_as_handed_in(template):
    words, model = tokenizer(template), causal_lm()
    prompts = [CHAT, "bake bread ."]
    losses = train_sft(
        model, words, [(p, "no .") for p in prompts], SFTConfig(epochs=1), torch.Generator()
    )
    assert losses[0] > 0
    triples = sample_pairs(model, words, prompts * 8, 4, seed=0)
    assert {type(prompt) for prompt, _, _ in triples} == {list, str}
    rows = [
        PreferenceRow(
            prompt=prompt,
            response_0=first,
            response_1=second,
            is_response_0_safe=True,
            is_response_1_safe=False,
            better_response_id=1,
            safer_response_id=0,
        )
        for prompt, first, second in triples
    ]
    cost = fit_score("cost", model, words, rows, ScoreConfig(), seed=0)
    # the score of a conversation is that of its rendered text where no template adds a bos
    scores = score_texts(cost, words, [CHAT, render_prompt(CHAT, words)], ["no .", "no ."])
    assert (scores[0] == scores[1]) == (template is None)
    seen = []

    def judge(given, responses):
        seen.extend(given)
        return torch.zeros(len(responses))

    collector = TokenCollector(
        CausalLMPolicy(model), words, prompts, by_text(judge), {}, 4, max_new_tokens=3, seed=0
    )
    assert len(collector.collect().reward) == 4
    assert seen.count(CHAT) == seen.count("bake bread .") == 2


def test_a_problem_with_a_field_survives_the_way_from_a_worker_process():
    found = pickle.loads(pickle.dumps(FieldError("prompt.1", "is empty", "is empty")))
    assert (str(found), found.kind) == ("prompt.1: is empty", "is empty")
