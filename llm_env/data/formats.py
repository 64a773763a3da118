r"""What does a row of each format say?

    pku             prompt, response_0, response_1, is_response_{0,1}_safe, better_response_id,
                    safer_response_id (PKU-SafeRLHF; its later fields are kept)
    hh              chosen, rejected: whole dialogues "\n\nHuman: …\n\nAssistant: …" (Anthropic HH)
    alpaca          instruction, input, output
    messages        messages: [{"role", "content"}, …], the last one is the answer to imitate
    demonstrations  prompt, response
    prompts         prompt

A row of `hh` prefers one answer and does not say in which respect: the file's own name does
(helpful-base, harmless-base), so a source declares it. Answers that come with a judgement each are
refused (judgements.py). A field that is null is absent. Absent: repairs, tools, images.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from constrained_rl.errors import InputError
from llm_env.data.judgements import refuse_judged
from llm_env.jsonl import Line, parse
from llm_env.preferences import PreferenceRow, parse_row
from llm_env.prompts import FieldError, Message, checked_message, checked_prompt

Format = Literal["pku", "hh", "alpaca", "messages", "demonstrations", "prompts"]
FIELDS: dict[Format, tuple[str, ...]] = {
    "pku": ("prompt", "response_0", "response_1", "better_response_id", "safer_response_id"),
    "hh": ("chosen", "rejected"),
    "alpaca": ("instruction", "output"),
    "messages": ("messages",),
    "demonstrations": ("prompt", "response"),
    "prompts": ("prompt",),
}
"""what tells a format, in the order in which they are tried"""
TELLING: dict[str, Format] = {"response_0": "pku", "response_1": "pku"}
"""fields of one format alone: a row with one of them that lacks others is a bad row of it"""
IMITATED: tuple[Format, ...] = ("alpaca", "messages", "demonstrations")
"""formats whose answers are taken for good"""
SPEAKER = re.compile(r"(?:\r?\n[ \t]*){2,}(Human|Assistant):")
"""an empty line, which may hold spaces or carriage returns, and who speaks"""
ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Comparison:
    """Two answers, of which one was preferred."""

    prompt: str | list[Message]
    chosen: str
    rejected: str

    @property
    def responses(self) -> tuple[str, ...]:
        """The preferred one first."""
        return self.chosen, self.rejected


@dataclass(frozen=True)
class Demonstration:
    """An answer to imitate."""

    prompt: str | list[Message]
    response: str

    @property
    def responses(self) -> tuple[str, ...]:
        """The one answer."""
        return (self.response,)


@dataclass(frozen=True)
class PromptRow:
    """A prompt alone."""

    prompt: str | list[Message]

    @property
    def responses(self) -> tuple[str, ...]:
        """None."""
        return ()


Row: TypeAlias = PreferenceRow | Comparison | Demonstration | PromptRow
Reader: TypeAlias = Callable[[Line], Row]


def reader(form: Format) -> Reader:
    """What reads the lines of a format; a bad one raises `FieldError` or `ValidationError`."""
    return READERS[form]


def detect(value: Mapping[str, object], where: str) -> Format:
    """The format of a row by its fields.

    Raises:
        InputError: they are of none, of which it names the nearest, or of one without a reader.
    """
    form = _format_of(value)
    if form in IMITATED or form == "prompts":
        try:
            refuse_judged(value)
        except FieldError as error:
            raise InputError(f"{where}: {error}") from error
    if form is not None and not ("response_2" in value and "response_0" not in value):
        return form
    raise _unknown(value, where)


def _format_of(value: Mapping[str, object]) -> Format | None:
    """The format whose fields a row has; tables of several kinds fill the others' with null."""
    told = {name for name in value if value[name] is not None}
    known: list[Format] = [
        form for form, fields in FIELDS.items() if set(fields) <= told and form != "prompts"
    ]
    # a null answer does not make a prompt of its row
    known += [form for form, fields in FIELDS.items() if set(fields) <= set(value)]
    # a preference row without a label must not pass for a prompt
    return next((TELLING[name] for name in value if name in TELLING), next(iter(known), None))


def _unknown(value: Mapping[str, object], where: str) -> InputError:
    """What is said of a row of no known format."""
    found = ", ".join(map(str, value)) or "none"
    known = sorted({name for fields in FIELDS.values() for name in fields})
    near = [
        f"{name!r} for {close[0]!r}"
        for name in map(str, value)
        if name not in known and (close := difflib.get_close_matches(name, known, 1, 0.7))
    ]
    meant = f"; perhaps it wrote {', '.join(near)}" if near else ""
    expected = "; ".join(f"{form}: {', '.join(fields)}" for form, fields in FIELDS.items())
    return InputError(
        f"{where}: the row has the fields {found}, which are of no known format{meant}. Expected "
        f"{expected}"
    )


