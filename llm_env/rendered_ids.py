"""Token ids of texts that a format writes around what people and models said.

The control tokens of a text are its format's: one that a message or a response spells is text. The
text is tokenized as one, with what the tokenizer puts before it (bos) and without what it appends
(`add_eos_token`, a post-processor `$A </s>`): a prompt is not over where the response begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from llm_env.control_tokens import Marked, StandIns, encode_marked, marked
from llm_env.prompts import Prompt, is_templated, said_in, with_said

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Said: TypeAlias = tuple[Prompt, str]
"""A prompt and a response to it, empty where there is none yet"""
Write: TypeAlias = Callable[[Prompt, str], str]
"""Makes one text of them"""


def rendered_ids(
    tokenizer: PreTrainedTokenizerBase, said: Sequence[Said], write: Write
) -> list[list[int]]:
    """Ids of the texts that `write` makes; a chat template writes its special tokens itself."""
    texts = [write(*one) for one in said]
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    before, stand_ins = opening(tokenizer, texts), StandIns.of(tokenizer)
    for index, (text, one) in enumerate(zip(texts, said, strict=True)):
        prompt, response = one
        spelled = {
            mark: token
            for mark, token in stand_ins.spelled([*said_in(prompt, tokenizer), response]).items()
            # a template may look for a token (one that ends a thought): then it is the template's
            if _marked(tokenizer, one, write, {mark: token}).plain == text
        }
        if spelled:
            rows[index] = encode_marked(tokenizer, _marked(tokenizer, one, write, spelled))
        if not is_templated(prompt, tokenizer):  # there, a bos would be doubled
            rows[index] = [*before, *rows[index]]
    return rows


def opening(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Tokens that a tokenizer puts before every text, like these."""
    ids: list[int] = []
    for text in ("a", *texts):
        found = tokenizer(text, return_special_tokens_mask=True)
        ids, mask = found["input_ids"], found["special_tokens_mask"]
        if 0 in mask:  # a text without tokens does not tell before from behind
            return ids[: mask.index(0)]
    return ids


def appends(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer puts a token behind every text."""
    mask: list[int] = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return mask[-1:] == [1]


def _marked(
    tokenizer: PreTrainedTokenizerBase, one: Said, write: Write, spelled: Mapping[str, str]
) -> Marked:
    """The text with stand-ins for what its messages and its response spell."""
    prompt, response = one
    asked = with_said(prompt, tokenizer, lambda text: marked(text, spelled))
    return Marked(write(asked, marked(response, spelled)), spelled)
