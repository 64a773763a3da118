"""The README's tables come from the committed results, and its Python runs."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["readme_tables.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / "readme_tables.py"), run_name="__main__")
    assert ended.value.code == 0, "run python benchmarks/readme_tables.py"


def test_every_file_the_readme_names_exists():
    named = re.findall(r"\((docs/[^)]+)\)|`((?:docs|benchmarks|tests)/[\w./]+)`", README)
    paths = [ROOT / (image or file) for image, file in named]
    assert paths
    assert [path for path in paths if not path.exists()] == []


@pytest.mark.parametrize("index", [0, 1])
def test_the_first_examples_run(index):
    block = re.findall(r"```python\n(.*?)```", README, flags=re.S)[index]
    # The same lines with fewer steps: an iteration or two instead of a full training run.
    block = block.replace("200_000", "4_000")
    exec(compile(block, f"README block {index}", "exec"), {})
