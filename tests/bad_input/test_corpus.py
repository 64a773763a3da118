"""Every bad input: one message with what was found and what to do, exit code 2, nothing changed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_input import table
from tests.bad_input.cases import CASES
from tests.bad_input.outcome import message, played

# every case is played once: the page below is made of what the tests above have seen
pytestmark = pytest.mark.xdist_group("bad_input")

PAGE = Path(__file__).parents[2] / "docs/bad_input.md"
INTERRUPTED = {"reward infinite", "diverging"}
"""cases that train well at first"""


def test_the_corpus_holds_at_least_60_cases_of_different_names():
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_message_exit_code_2_and_changes_nothing(case):
    found = played(case)
    assert found.code == 2
    assert "Traceback" not in found.out + found.err
    assert found.warned == ()
    if case.said == "error":
        assert found.err.startswith("error: ")
        assert found.err.count("error:") == 1
    else:
        assert ("Usage:" in found.err) == (case.said == "usage")
        assert "error:" not in found.err
    said = " ".join(message(case, found).split())
    assert [part for part in case.expect if part not in said] == []
    assert found.changed == set()
    if case.seen == "training":
        assert "finished" not in found.out
        assert {path.split("/")[0] for path in found.new} == {"run"}
        assert [path for path in found.new if "/." in path] == []  # temporary names
        saved = {path for path in found.new if path.startswith("run/checkpoints/0")}
        assert bool(saved) == (case.name in INTERRUPTED)
    else:
        assert found.new == set()
        assert case.said == "report" or found.out == ""


def test_the_page_of_the_documentation_shows_what_is_said():
    again = "run python -m tests.bad_input.table > docs/bad_input.md"
    assert PAGE.read_text(encoding="utf-8") == table.page(), again


FREE = """import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
gymnasium.register("Free-v0", CartPoleEnv)
"""


def in_depth(*values):
    """A process of its own for what the corpus plays in this one."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("arguments", "files", "expected"),
    [
        in_depth(["train", "ppo.epoch=3"], {}, "did you mean 'epochs'?"),
        (["train", "env.id=my_env:Free-v0", "limit=1"], {"my_env.py": FREE}, 'no info["cost"]'),
        in_depth(["train", "--out", "a"], {"a": "precious"}, "nothing was changed"),
        in_depth(
            ["llm", "check-data", "a.jsonl"], {"a.jsonl": "[]\n"}, "a.jsonl:1: line: expected"
        ),
        in_depth(["llm", "calibrate", "a"], {}, "a is no comparison"),
    ],
)
def test_a_process_ends_with_one_message_and_exit_code_2(tmp_path, arguments, files, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    # -P: as for a console script, Python does not look into the working folder by itself
    start = [sys.executable, "-P", "-B", "-c", "from llm_env.cli import main; main()"]
    done = subprocess.run(
        [*start, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("rror:") == 1
    assert expected in " ".join(done.stderr.split())
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == files
