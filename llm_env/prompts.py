"""Prompts of one turn or several, and the text a model reads of them.

    "how do I bake bread?"                               a string
    [{"role": "user", "content": "hi"}, …]               messages: system?, user, assistant, …, user
    ["hi", "hello", "how do I bake bread?"]              the same turns, alternating from the user

How they become text is a property of a model, so it is kept with its tokenizer, also on disk. Where
nothing is said it is "template" if the tokenizer has a chat template, and else "auto":

    auto      a string as it is; turns by the chat template, or where there is none as "beaver"
    template  all by the tokenizer's chat template; a string is one turn of the user
    beaver    all in the format of the released Safe RLHF models; a string is one turn of the user
              BEGINNING OF CONVERSATION: USER: {user} ASSISTANT:{answer}{eos}USER: {user} ASSISTANT:
              a string that is such a text from beginning to end stays as it is
    plain     a string as it is; several turns are refused

Text callables (`Scorer`) receive prompts as they were handed in, never the rendered text: a judge
of another family must not read the control tokens of this one. A string that is used as it is may
write control tokens; a message that spells one is text (rendered_ids.py). Absent: tools, images,
truncation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from constrained_rl.errors import InputError
from llm_env.template_dates import template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message: TypeAlias = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}: what chat templates read"""
Prompt: TypeAlias = str | Sequence[str | Mapping[str, str]]
"""One turn as a string, or several turns that end with the user's"""

PromptFormat: TypeAlias = Literal["auto", "template", "beaver", "plain"]
"""How prompts become text"""

BEGIN, USER, ASSISTANT = "BEGINNING OF CONVERSATION: ", "USER: {} ", "ASSISTANT:"
ROLES = ("system", "user", "assistant")
KEYS = {"role", "content"}


class FieldError(ValueError):
    """A field holds what it must not: its path, a short kind to count by, and the reason."""

    def __init__(self, field: str, kind: str, reason: str) -> None:
        super().__init__(field, kind, reason)  # all of it: worker processes pickle errors
        self.field, self.kind, self.reason = field, kind, reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


def checked_prompt(value: object) -> str | list[Message]:
    """A prompt as a string or as messages; alternating strings become messages.

    Raises:
        FieldError: the prompt or one of its turns is empty or of another type, or the turns do not
            alternate from the user to the user.
    """
    if isinstance(value, str):
        if not value.strip():
            raise FieldError("prompt", "is empty", "is empty")
        return value
    if not isinstance(value, Sequence) or isinstance(value, bytes | bytearray):
        raise FieldError(
            "prompt",
            "is neither a string nor a list",
            f"Input should be a valid string, found {value!r:.60}; several turns are a list of "
            '{"role": …, "content": …}',
        )
    return _messages(list(value))


def set_prompt_format(tokenizer: PreTrainedTokenizerBase, form: PromptFormat) -> None:
    """Decide how prompts become text for the model of this tokenizer; saved with it.

    Raises:
        InputError: "template" where the tokenizer has none.
    """
    if form == "template" and tokenizer.chat_template is None:
        raise InputError(
            f"prompt_format is 'template', but the tokenizer of {tokenizer.name_or_path!r} has no "
            "chat template; use 'beaver' or 'plain', or put a chat_template into the model's folder"
        )
    tokenizer.init_kwargs["prompt_format"] = form  # what save_pretrained writes


def with_prompt_format(
    tokenizer: PreTrainedTokenizerBase, form: PromptFormat
) -> PreTrainedTokenizerBase:
    """The same tokenizer in another format, for a model that shares it; the first is unchanged.

    Raises:
        InputError: "template" where the tokenizer has none.
    """
    own = copy.copy(tokenizer)
    own.init_kwargs = dict(tokenizer.init_kwargs)
    set_prompt_format(own, form)
    return own


