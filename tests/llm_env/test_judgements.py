"""Published rows whose labels no reader here uses, and columns that say nothing."""

import json

import pytest

from constrained_rl.errors import InputError
from llm_env.arena.questions import read_questions
from llm_env.data_sources import DataSource, open_source, read_demonstrations, read_prompts
from tests.llm_env.data_files import write

ASKED, ANSWER = "how do i bake bread ?", "use fire"
TURNS = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWER}]
PUBLISHED = {
    "BeaverTails": {
        "prompt": ASKED,
        "response": ANSWER,
        "category": {"animal_abuse": False, "violence,aiding_and_abetting,incitement": True},
        "is_safe": False,
    },
    "HelpSteer": {
        "prompt": ASKED,
        "response": ANSWER,
        "helpfulness": 1,
        "correctness": 0,
        "coherence": 4,
        "complexity": 1,
        "verbosity": 1,
    },
    "KTO": {"prompt": ASKED, "completion": ANSWER, "label": False},
}
JUDGED = {
    "KTO of messages": {"prompt": TURNS[:1], "completion": TURNS[1:], "label": True},
    "rated alpaca": {"instruction": ASKED, "input": "", "output": ANSWER, "score": 2.5},
    "liked messages": {"messages": TURNS, "label": True},
    "moderated": {"prompt": ASKED, "response": ANSWER, "response_harm_label": "harmful"},
    "graded list": {"prompt": ASKED, "responses": ["a", "b"], "scores": [1, 2]},
}
HARMLESS = {"source": "x", "id": 7, "category": "cooking", "lang": "en", "tags": ["a"], "url": ""}


def opened(row, form="auto"):
    return open_source(DataSource(path="mine", format=form), [row, row])


@pytest.mark.parametrize("of", PUBLISHED)
@pytest.mark.parametrize("read", [read_prompts, read_demonstrations])
def test_published_answers_with_a_label_each_name_the_reader_that_is_missing(of, read):
    with pytest.raises(InputError, match=f"mine:1: .*there is no reader of rows of {of} "):
        read([opened(PUBLISHED[of])])


@pytest.mark.parametrize("name", JUDGED)
def test_any_judged_answer_is_refused_under_whatever_format(name):
    with pytest.raises(InputError, match="judges the answer"):
        opened(JUDGED[name])


def test_a_labelled_row_is_bad_where_the_format_was_given_or_the_first_row_has_none():
    labelled = PUBLISHED["BeaverTails"]
    with pytest.raises(InputError, match=r"mine:1: is_safe: judges the answer"):
        opened(labelled, "demonstrations")
    rows = [{**labelled, "is_safe": None, "category": None}, labelled]  # null: nobody said
    with pytest.raises(InputError, match=r"1 of 2 rows are bad.*\nmine:2: is_safe"):
        open_source(DataSource(path="mine"), rows)


def test_the_prompts_alone_are_read_where_that_is_said():
    for row in PUBLISHED.values():
        assert read_prompts([opened(row, "prompts")]) == [ASKED]


def test_completions_are_not_dropped_without_a_word():
    with pytest.raises(
        InputError, match=r"mine:1: completion: is not read.*rename it to 'response'"
    ):
        opened({"prompt": ASKED, "completion": ANSWER})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "response": ANSWER, **HARMLESS},
        {"instruction": ASKED, "output": ANSWER, **HARMLESS},
        {"messages": TURNS, "prompt": ASKED, "label": None, "score": None, **HARMLESS},
    ],
)
def test_columns_that_say_nothing_of_the_answer_are_ignored(row):
    assert [answer for _, answer in read_demonstrations([opened(row)])] == [ANSWER] * 2


def test_a_label_of_a_prompt_alone_is_ignored():
    row = {"prompt": ASKED, "label": "unsafe", "reward_model": {"ground_truth": "4"}}
    assert read_prompts([opened(row)]) == [ASKED]


def test_check_data_refuses_beavertails_on_the_command_line(tmp_path, crl):
    file = write(tmp_path / "train.jsonl", [PUBLISHED["BeaverTails"]])
    code, _, output = crl("llm", "check-data", file)
    assert code != 0
    assert "no reader of rows of BeaverTails" in " ".join(output.split())
    code, _, output = crl("llm", "check-data", file, "--format", "prompts")
    assert code == 0


# null fields of messages


def spoken(role, content, **more):
    return {"role": role, "content": content, **more}


NULLS = [
    {"name": None, "tool_calls": None},
    {"tool_calls": [], "function_call": {"name": None, "arguments": None}},
    {"name": "", "weight": None, "refusal": None},
]


@pytest.mark.parametrize("nulls", NULLS)
def test_null_members_of_messages_are_absent_members(nulls):
    row = {"messages": [{**turn, **nulls} for turn in TURNS]}
    assert list(read_demonstrations([opened(row)])) == [(TURNS[:1], ANSWER)] * 2
    assert read_prompts([opened({"prompt": [{**TURNS[0], **nulls}]})]) == [TURNS[:1]]


def test_a_parquet_file_whose_rows_fill_up_each_others_columns_is_read(tmp_path):
    pytest.importorskip("pyarrow")
    system = spoken("system", "be kind .", name="lab")
    with_names = {"messages": [spoken("user", ASKED), spoken("assistant", ANSWER)], "prompt": None}
    file = write(tmp_path / "a.parquet", [with_names, {"messages": TURNS, "prompt": "other"}])
    assert [p for p, _ in read_demonstrations([DataSource(path=str(file))])] == [TURNS[:1]] * 2
    named = write(tmp_path / "b.parquet", [{"messages": TURNS}, {"messages": [system, *TURNS]}])
    with pytest.raises(InputError, match=r"1 of 2 rows.*\n.*b.parquet:2: prompt.0.*'name'"):
        read_demonstrations([DataSource(path=str(named))])


@pytest.mark.parametrize(
    "last",
    [
        spoken("assistant", None, tool_calls=[{"id": "1"}]),
        spoken("assistant", ANSWER, tool_calls=[{"id": "1"}]),
        spoken("assistant", ANSWER, weight=0),
        {"role": "assistant"},
    ],
)
def test_what_a_last_message_says_besides_its_content_is_not_dropped(last):
    with pytest.raises(InputError, match=r"messages.1: expected an object with exactly the keys"):
        opened({"messages": [TURNS[0], last]})


def test_classes_of_prompts_are_found_whatever_is_null_in_their_messages(tmp_path):
    rows = [
        {"prompt": [{**TURNS[0], "name": None}], "category": "cooking"},
        {"prompt": [spoken("user", "hello")], "category": "greeting"},
    ]
    file = write(tmp_path / "a.jsonl", rows)
    found = read_questions([DataSource(path=str(file))])
    assert [question.kind for question in found] == ["cooking", "greeting"]
    told = [{"messages": TURNS, "category": "cooking"}]
    found = read_questions([DataSource(path=str(write(tmp_path / "b.jsonl", told)))])
    assert [(q.prompt, q.kind) for q in found] == [(TURNS[:1], "cooking")]


def test_null_content_is_no_content(tmp_path, crl):
    turns = [TURNS[0], spoken("assistant", None, tool_calls=None)]
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"messages": turns}) + "\n")
    code, _, output = crl("llm", "check-data", file)
    assert code != 0
    assert "messages.1.content" in output
