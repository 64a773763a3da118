"""`crl llm chat`: talk to a model in the terminal; every answer shows its reward and its costs.

    /reset            forget the conversation          /temperature T    0 is greedy
    /save FILE        the conversation as JSON lines   /help, /quit

A conversation that outgrows the model's context loses its oldest turns, with a notice; a line that
does not fit alone is refused. Reads any text stream, so a file of lines can be piped in.
Absent: streaming of tokens.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch
from rich.markup import escape

from constrained_rl.checkpoint import write_text
from constrained_rl.devices import choose_device
from constrained_rl.errors import InputError
from llm_env.arena.answers import Answering, open_model
from llm_env.arena.judging import Judge
from llm_env.collectors import Responses, Score
from llm_env.generation import generate
from llm_env.models import ModelSource
from llm_env.policy import context_length
from llm_env.prompts import Message, Prompt
from llm_env.response_ends import Reading, end_ids
from llm_env.score_sources import CostSource, ScoreSource
from llm_env.tokens import TokenRows, decode_responses, encode_prompts, join

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel

LONGEST = 256
"""tokens of an answer, where the context has room for twice as many"""
HELP = "/reset  /save FILE  /temperature T  /help  /quit"


@dataclass(frozen=True)
class ChatOptions:
    """How the model answers."""

    temperature: float
    max_new_tokens: int | None  # None: 256, or half of a context that is shorter than two of it
    raw: bool  # every line is a prompt of its own, used as it is
    seed: int


@dataclass(frozen=True)
class Turn:
    """One line and its answer."""

    asked: str
    answered: str
    stop_reason: str
    scores: dict[str, float]


@dataclass
class ChatRoom:
    """A model, its scores, and the conversation so far."""

    model: Answering
    scores: dict[str, Score]
    costs: tuple[str, ...]
    longest: int  # tokens of an answer
    room: int  # tokens that a prompt may have
    options: ChatOptions
    generator: torch.Generator
    turns: list[Turn] = field(default_factory=list)  # what the model remembers
    spoken: list[Turn] = field(default_factory=list)  # all since the last reset


def open_chat(
    folder: Path,
    sources: tuple[Mapping[str, ScoreSource], Mapping[str, CostSource]],  # rewards, costs
    options: ChatOptions,
    device: str,
) -> ChatRoom:
    """Load a model and its scores; `InputError` where they do not fit together."""
    if not folder.is_dir():
        raise InputError(f"model folder {folder} does not exist; give one that holds config.json")
    where = choose_device(device)
    source = ModelSource(path=str(folder), prompt_format="plain" if options.raw else None)
    model = open_model(folder.name, source, where)
    longest = options.max_new_tokens or min(
        LONGEST, (context_length(model.config) or math.inf) // 2
    )
    found = Judge(*sources).load(model.tokenizer, where)
    return ChatRoom(
        model=model,
        scores={name: score for name, (_, score) in found.items()},
        costs=tuple(sources[1]),
        longest=int(longest),
        room=model.reader(int(longest)).room,
        options=options,
        generator=torch.Generator(where).manual_seed(options.seed),
    )


def converse(room: ChatRoom, lines: TextIO, console: Console) -> None:
    """Answer every line until the end of the stream or /quit."""
    console.print(f"{room.model.source.path}   {HELP}", style="dim", highlight=False)
    while (line := _next_line(lines, console)) is not None:
        text = line.strip()
        if text in ("/quit", "/exit"):
            break
        try:
            if text.startswith("/"):
                command(room, text, console)
            elif text:
                show(say(room, text, console), room, console)
        except InputError as error:
            said = f"[red]error:[/red] {escape(str(error))}"
            console.print(said, highlight=False, soft_wrap=True)


def _next_line(lines: TextIO, console: Console) -> str | None:
    """A line, asked for on a terminal and repeated elsewhere; None at the end."""
    if lines is sys.stdin and lines.isatty():
        try:
            return console.input("[bold]you[/bold]    ")
        except (EOFError, KeyboardInterrupt):
            return None
    line = lines.readline()
    if line.strip():
        console.print(f"[bold]you[/bold]    {escape(line.strip())}", soft_wrap=True)
    return line or None


def command(room: ChatRoom, text: str, console: Console) -> None:
    """A line that begins with a slash."""
    name, _, argument = text.partition(" ")
    argument = argument.strip()
    match name:
        case "/reset":
            room.turns, room.spoken = [], []
            console.print("the conversation begins anew", style="dim")
        case "/save":
            save(room, argument)
            console.print(f"wrote {argument}", style="dim", highlight=False)
        case "/temperature":
            temperature = _temperature(argument)
            room.options = replace(room.options, temperature=temperature)
            said = "greedy" if temperature == 0 else f"temperature {temperature:g}"
            console.print(said, style="dim", highlight=False)
        case "/help":
            console.print(HELP, style="dim", highlight=False)
        case _:
            raise InputError(f"{name} is no command; there are {HELP}")


def _temperature(text: str) -> float:
    try:
        temperature = float(text)
    except ValueError:
        temperature = math.nan
    if not 0 <= temperature < math.inf:
        raise InputError(f"/temperature needs a number ≥ 0, found {text!r}; 0 is greedy")
    return temperature


def save(room: ChatRoom, place: str) -> None:
    """The conversation, one JSON object per turn."""
    if not place:
        raise InputError("/save needs a file: /save conversation.jsonl")
    rows = [
        {
            "prompt": turn.asked,
            "response": turn.answered,
            "stop_reason": turn.stop_reason,
            "scores": turn.scores,
        }
        for turn in room.spoken
    ]
    try:
        write_text(Path(place), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except OSError as error:
        raise InputError(f"{place} cannot be written ({error.strerror}); name another") from error


def say(room: ChatRoom, text: str, console: Console) -> Turn:
    """The model's answer to a line, after what it remembers of the conversation."""
    ids, attention, prompt = _encode(room, text, console)
    rows, stop_reason = _answer(room, ids, attention)
    answered = decode_responses(room.model.tokenizer, rows.response_ids, rows.response_mask)[0]
    responses = Responses(rows, [prompt], room.model.tokenizer)
    with torch.no_grad():
        scores = {name: float(score(responses)[0]) for name, score in room.scores.items()}
    turn = Turn(text, answered, stop_reason, scores)
    room.turns.append(turn)
    room.spoken.append(turn)
    return turn


