"""The direction of imports and the size of files, read from the sources."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("constrained_rl", "llm_env")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def imports(path):
    """Every module name that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; imports are absolute"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(path):
    return {name.split(".")[0] for name in imports(path)}


def of_the_core(name):
    """The core's modules that `constrained_rl/<name>.py` imports."""
    found = imports(ROOT / "constrained_rl" / f"{name}.py")
    return {module.split(".")[1] for module in found if module.startswith("constrained_rl.")}


def test_import_reader_sees_both_forms_of_import(tmp_path):
    source = tmp_path / "source.py"
    source.write_text("import a.b\ndef f():\n    from c import d\n")
    assert imports(source) == {"a.b", "c", "c.d"}


def test_the_core_never_imports_the_adapter():
    guilty = [n for n, p in zip(NAMES, FILES, strict=True) if "llm_env" in packages(p)]
    assert [name for name in guilty if name.startswith("constrained_rl/")] == []


@pytest.mark.parametrize("name", ["losses", "advantages"])
def test_formulas_import_nothing_of_the_package_but_errors_and_rollout(name):
    assert of_the_core(name) <= {"errors", "rollout"}


@pytest.mark.parametrize(
    "name", ["losses", "advantages", "multipliers", "scale_free", "rollout", "errors"]
)
def test_formulas_need_no_third_party_but_torch(name):
    standard = {"__future__", "collections", "dataclasses", "math", "typing"}
    assert packages(ROOT / "constrained_rl" / f"{name}.py") <= standard | {
        "torch",
        "constrained_rl",
    }


def test_the_loop_knows_no_environment_terminal_or_command_line():
    loop = ROOT / "constrained_rl" / "ppo.py"
    assert packages(loop).isdisjoint({"gymnasium", "rich", "typer", "transformers", "numpy"})
    assert of_the_core("ppo").isdisjoint(
        {"collectors", "networks", "agent", "envs", "cmdp", "run", "cli", "logging", "checkpoint"}
    )


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_has_at_most_400_lines_and_a_function_80(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name
