"""Is what `crl llm` needs installed?"""

from __future__ import annotations

from constrained_rl.errors import InputError


def require_llm() -> None:
    """Raise an installation hint unless transformers is there."""
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        raise InputError(
            "`crl llm` needs transformers, which is not installed; "
            'install it with: pip install "constrained-rl[llm,plot]"'
        )
