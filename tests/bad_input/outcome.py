"""Play a bad input in a folder of its own: exit code, output, and what changed on disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import gymnasium

from constrained_rl.cli import run_cli
from llm_env import cli
from tests.bad_input.case import Case

OF_OTHER_TESTS = ("tests/", "odd/")
WIDE = {"COLUMNS": "2000", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
"""of the terminal, so that messages are not wrapped"""


@dataclass(frozen=True)
class Outcome:
    """What a user sees and finds afterwards."""

    code: object
    out: str
    err: str
    warned: tuple[str, ...]
    before: dict[str, str]  # path → SHA-256, "folder" for a folder
    after: dict[str, str]

    @property
    def new(self) -> set[str]:
        """Paths that were not there before."""
        return set(self.after) - set(self.before)

    @property
    def changed(self) -> set[str]:
        """Paths that were overwritten or removed."""
        return {path for path, digest in self.before.items() if self.after.get(path) != digest}


@functools.cache
def played(case: Case) -> Outcome:
    """As `play`, once."""
    return play(case)


def play(case: Case) -> Outcome:
    """Run the case in this process, in a new temporary folder."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        if case.setup is not None:
            case.setup(folder)
        before = snapshot(folder)
        run = case.run if callable(case.run) else cli.main
        arguments = () if callable(case.run) else case.run
        code, out, err, warned = call(run, arguments, case.missing)
        out, err = (text.replace(f"{folder.resolve()}/", "") for text in (out, err))
        return Outcome(code, out, err, warned, before, snapshot(folder))


def call(
    run: Callable[[], object], arguments: tuple[str, ...], missing: tuple[str, ...]
) -> tuple[object, str, str, tuple[str, ...]]:
    """Exit code, standard output, standard error, warnings."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["crl", *arguments]),
        mock.patch.dict(os.environ, WIDE),
        mock.patch.dict(gymnasium.registry, clear=False),
        not_installed(missing),
        as_in_a_process() as caught,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        for name in [name for name in gymnasium.registry if name.startswith(OF_OTHER_TESTS)]:
            del gymnasium.registry[name]  # near names of a misspelt one are the library's
        try:
            cli.main() if run is cli.main else run_cli(run)
            code: object = 0
        except SystemExit as ended:
            code = ended.code
    return code, out.getvalue(), err.getvalue(), tuple(caught)


@contextlib.contextmanager
def not_installed(packages: tuple[str, ...]) -> Iterator[None]:
    """Python cannot import these packages, nor what has been imported of them."""
    hidden = {
        name: module for name, module in sys.modules.items() if name.split(".")[0] in packages
    }
    sys.modules.update(dict.fromkeys((*packages, *hidden)))
    try:
        yield
    finally:
        for name in {*packages, *hidden}:
            del sys.modules[name]
        sys.modules.update(hidden)


@contextlib.contextmanager
def as_in_a_process() -> Iterator[list[str]]:
    """Warnings as Python shows them by default, collected; an import path of its own."""
    path, texts = list(sys.path), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for quiet in (DeprecationWarning, PendingDeprecationWarning, ImportWarning):
            warnings.simplefilter("ignore", quiet)
        try:
            yield texts
        finally:
            sys.path[:] = path
            texts += [str(item.message) for item in caught]


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below the folder, with a digest of its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" in path.parts:
            continue
        content = path.read_bytes() if path.is_file() else b""
        digest = hashlib.sha256(content).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(folder))] = digest
    return found


def message(case: Case, outcome: Outcome) -> str:
    """What was said, without what differs from one machine or minute to the next."""
    text = outcome.out if case.said == "report" else outcome.err
    if case.said == "usage":
        text = " ".join(re.findall(r"│ (.*?) *│", text))
    text = re.sub(r"0x[0-9a-f]{6,}", "0x…", text.strip())
    text = re.sub(r"/[^ ]*/(tests/bad_input/\S+, line) \d+", r"\1 …", text)
    text = re.sub(r"(torch\.optim) [\w.+]+", r"\1", text)
    return re.sub(r"('[^']*') to (?='how do i)", "'…' to ", text)  # what a random model says
