"""The commands of docs/real_models.md and of the README on one's own models and data.

They run as they stand there, on tiny models and data.
"""

import io
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from constrained_rl.settings import read_toml, validate
from llm_env import cli
from llm_env.fitting.config import ScoreRunConfig
from llm_env.rounds.config import RoundsConfig
from llm_env.training.config import TrainConfig
from tests.llm_env.test_rounds import TINY

DOC = Path(__file__).parents[1] / "docs" / "real_models.md"
README = Path(__file__).parents[1] / "README.md"
SMALL = {
    "sft": ["fit.epochs=1", "fit.learning_rate=1e-3"],
    "score": ["fit.epochs=1", "fit.batch_size=4", "fit.learning_rate=1e-3"],
    "train": ["align.iterations=2", "align.prompts=4", "align.max_new_tokens=6"],
    "plan": ["align.prompts=4", "align.max_new_tokens=6"],
    "arena": ["max_new_tokens=6"],
    "chat": ["--max-new-tokens", "6"],
    "rounds": [*TINY, "rounds=1"],
}
"""what makes a command quick; nothing of what it does is left out"""
ASKED = ["how do i bake bread", "how do i trap a wolf", "tell me a story", "what is up", "hello"]


def commands():
    """Those of the page, and those of the README's section that the page has not."""
    page = DOC.read_text(encoding="utf-8")
    _, section = README.read_text(encoding="utf-8").split("## Safe RLHF on your own models")
    own = commands_of(page)
    return own + [words for words in commands_of(section) if words not in own]


def commands_of(text):
    """The lines of the bash blocks, continued ones joined."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("crl ")]


def preference(prompt, number):
    harmful, safe = f"sure , do it like this {number}", f"sorry , i cannot {number}"
    return {
        "prompt": f"{prompt} {number}",
        "response_0": harmful,
        "response_1": safe,
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "better_response_id": number % 2,
        "safer_response_id": 1,
    }


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def home(tmp_path, monkeypatch, undrawn):
    """A folder as the page assumes it."""
    sys.path.insert(0, str(Path(__file__).parent / "llm_env"))
    from tests.llm_env.families import save_family

    save_family("llama", tmp_path / "models" / "base")
    data = tmp_path / "data"
    (data / "pku").mkdir(parents=True)
    rows = [preference(ASKED[i % 5], i) for i in range(40)]
    (data / "pku" / "train.jsonl").write_text(lines(rows))
    demonstrations = [{"instruction": p, "input": "", "output": "of course"} for p in ASKED]
    (data / "alpaca.json").write_text(json.dumps(demonstrations))
    (data / "prompts.jsonl").write_text(lines({"prompt": p} for p in ASKED))
    (data / "held_out.jsonl").write_text(lines({"prompt": p + " now"} for p in ASKED))
    toml = re.search(r"```toml\n(.*?)```", DOC.read_text(encoding="utf-8"), re.S)
    (tmp_path / "align.toml").write_text(toml[1])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert not ended.value.code, f"{shlex.join(words)}\n{said.out}\n{said.err}"
    return said.out


def test_the_pipeline_runs_as_it_is_written(home, monkeypatch, capsys):
    for words in commands():
        name = words[2] if words[1] == "llm" else words[1]
        run([*words, *SMALL.get(name, [])], monkeypatch, capsys)
    assert (home / "runs" / "aligned" / "policy" / "README.md").is_file()
    assert (home / "runs" / "arena" / "report.html").is_file()


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("one_gpu_lora", TrainConfig),
        ("beaver_7b_zero3", TrainConfig),
        ("rounds_own_model", RoundsConfig),
    ],
)
def test_the_example_configs_are_valid(name, config):
    file = DOC.parent / "examples" / f"{name}.toml"
    validate(config, read_toml(file), str(file))


def test_the_category_config_is_valid():
    blocks = re.findall(r"```toml\n(.*?)```", DOC.read_text(encoding="utf-8"), re.S)
    config = validate(ScoreRunConfig, tomllib.loads(blocks[2]), "docs")
    assert list(config.categories) == ["violence", "privacy"]
