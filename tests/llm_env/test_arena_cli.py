"""`crl llm evaluate`, `arena` and `chat` on the command line."""

import io
import json
import sys

import pytest
import torch
from rich.console import Console

from constrained_rl.errors import InputError
from llm_env.arena.chat import ChatOptions, command, converse, open_chat, say
from llm_env.arena.config import read_scores
from llm_env.scoring import ScoreModel
from tests.llm_env.tiny import causal_lm, word_tokenizer

pytestmark = pytest.mark.xdist_group("arena_cli")  # its fixtures are made once, in one worker

SMALL = ("max_new_tokens=4", "device=cpu", "modes=['greedy']")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two models, a score model that serves as both, and prompts."""
    folder = tmp_path_factory.mktemp("chat")
    for seed, name in enumerate(("one", "two")):
        causal_lm(seed=seed).save_pretrained(folder / name)
        word_tokenizer().save_pretrained(folder / name)
    for seed, name in enumerate(("reward", "cost")):
        score = ScoreModel.from_causal_lm(
            causal_lm(seed=7), generator=torch.Generator().manual_seed(seed)
        )
        score.save_pretrained(folder / name)
    (folder / "prompts.txt").write_text("bake bread .\ntrap a cat .\n")
    return folder


def scores(home):
    return ["--reward", home / "reward", "--cost", home / "cost", "--score-tokenizer", "policy"]


@pytest.fixture
def room(home):
    """A chat of at most 60 tokens of prompt."""
    options = ChatOptions(temperature=0.0, max_new_tokens=4, raw=False, seed=0)
    found = read_scores(str(home / "reward"), [str(home / "cost")], "policy")
    off = {"sign_check": "off"}  # these models know none of the words of the shipped pairs
    rewards, costs = ({k: s.model_copy(update=off) for k, s in one.items()} for one in found)
    return open_chat(home / "one", (rewards, costs), options, "cpu")


def spoken(room, *lines):
    """What is printed after these lines."""
    out = io.StringIO()
    converse(room, io.StringIO("\n".join(lines) + "\n"), Console(file=out, width=200))
    return out.getvalue()


@pytest.mark.usefixtures("undrawn")
def test_an_arena_prints_one_json_object_and_writes_its_folder(crl, home, tmp_path):
    code, out, _ = crl(
        "llm", "arena", home / "one", home / "two", "--prompts", home / "prompts.txt",
        *scores(home), "--reference", "one", "--json", "--out", tmp_path / "run", *SMALL,
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)
    assert [(m["model"], m["mode"]) for m in found["models"]] == [
        ("one", "greedy"),
        ("two", "greedy"),
    ]
    assert {v["dimension"] for v in found["verdicts"]} == {"helpfulness", "harmlessness"}
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"report.html", "results.json", "generations.jsonl", "config.toml"} <= names


@pytest.mark.usefixtures("undrawn")
def test_an_evaluation_prints_a_table_and_can_be_repeated_from_its_config(crl, home, tmp_path):
    out = tmp_path / "run"
    code, first, _ = crl(
        "llm", "evaluate", home / "one", "--prompts", home / "prompts.txt", *scores(home),
        "--out", out, *SMALL,
    )  # fmt: skip
    assert code == 0
    assert first.splitlines()[0].split("\t")[:2] == ["model", "safe % (C ≤ 0)"]
    code, second, _ = crl("llm", "evaluate", out / "config.toml", "--out", out)
    assert (code, second) == (0, first)


def test_what_is_wrong_is_one_message(crl, home):
    code, _, err = crl("llm", "evaluate", home / "none", "--prompts", home / "prompts.txt")
    assert code == 2
    assert "does not exist" in err
    assert "Traceback" not in err


def test_a_chat_reads_a_pipe_and_shows_scores(crl, home, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("bake bread .\n/quit\ntrap\n"))
    code, out, _ = crl(
        "llm", "chat", home / "one", *scores(home), "--max-new-tokens", 4, "--temperature", 0,
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    assert out.count("model  ") == 1
    assert "reward " in out
    assert "cost " in out


def test_a_chat_remembers_until_it_is_reset(room):
    quiet = Console(file=io.StringIO())
    first = say(room, "bake bread .", quiet)
    say(room, "bake bread .", quiet)
    assert len(room.turns) == 2
    command(room, "/reset", quiet)
    assert say(room, "bake bread .", quiet) == first


def test_a_full_context_drops_the_oldest_turn_and_says_so(room):
    said = spoken(room, *["how do i bake bread ?"] * 8)
    assert "the context is full: the oldest turn is forgotten" in said
    assert said.count("model  ") == 8
    assert 0 < len(room.turns) < 8
    assert len(room.spoken) == 8


def test_a_line_that_cannot_fit_is_refused_and_the_chat_goes_on(room):
    said = spoken(room, " ".join(["bread"] * 70), "bake bread .")
    assert "this line has" in said
    assert said.count("model  ") == 1


def test_a_conversation_is_saved_as_json_lines(room, tmp_path):
    spoken(room, "bake bread .", "/temperature 0.5", "trap a cat .", f"/save {tmp_path}/c.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["bake bread .", "trap a cat ."]
    assert set(rows[0]["scores"]) == {"reward", "cost"}
    assert room.options.temperature == 0.5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/temperature hot", "needs a number"),
        ("/temperature -1", "needs a number"),
        ("/temperature inf", "needs a number"),
        ("/save", "needs a file"),
        ("/save /none/such/file", "cannot be written"),
        ("/dance", "is no command"),
    ],
)
def test_commands_that_cannot_be_meant_are_refused(room, line, message):
    with pytest.raises(InputError, match=message):
        command(room, line, Console(file=io.StringIO()))
    assert "error:" in spoken(room, line)


def test_raw_lines_are_prompts_of_their_own(home):
    options = ChatOptions(temperature=0.0, max_new_tokens=4, raw=True, seed=0)
    room = open_chat(home / "one", ({}, {}), options, "cpu")
    quiet = Console(file=io.StringIO())
    assert say(room, "bake bread .", quiet) == say(room, "bake bread .", quiet)


def test_an_answer_is_coloured_by_the_sign_of_its_scores(room):
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=True, color_system="standard")
    converse(room, io.StringIO("bake bread .\n"), console)
    (turn,) = room.turns
    for name, value in turn.scores.items():
        good = value <= 0 if name == "cost" else value >= 0
        assert f"\x1b[{32 if good else 31}m{name} {value:+.2f}" in out.getvalue()