def _encode(
    room: ChatRoom, text: str, console: Console
) -> tuple[torch.Tensor, torch.Tensor, Prompt]:
    """Token ids of the line behind as many turns as fit; the oldest go first."""
    dropped = 0
    while True:
        prompt = _prompt(room, text)
        ids, attention = encode_prompts(room.model.tokenizer, [prompt], sys.maxsize)
        if ids.shape[1] <= room.room:
            break
        if not room.turns or room.options.raw:
            raise InputError(
                f"this line has {ids.shape[1]} tokens, the model has room for {room.room} beside "
                f"an answer of {room.longest}; shorten it, or lower "
                "--max-new-tokens"
            )
        room.turns, dropped = room.turns[1:], dropped + 1
    if dropped:
        forgotten = "turn is" if dropped == 1 else f"{dropped} turns are"
        said = f"the context is full: the oldest {forgotten} forgotten"
        console.print(said, style="yellow", highlight=False)
    return ids, attention, prompt


def _prompt(room: ChatRoom, text: str) -> Prompt:
    """The line as it is, or the conversation's messages."""
    if room.options.raw:
        return text
    messages: list[Message] = []
    for turn in room.turns:
        if not turn.answered.strip():
            continue  # no message; without it the line before would answer another line
        messages.append({"role": "user", "content": turn.asked})
        messages.append({"role": "assistant", "content": turn.answered})
    return [*messages, {"role": "user", "content": text}]


def _answer(room: ChatRoom, ids: torch.Tensor, attention: torch.Tensor) -> tuple[TokenRows, str]:
    """One answer and why it ended."""
    greedy = room.options.temperature == 0
    model: PreTrainedModel = room.model.model
    found = generate(
        model,
        ids,
        attention,
        max_new_tokens=room.longest,
        eos_id=end_ids(room.model.tokenizer, model),
        generator=room.generator,
        temperature=1.0 if greedy else room.options.temperature,
        greedy=greedy,
    )
    read = Reading.by(room.model.tokenizer)(found.response, found.mask, found.finished)
    rows = join(ids, attention, *read)
    return rows, "eos" if bool(found.finished[0]) else "length"


def show(turn: Turn, room: ChatRoom, console: Console) -> None:
    """The answer, and below it its scores: green is good, red is bad."""
    from rich.text import Text

    cut = " …" if turn.stop_reason == "length" else ""
    said = Text.assemble(("model  ", "bold cyan"), f"{turn.answered or '(empty)'}{cut}")
    console.print(said, soft_wrap=True)
    if turn.scores:
        line = Text("       ")
        for name, value in turn.scores.items():
            good = value <= 0 if name in room.costs else value >= 0
            line.append(f"{name} {value:+.2f}   ", style="green" if good else "red")
        console.print(line)
