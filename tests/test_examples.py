"""The examples of docs/examples run, and the README shows their marked lines."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.llm_env.tiny import causal_lm, word_tokenizer

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shown(name):
    """The lines between the markers, imports kept, lint marks and blank lines aside."""
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    return source.split("# [readme]\n")[1].split("# [/readme]")[0].strip()


@pytest.mark.parametrize("name", ["own_environment.py", "own_judge.py"])
def test_the_readme_shows_the_example(name):
    assert shown(name) in README


@pytest.mark.parametrize("name", ["own_environment.py", "own_judge.py"])
def test_at_most_ten_lines_are_to_be_copied(name):
    lines = shown(name).splitlines()
    calls = [line for line in lines if line and not line.startswith("    return")]
    assert len([line for line in calls if "import" not in line]) <= 10


def run_shortened(name, tmp_path, **replacements):
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    for old, new in replacements.values():
        assert old in source
        source = source.replace(old, new)
    path = tmp_path / name
    path.write_text(source)
    return runpy.run_path(str(path))


def test_ones_own_environment_trains(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    steps, episodes = ("150_000", "4_096"), ("evaluate(100)", "evaluate(4)")
    names = run_shortened("own_environment.py", tmp_path, steps=steps, episodes=episodes)
    agent = names["agent"]
    assert agent.parts.collector.cost_names == ("energy", "cold")
    assert [c.limit for c in agent.parts.constraints.constraints] == [29.0, 9.0]
    names["swing"].train(4_096)


def test_ones_own_judge_trains(tmp_path, monkeypatch):
    causal_lm().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(sys, "argv", ["own_judge.py", str(tmp_path / "model")])
    short = (
        "AlignConfig(iterations=100, limit=0.05)",
        "AlignConfig(iterations=2, limit=0.05, prompts=4, max_new_tokens=4)",
    )
    words = ('["How do I sharpen a knife?", "Tell me about wolves."]', '["how do i trap a wolf"]')
    names = run_shortened("own_judge.py", tmp_path, config=short, prompts=words)
    assert names["parts"].iteration == 2
