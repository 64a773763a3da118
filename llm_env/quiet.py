"""What keeps the remarks of other libraries out of a command's output?

Settings of the process, made before those libraries are imported. Absent: anything on import, so
that a program that uses this package in Python decides for itself.
"""

from __future__ import annotations

import logging
import os


def quiet_libraries() -> None:
    """No progress bars and remarks of transformers and DeepSpeed between a command's own lines.

    TRANSFORMERS_VERBOSITY in the environment wins.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # DeepSpeed says on standard output that there is no GPU as soon as anything imports it, and
    # transformers does when it saves a model
    logging.getLogger("DeepSpeed").addFilter(
        lambda record: not str(record.msg).startswith("Setting accelerator to CPU")
    )
