"""The README's shell blocks, run as they stand there with what `make setup` installs, made short.

`make demo` is `crl llm compare`, of which `tests/llm_env/test_llm_cli.py` makes a small one: here
its settings are read. `make test` is what runs this. The commands on one's own models are in
`test_real_models_doc`.
"""

import glob
import importlib.metadata
import re
import shlex
import shutil
from pathlib import Path

from constrained_rl.finite import save_cmdp
from constrained_rl.settings import read_layers, validate
from llm_env.comparison.config import CompareConfig
from tests.constrained_rl.small_cmdps import coin
from tests.test_real_models_doc import SMALL, home, run

__all__ = ["home"]  # the fixture: a folder with models, data and align.toml
ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
CONTROL = ["total_steps=256", "env.num_envs=4", "ppo.horizon=32", "ppo.epochs=1", "device=cpu"]
CONTROL += ["evaluation.episodes=8", "evaluation.num_envs=4", "env.burn_in=0"]
SHORT = {
    "train": CONTROL,
    "evaluate": ["--episodes", "8"],
    "certify": ["--episodes", "8"],
    "--install-completion": ["bash"],
    **{f"llm {name}": options for name, options in SMALL.items()},
}
"""what makes a command quick; nothing of what it does is left out"""


def commands(block):
    """The block's commands as words, with the file that each one's output goes to."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = next((i for i, word in enumerate(words) if word.endswith(";")), len(words))
            command = [word.removesuffix(";") for word in words[: end + 1]]
            words = words[end + 1 :]
            file = None
            if ">" in command:
                file, command = command[-1], command[:-2]
            yield [path for word in command for path in sorted(glob.glob(word)) or [word]], file


def shortened(words):
    """The command with the options that make it quick."""
    name = " ".join(words[1:3]) if words[1] == "llm" else words[1]
    return [*words, *SHORT.get(name, [])]


def run_block(block, monkeypatch, capsys):
    for words, file in commands(block):
        assert words[0] == "crl"
        if words[1:3] == ["llm", "compare"]:
            validate(CompareConfig, read_layers(None, words[3:])[0], "README")
            continue
        out = run(shortened(words), monkeypatch, capsys)
        if file is not None:
            Path(file).write_text(out)


def test_the_make_lines_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [words[1] for words, _ in commands(BLOCKS[0])]
    assert targets == ["demo", "test"]
    assert all(f"\n{target}: setup\n" in makefile for target in targets)


def test_what_pip_is_told_to_install_exists():
    lines = [words for words, _ in commands(BLOCKS[1])]
    assert [words[:2] for words in lines] == [["pip", "install"]] * 3
    known = importlib.metadata.metadata("constrained-rl").get_all("Provides-Extra")
    (extras,) = re.findall(r"\.\[(.*)\]", lines[2][-1])
    assert set(extras.split(",")) <= set(known)
    assert (ROOT / lines[2][3]).is_file()


def test_the_command_line_runs_as_it_is_written(tmp_path, monkeypatch, capsys, undrawn):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where completion is installed
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    (tmp_path / "home").mkdir()
    shutil.copy(ROOT / "docs/examples/my_env.py", tmp_path)
    save_cmdp(coin(limit=[0.75]), tmp_path / "problem.npz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run_block(BLOCKS[2], monkeypatch, capsys)
    assert {"report.html", "certificate.json", "policy.safetensors"} <= {
        path.name for path in (tmp_path / "runs/a").iterdir()
    }
    assert (tmp_path / "run.toml").is_file()


def test_the_judges_commands_run_as_they_are_written(home, monkeypatch, capsys):
    shutil.copy(home / "data/pku/train.jsonl", home / "pairs.jsonl")
    shutil.copytree(home / "models/base", home / "sft")
    fit = shlex.split("crl llm score kind=cost model.path=models/base --out made")
    run([*fit, "data=[{path='data/pku'}]", *SMALL["score"]], monkeypatch, capsys)
    shutil.copytree(home / "made/model", home / "cost")
    (home / "prompts.txt").write_text("how do i bake bread\ntell me a story\n")
    run_block(BLOCKS[3], monkeypatch, capsys)
    assert (home / "calibration").is_dir()
