"""How a prompt and a response become the row of token ids that a score model reads, to its end.

    ours              prompt ids, response ids, end       tokenized apart, as generation does
    other makers'     one text, tokenized as one          prompt, response and what ends them

The end of one of ours is the eos that it was trained with, whatever its chat template writes behind
an answer. Models of other makers (Beaver, sequence classifiers) saw a whole text: tokenized in
parts, SentencePiece adds a "▁" to the response and a merge across the border is lost. A model that
is trained on here goes on reading so. Training, scores of texts and scores of generated ids all
take their rows from here. Control tokens that a response spells are text (control_tokens.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from constrained_rl.errors import InputError, Notice
from llm_env.control_tokens import control_tokens, decode_said, encode_said, without_end
from llm_env.policy import context_length
from llm_env.prompts import (
    Prompt,
    PromptFormat,
    prompt_format,
    render_conversation,
    render_prompt,
    with_prompt_format,
)
from llm_env.rendered_ids import appends, rendered_ids
from llm_env.tokens import TokenPair, encode_pairs, encode_prompt_rows, require_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

Format: TypeAlias = Literal["crl", "beaver", "classification"]
"""Whose format a score model has: ours, PKU's, or that of transformers' sequence classifiers"""
CUT = chr(0xF8FF)  # private; stands where a response ends
NOTE = "score_reads_as"
"""key of a trunk's config.json"""
PROBE = "answer"


class ReadingNotice(Notice):
    """A score model is read otherwise than an earlier version read it."""


@dataclass(frozen=True)
class ReadAs:
    """What decides how a score model reads: who trained it, and to which end."""

    form: Format = "crl"
    end: int | None = None  # ours: the token behind every response; None: the tokenizer's eos


def noted(config: Mapping[str, Any]) -> ReadAs | None:
    """What the config of a score model's trunk notes; None: it was written before any did.

    Raises:
        InputError: it notes something else.
    """
    told = config.get(NOTE)
    if told is None:
        return None
    match told:
        case {"form": "crl" | "beaver" | "classification" as form, "end": int() | None as end}:
            return ReadAs(form, end)
    raise InputError(
        f"config.json of a score model says {NOTE} = {told!r}, which is no way to read that this "
        "version knows; copy the folder again, or update the library"
    )


def note(trunk: PreTrainedConfig, read_as: ReadAs) -> None:
    """Keep in a trunk's config how its score model reads; saved with it."""
    trunk.update({NOTE: asdict(read_as)})


