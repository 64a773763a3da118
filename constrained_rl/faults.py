"""Whose mistake is an exception: that of code which `crl` was given, or ours?

In Python an exception of a user's environment passes unchanged. The command line answers it with
one message, as all bad input; a mistake of ours keeps its traceback.
"""

import re
import sysconfig
import traceback
from pathlib import Path


def fault_in_given_code(error: Exception) -> str | None:
    """What a user's own code (an environment, a score) raised and where; None if it was not theirs.

    Theirs is the deepest line outside Python, installed packages and this project; lines of ours
    below it mean that the mistake may be ours.
    """
    ours = str(Path(__file__).resolve().parents[1])
    installed = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
    places = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(error.__traceback__)]
    for note in getattr(error, "__notes__", ()):  # of a process that stepped an environment
        places += re.findall(r'File "(.+?)", line (\d+), in (\w+)', note)
    for file, line, function in reversed(places):
        if file.startswith((f"{ours}/constrained_rl/", f"{ours}/llm_env/")):
            return None
        if file.startswith((*installed, "<")):
            continue
        return f"{file}, line {line}, in {function} raised {_named(error)}"
    return None


def where_raised(error: Exception) -> str:
    """What was raised, and the place too where it was in a user's own code."""
    return fault_in_given_code(error) or _named(error)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
