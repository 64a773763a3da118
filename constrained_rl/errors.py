"""The two families of errors a user can meet; everything else is a defect of ours or of theirs.

`InputError` is raised for what a user handed in (config, files, environments, models), before
anything expensive starts. `NonFiniteError` stops a run whose numbers are no longer numbers. The
command line prints either as one message and exits with code 2; `--debug` shows the traceback.
What a user's own code raises passes unchanged in Python; of the command line see `faults`.
"""

import math
from collections.abc import Callable

from torch import Tensor, isfinite


class InputError(ValueError):
    """Something handed in is wrong. The message says what was found, expected, and what to do."""


class NonFiniteError(ArithmeticError):
    """A loss, score or gradient is NaN or infinite. The last checkpoint on disk is intact."""


class RankError(RuntimeError):
    """Another rank of a job died, failed, or kept this one waiting; its own message says why."""


class Notice(UserWarning):
    """A warning to the user, which the command line prints as one line, without a place in code."""


def require_finite(name: str, value: Tensor, item: Callable[[int], str] | None = None) -> Tensor:
    """Return `value`, or raise `NonFiniteError` naming the tensor and how much of it is bad.

    `item` describes what a place in the flat tensor stands for; the first bad one is shown.
    """
    if value.ndim == 0 and math.isfinite(value.item()):
        return value  # several times faster for the many single numbers
    finite = isfinite(value)
    if not bool(finite.all()):
        bad = (~finite).flatten().nonzero().flatten()
        first = "" if item is None else f", the first of {item(int(bad[0]))}"
        raise NonFiniteError(
            f"{name}: {len(bad)} of {value.numel()} values are NaN or infinite{first}; the run "
            "stops here and its last checkpoint is intact. Lower the learning rate or check the "
            "scores, then continue with `crl resume`"
        )
    return value


def short(value: object) -> str:
    """`repr` in at most 120 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else f"{text[:117]}…"