def dialogue(text: object, field: str) -> list[Message]:
    r"""Turns of a dialogue in one text.

    >>> dialogue("\n\nHuman: hi\n\nAssistant: hello", "chosen")[1]
    {'role': 'assistant', 'content': 'hello'}
    """
    if not isinstance(text, str):
        raise FieldError(
            field, "is no string", f"Input should be a valid string, found {text!r:.60}"
        )
    # texts before the first turn, then speaker, content, speaker, content …
    before, *parts = SPEAKER.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if before.strip() or not parts:
        raise FieldError(
            field,
            "is no dialogue",
            rf"expected turns that begin with '\n\nHuman:' or '\n\nAssistant:', found {text!r:.60}",
        )
    return [
        {"role": ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _read_hh(line: Line) -> Comparison:
    value = _fields(line, FIELDS["hh"])
    chosen, rejected = (dialogue(value[name], name) for name in FIELDS["hh"])
    if chosen[:-1] != rejected[:-1] or "user" in (chosen[-1]["role"], rejected[-1]["role"]):
        raise FieldError(
            "rejected",
            "differs before the last answer",
            f"is not the same dialogue as chosen up to one last answer each (turns: {len(chosen)} "
            f"and {len(rejected)}); what was compared is not one answer",
        )
    prompt, best, other = chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]
    if best == other:
        raise FieldError("rejected", "is identical to chosen", "is identical to chosen")
    return Comparison(checked_prompt(prompt), best, other)


def _read_alpaca(line: Line) -> Demonstration:
    value = _imitated(line, "alpaca")
    instruction, more = value["instruction"], value.get("input") or ""
    if not isinstance(instruction, str) or not isinstance(more, str):
        raise FieldError("instruction", "is no string", "instruction and input must be strings")
    if not instruction.strip():
        raise FieldError("instruction", "is empty", "is empty")
    # joined as Safe RLHF's reference implementation does
    prompt = f"{instruction} {more}" if more else instruction
    return Demonstration(checked_prompt(prompt), _answer(value["output"], "output"))


def _read_messages(line: Line) -> Demonstration:
    messages = _imitated(line, "messages")["messages"]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise FieldError(
            "messages",
            "is no list",
            f'expected [{{"role": …, "content": …}}, …], found {messages!r:.60}',
        )
    *before, last = messages
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise FieldError(
            "messages",
            "does not end with the assistant",
            f"ends with {last!r:.60}, expected the assistant's turn: it is what is imitated",
        )
    answer = checked_message(last, f"messages.{len(before)}")
    return Demonstration(checked_prompt(before), _answer(answer["content"], "messages"))


def _read_demonstration(line: Line) -> Demonstration:
    value = _imitated(line, "demonstrations")
    return Demonstration(checked_prompt(value["prompt"]), _answer(value["response"], "response"))


def _read_prompt(line: Line) -> PromptRow:
    return PromptRow(checked_prompt(_fields(line, FIELDS["prompts"])["prompt"]))


READERS: dict[Format, Reader] = {
    "pku": parse_row,
    "hh": _read_hh,
    "alpaca": _read_alpaca,
    "messages": _read_messages,
    "demonstrations": _read_demonstration,
    "prompts": _read_prompt,
}


def _imitated(line: Line, form: Format) -> dict[str, object]:
    """The object of a line whose answer is imitated, whatever is said of it elsewhere."""
    value = _fields(line, FIELDS[form])
    refuse_judged(value)
    return value


def _fields(line: Line, names: Sequence[str]) -> dict[str, object]:
    """The object of a line, which has these fields."""
    value = parse(line)
    if not isinstance(value, dict):
        raise FieldError("line", "is no object", f"expected a JSON object, found {value!r:.60}")
    for name in names:
        if name not in value:
            near = difflib.get_close_matches(name, [k for k in value if k not in names], 1, 0.6)
            meant = f"; the row has {near[0]!r}, is that meant?" if near else ""
            raise FieldError(name, "is missing", f"is missing{meant}")
    return value


def _answer(value: object, field: str) -> str:
    """An answer to imitate; an empty one would teach silence."""
    if not isinstance(value, str):
        raise FieldError(
            field, "is no string", f"Input should be a valid string, found {value!r:.60}"
        )
    if not value.strip():
        raise FieldError(field, "is empty", "is empty: nothing to imitate")
    return value