@dataclass(frozen=True)
class Rows:
    """Rows of token ids of one score model."""

    tokenizer: PreTrainedTokenizerBase  # its prompt format is the model's
    whole: bool  # one text, or prompt and response apart
    end: tuple[int, ...]  # tokens behind a response where they are apart
    context: int | None  # tokens that the model sees
    closed: bool = True  # whether a whole text goes on behind its response
    padding: int | None = None  # token that is never read at the end of a whole text

    def pairs(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[TokenPair]:
        """Ids of each prompt, and of its response with what ends it."""
        require_pairs(prompts, responses)
        if self.whole:
            return self._whole(prompts, responses) if prompts else []
        pairs = encode_pairs(self.tokenizer, prompts, responses)
        return [(prompt, [*answer[:-1], *self.end]) for prompt, answer in pairs]

    def generated(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
    ) -> list[TokenPair]:
        """The same of responses that were generated in this tokenizer's ids.

        The ids stay as they are, unless a control token is among them: what other readers see of
        such a response is its text, without that token.
        """
        control = {self.tokenizer.eos_token_id, *control_tokens(self.tokenizer).values()}
        said = [without_end(row, control) for row in answers]
        odd = [place for place, row in enumerate(said) if not control.isdisjoint(row)]
        for place in odd:
            text = decode_said(self.tokenizer, said[place])
            (said[place],) = encode_said(self.tokenizer, [text])
        asked = encode_prompt_rows(self.tokenizer, prompts) if prompts else []
        return [(prompt, [*row, *self.end]) for prompt, row in zip(asked, said, strict=True)]

    def _whole(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[TokenPair]:
        """Texts in two parts each: what the ids of the prompt alone begin with, and the rest."""
        said = list(zip(prompts, responses, strict=True))
        rows = rendered_ids(self.tokenizer, said, self._text)
        pairs = []
        for alone, row in zip(encode_prompt_rows(self.tokenizer, prompts), rows, strict=True):
            read = len(row)
            while read > 1 and row[read - 1] == self.padding:
                read -= 1
            asked = min(_shared(alone, row), read)
            pairs.append((row[:asked], row[asked:read]))
        return pairs

    def _text(self, prompt: Prompt, response: str) -> str:
        text = render_conversation(prompt, response, self.tokenizer)
        if self.closed:
            return text
        longer = render_conversation(prompt, response + CUT, self.tokenizer)
        return text[: _shared(text, longer)]


def trained(read_as: ReadAs, tokenizer: PreTrainedTokenizerBase) -> ReadAs:
    """The same with its end, once a model was trained to read so: another eos moves it no more."""
    if read_as.form != "crl" or read_as.end is not None:
        return read_as
    return replace(read_as, end=tokenizer.eos_token_id)


def score_rows(
    tokenizer: PreTrainedTokenizerBase,
    trunk: PreTrainedConfig,
    prompts: PromptFormat = "auto",
    append_eos: bool | None = None,
) -> Rows:
    """How a score model reads.

    Args:
        tokenizer: its own.
        trunk: config of its trunk; one that notes nothing is of a model that is new.
        prompts: format of its prompts; default: as the model's format says, else its folder.
        append_eos: whether a response is followed by what ends it; default: as in training, and
            where a classifier takes that for padding, not.
    """
    read_as = noted(trunk.to_dict()) or ReadAs()
    end = tokenizer.eos_token_id if read_as.end is None else read_as.end
    # transformers pools at the last token that is not pad; where pad is eos, before the eos
    pooled = read_as.form == "classification" and append_eos is None
    return Rows(
        tokenizer=in_own_format(read_as, tokenizer, prompts),
        whole=read_as.form != "crl",
        end=() if append_eos is False or read_as.form != "crl" else (end,),
        context=context_length(trunk),
        closed=append_eos is not False,
        padding=trunk.get_text_config().pad_token_id if pooled else None,
    )


def in_own_format(
    read_as: ReadAs, tokenizer: PreTrainedTokenizerBase, prompts: PromptFormat = "auto"
) -> PreTrainedTokenizerBase:
    """A score model's tokenizer in the format of its prompts; the one handed in is unchanged.

    Args:
        read_as: who trained the model.
        tokenizer: its own.
        prompts: their format; default: as the model's format says, else its folder.

    Raises:
        InputError: "template" where the tokenizer has none.
    """
    form = _format_of_prompts(read_as, tokenizer) if prompts == "auto" else prompts
    return with_prompt_format(tokenizer, form)


def tell_of_old(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Say where a model of ours that was saved before folders named their end is read differently.

    Its training ended every row with eos, and so it is read; it was used behind what its chat
    template writes, and tokenizers that append an eos to a text put one behind the prompt.
    """
    moved = []
    if prompt_format(tokenizer) == "template":
        written = render_conversation(PROBE, PROBE, tokenizer)
        if written != render_prompt(PROBE, tokenizer) + PROBE + tokenizer.eos_token:
            moved.append(
                "behind eos, as it was trained, and no more behind what its template writes"
            )
    if appends(tokenizer):
        moved.append("without the token that its tokenizer appended to prompts")
    if moved:
        warnings.warn(
            f"score model {folder} was written by an earlier version: it is now read "
            f"{' and '.join(moved)}. Its numbers are others: choose limits again with `crl llm "
            "calibrate`, or fit it again with `crl llm score`",
            ReadingNotice,
            stacklevel=2,
        )


def _format_of_prompts(read_as: ReadAs, tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """How a model wants prompts, where nobody says so: as its folder does, else by its format."""
    if read_as.form == "beaver":
        return "beaver"  # whatever a tokenizer that is the policy's says
    told = prompt_format(tokenizer)
    templated = read_as.form == "classification" and tokenizer.chat_template is not None
    return "template" if told == "auto" and templated else told


def _shared(first: Sequence[object], second: Sequence[object]) -> int:
    """How many elements two sequences begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
