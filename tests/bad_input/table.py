"""The page of the documentation that shows what each bad input gives.

Write it with: python -m tests.bad_input.table > docs/bad_input.md
"""

import contextlib
import re
import sys

from tests.bad_input.case import Case
from tests.bad_input.cases import AREAS, CASES
from tests.bad_input.outcome import Outcome, message, played

HEAD = """# What bad input gives

{count} inputs that are wrong, and what `crl` says of each: one message, exit code 2, no traceback,
and nothing that was there is changed. `crl --debug …` shows the traceback as well. What can be
known before training is said before a run's folder is made; what is only seen while training leaves
the run with its last good checkpoint.

This page is written by `python -m tests.bad_input.table > docs/bad_input.md` from the corpus in
`tests/bad_input/`, which is also a test; `…` stands for what differs between machines.
"""


def page() -> str:
    """The whole page."""
    lines = [HEAD.format(count=len(CASES))]
    for area, cases in AREAS.items():
        lines += [f"## {area}\n", "| what is wrong | what is said |", "|---|---|"]
        lines += [row(case, played(case)) for case in cases]
        lines.append("")
    return "\n".join(lines)


def row(case: Case, outcome: Outcome) -> str:
    """One line of a table."""
    said = message(case, outcome).removeprefix("error: ")
    said = re.sub(r" *\n *", "<br>", re.sub(r"([\\`*_|<\[\]~])", r"\\\1", said))
    return f"| {case.wrong} | {said} |"


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # runs talk while they are prepared
        text = page()
    print(text, end="")