def says_format(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether somebody decided how prompts become text for the model of this tokenizer."""
    return "prompt_format" in tokenizer.init_kwargs


def prompt_format(tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """How prompts become text for the model of this tokenizer; `InputError` if no one knows."""
    usual: PromptFormat = "auto" if tokenizer.chat_template is None else "template"
    form: PromptFormat = tokenizer.init_kwargs.get("prompt_format", usual)
    if form not in get_args(PromptFormat):
        raise InputError(
            f"the tokenizer's prompt_format is {form!r}, expected one of "
            f"{', '.join(get_args(PromptFormat))}; correct it in tokenizer_config.json"
        )
    return form


def render_prompt(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a prompt up to where the response begins.

    Raises:
        InputError: the prompt is malformed, or its turns have no text in the tokenizer's format.
    """
    if isinstance(prompt, str) and not _has_format(prompt, tokenizer):
        return prompt
    form = _form(prompt, tokenizer)
    write = {"template": _by_template, "beaver": _by_paper, "plain": _as_it_is}[form]
    return write(_messages_of(prompt), tokenizer)


def render_conversation(prompt: Prompt, response: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a prompt, its response and what ends it, as score models of other makers read it.

    A chat template writes all of it, also what it puts before the last answer alone; elsewhere the
    response and eos follow the prompt.

    Raises:
        InputError: as `render_prompt`.
    """
    if is_templated(prompt, tokenizer):
        answered = [*_messages_of(prompt), {"role": "assistant", "content": response}]
        return _by_template(answered, tokenizer, asks=False)
    return render_prompt(prompt, tokenizer) + response + (tokenizer.eos_token or "")


def said_in(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What was said in a prompt, apart from what its format writes; [] where it has none."""
    if not _has_format(prompt, tokenizer):
        return []
    return [message["content"] for message in _messages_of(prompt)]


def with_said(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase, change: Callable[[str], str]
) -> Prompt:
    """A prompt in which what was said (`said_in`) is changed."""
    if not _has_format(prompt, tokenizer):
        return prompt
    return [{**turn, "content": change(turn["content"])} for turn in _messages_of(prompt)]


def is_templated(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a chat template writes this prompt, its own special tokens (bos) included."""
    return _form(prompt, tokenizer) == "template"


def says_nothing(value: object) -> bool:
    """Whether a field's value is null or empty, as columns of other rows are in parquet files.

    >>> [says_nothing(value) for value in (None, [], {"name": None}, False, 0)]
    [True, True, True, False, False]
    """
    if isinstance(value, Mapping):
        return all(says_nothing(part) for part in value.values())
    if isinstance(value, list | tuple):
        return all(says_nothing(part) for part in value)
    return value is None or value == ""


def turns(prompt: Prompt) -> int:
    """Number of turns of the user and the assistant."""
    if isinstance(prompt, str):
        return 1
    return sum(isinstance(turn, str) or turn["role"] != "system" for turn in prompt)


def _has_format(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a format writes around what was said; other prompts are used as they are."""
    form = _form(prompt, tokenizer)
    written = form == "beaver" and isinstance(prompt, str) and _is_paper_text(prompt)
    return form != "plain" and not written


def _messages_of(prompt: Prompt) -> list[Message]:
    """A prompt's messages; a string is one turn of the user."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    try:
        messages = checked_prompt(prompt)
    except FieldError as error:
        raise InputError(f"{error} (found in {prompt!r:.200})") from error
    assert not isinstance(messages, str)
    return messages


def _messages(value: list[object]) -> list[Message]:
    """Check several turns."""
    if not value:
        raise FieldError("prompt", "is empty", "is empty; a list of turns needs at least one")
    if all(isinstance(turn, str) for turn in value):
        roles = ("user", "assistant")
        value = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(value)]
    messages = [checked_message(turn, f"prompt.{index}") for index, turn in enumerate(value)]
    first = 1 if messages[0]["role"] == "system" else 0
    for index, message in enumerate(messages[first:], start=first):
        expected = ("user", "assistant")[(index - first) % 2]
        if message["role"] != expected:
            raise FieldError(
                f"prompt.{index}.role",
                "turns do not alternate",
                f"is {message['role']!r}, expected {expected!r}: turns alternate from the user, a "
                "system turn may come first",
            )
    if messages[-1]["role"] != "user":
        raise FieldError(
            "prompt",
            "does not end with the user",
            f"ends with a turn of the {messages[-1]['role']}, expected the user: the responses "
            "answer the last turn",
        )
    return messages


def checked_message(turn: object, field: str) -> Message:
    """One message; members that say nothing (null, or empty lists) are left out.

    Raises:
        FieldError: a key is missing or is another's, as `tool_calls`; a role or content is none.
    """
    told = dict(turn) if isinstance(turn, Mapping) else {}
    if told.keys() != KEYS:
        told = {key: value for key, value in told.items() if key in KEYS or not says_nothing(value)}
    if told.keys() != KEYS:
        found = f"the keys {list(told)}" if isinstance(turn, Mapping) else repr(turn)
        raise FieldError(
            field,
            "is no message",
            f"expected an object with exactly the keys role and content, found {found:.60}; what "
            "else a message says (tools, names) is not read: leave such rows out",
        )
    role, content = told["role"], told["content"]
    if role not in ROLES:
        raise FieldError(
            f"{field}.role", "is no role", f"expected one of {', '.join(ROLES)}, found {role!r:.60}"
        )
    if not isinstance(content, str):
        raise FieldError(
            f"{field}.content",
            "is no string",
            f"Input should be a valid string, found {content!r:.60}",
        )
    if not content.strip():
        raise FieldError(f"{field}.content", "is empty", "is empty")
    return {"role": role, "content": content}


def _form(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """How this prompt is written: template, beaver or plain."""
    form = prompt_format(tokenizer)
    if form != "auto":
        return form
    if isinstance(prompt, str):
        return "plain"
    return "beaver" if tokenizer.chat_template is None else "template"


def _is_paper_text(prompt: str) -> bool:
    """Whether a string is in the format of Safe RLHF already, from its beginning to its end."""
    return prompt.startswith(BEGIN) and prompt.rstrip().endswith(ASSISTANT)


def _as_it_is(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """The user's only turn, without any format."""
    if len(messages) > 1:
        raise InputError(
            f"a prompt has {len(messages)} messages, which have no plain text; set prompt_format "
            "to template or beaver"
        )
    return messages[0]["content"]


def _by_template(
    messages: list[Message], tokenizer: PreTrainedTokenizerBase, *, asks: bool = True
) -> str:
    """Text by the tokenizer's chat template; where it asks, up to the assistant's turn."""
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=asks,
                chat_template=template_of(tokenizer),
            )
        )
    except (TemplateError, ValueError) as error:
        raise InputError(
            f"the tokenizer's chat template refuses a prompt of {len(messages)} messages "
            f"({error}); change the prompt or set tokenizer.chat_template"
        ) from error


def _by_paper(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """Text in the format of the released Safe RLHF models."""
    if messages[0]["role"] == "system":
        raise InputError(
            "the prompt begins with a system turn, which the format of Safe RLHF does not know; "
            "leave it out, or set tokenizer.chat_template to that of the model"
        )
    if messages[0]["content"].startswith(BEGIN.strip()):
        raise InputError(
            f"a prompt begins with {BEGIN.strip()!r} already: {messages[0]['content']!r:.100}; it "
            "would be written twice; hand in the bare prompt, the whole text up to "
            f"{ASSISTANT!r}, or set prompt_format=plain"
        )
    text = BEGIN
    for message in messages:
        if message["role"] == "user":
            text += USER.format(message["content"]) + ASSISTANT
        else:
            text += message["content"] + (tokenizer.eos_token or "")
    return text
