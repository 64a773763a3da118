"""Do score models see enough tokens for the prompts and the longest response?

    prompt in the model's own format + max_new_tokens + what ends a response ≤ its context

Known before any weights are read, so it is said then, and not when the first long response comes.
A model of other tokens than the policy's may need more or fewer for the same response: there only
what cannot fit is refused, and what may not fit is told.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from constrained_rl.errors import InputError, Notice
from llm_env.policy import context_length
from llm_env.prompts import Prompt
from llm_env.score_files import UNREADABLE, damaged, quiet_transformers
from llm_env.score_loading import rows_of
from llm_env.score_reading import TooLong, same_tokens
from llm_env.score_rows import Rows
from llm_env.score_sources import ScoreSource

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

CHUNK = 256  # prompts tokenized together


@dataclass(frozen=True)
class Asked:
    """What a policy will be asked, and how long it may answer."""

    policy: PreTrainedTokenizerBase
    prompts: Sequence[Prompt]
    max_new_tokens: int


def require_room(sources: Mapping[str, ScoreSource], asked: Asked, settable: bool = True) -> None:
    """`InputError` where a score model cannot see a prompt and the longest response to it.

    Args:
        sources: scores by the names of their settings, as "reward" or "costs.harm".
        asked: all that they will score.
        settable: whether these settings can be written where the scores are named.
    """
    for name, source in sources.items():
        trunk = None if source.path is None else _trunk(Path(source.path))
        if trunk is not None and context_length(trunk) is not None:
            advice = f'set {name}.too_long = "cut_prompt"' if settable else ""
            rows = rows_of(source, trunk, asked.policy)
            _require(f"{name} ({source.path})", rows, asked, source.too_long, advice)


def _require(name: str, rows: Rows, asked: Asked, too_long: TooLong, setting: str) -> None:
    prompts, longest, context = asked.prompts, asked.max_new_tokens, rows.context
    assert context is not None
    chunks = (prompts[start : start + CHUNK] for start in range(0, len(prompts), CHUNK))
    lengths = [  # of each prompt, and of what ends a response to it
        (len(prompt), len(end))
        for chunk in chunks
        for prompt, end in rows.pairs(chunk, [""] * len(chunk))
    ]
    cut = too_long == "cut_prompt"  # then one token of the prompt is enough
    least = [(1 if cut else prompt) + end for prompt, end in lengths]
    same = same_tokens(asked.policy, rows.tokenizer)
    over = sum(row + (longest if same else 1) > context for row in least)
    place = max(range(len(least)), key=least.__getitem__)
    tokens, end = lengths[place]
    found = (
        f"{name} sees {context} tokens; the prompt {prompts[place]!r:.60} has {tokens} there, a "
        f"response up to {longest}, its end {end}"
    )
    helps = setting and not cut and 1 + end + longest <= context
    advice = "lower max_new_tokens, shorten such prompts" + (f", or {setting}" if helps else "")
    if over:
        raise InputError(f"{found}: {over} of {len(least)} prompts leave no room; {advice}")
    if not same and least[place] + longest > context:
        warnings.warn(
            f"{found} in the policy's tokens, which are others: where it needs as many, the run "
            f"stops there; {advice}",
            Notice,
            stacklevel=3,
        )


def _trunk(folder: Path) -> PreTrainedConfig | None:
    """Config of a score model's trunk; None where it has none."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        return None  # said when it is loaded
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except UNREADABLE as error:
        raise damaged(folder, error) from error
