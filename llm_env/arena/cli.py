"""The commands `crl llm evaluate`, `arena` and `chat`. Heavy imports only inside them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from llm_env.schemas import Command, complete

if TYPE_CHECKING:
    from llm_env.arena.config import Request

Items = Annotated[
    list[str],
    typer.Argument(
        help="model folders or NAME=FOLDER, CONFIG.toml, key.path=value …",
        autocompletion=complete(Command.evaluate),
    ),
]
Prompts = Annotated[
    list[Path] | None, typer.Option(help="what is asked: .txt, .jsonl[.gz|.xz], .parquet; repeat")
]
Reward = Annotated[
    str | None, typer.Option(help="score model folder or http://… : higher is better")
]
Costs = Annotated[
    list[str] | None,
    typer.Option(help="SCORE or NAME=SCORE: higher is worse, unsafe above 0; repeat"),
]
HeldOut = Annotated[
    list[str] | None,
    typer.Option(help="SCORE or NAME=SCORE that no training saw, to check the reward"),
]
ScoreTokenizer = Annotated[
    str | None, typer.Option(help="folder, or policy: where score models come without their own")
]
Reference = Annotated[
    str | None, typer.Option(help="model (name or folder) that KL and gains are measured to")
]
JudgeURL = Annotated[
    str | None, typer.Option(help="http://… of a judge that labels pairs, as in crl llm rounds")
]
Out = Annotated[
    Path | None, typer.Option(help="folder; given again, what lies there is not made again")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


def evaluate(
    items: Items,
    prompts: Prompts = None,
    reward: Reward = None,
    cost: Costs = None,
    held_out: HeldOut = None,
    reference: Reference = None,
    score_tokenizer: ScoreTokenizer = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Answers of one model or several to the same prompts, scored, with a report."""
    from llm_env.arena.config import Request

    scores = (reward, cost or (), held_out or ())
    request = Request(items, prompts or (), *scores, reference, score_tokenizer)
    _run(request, out, as_json, pairwise=False)


def arena(
    items: Items,
    prompts: Prompts = None,
    reward: Reward = None,
    cost: Costs = None,
    held_out: HeldOut = None,
    reference: Reference = None,
    score_tokenizer: ScoreTokenizer = None,
    judge: JudgeURL = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """An evaluation and, of every pair of models, who is more helpful and who is safer; Elo."""
    from llm_env.arena.config import Request

    scores = (reward, cost or (), held_out or ())
    request = Request(items, prompts or (), *scores, reference, score_tokenizer, judge)
    _run(request, out, as_json, pairwise=True)


def chat(
    model: Annotated[Path, typer.Argument(help="folder that save_pretrained wrote")],
    reward: Reward = None,
    cost: Costs = None,
    score_tokenizer: ScoreTokenizer = None,
    temperature: Annotated[float, typer.Option(min=0, help="of sampling; 0 is greedy")] = 1.0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="longest answer; default: 256, or half the context")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="every line is a prompt of its own, used as it is")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="of sampling")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps")] = "auto",
) -> None:
    """Talk to a model; every answer shows its reward and its costs."""
    _prepare()
    from constrained_rl.logging import plain_warnings
    from llm_env.arena.chat import ChatOptions, converse, open_chat
    from llm_env.arena.config import read_scores

    options = ChatOptions(temperature, max_new_tokens, raw, seed)
    sources = read_scores(reward, cost or (), score_tokenizer)
    with plain_warnings():
        room = open_chat(model, sources, options, device)
        converse(room, sys.stdin, Console())


def _run(request: Request, out: Path | None, as_json: bool, pairwise: bool) -> None:
    """Answer, judge, report."""
    _prepare()
    from constrained_rl.cli import resumable
    from llm_env.arena.annotating import annotate
    from llm_env.arena.config import read_request
    from llm_env.arena.engine import collect_answers, default_folder
    from llm_env.arena.report import as_json as to_json
    from llm_env.arena.report import find, print_findings, publish
    from llm_env.stages import results_json

    config = read_request(request)
    folder = out or default_folder(config)
    progress = Console(stderr=True)

    def say(text: str) -> None:
        progress.print(text, style="dim", highlight=False)

    again = f"give the same command again, with --out {folder}: what lies there is kept"
    with resumable(folder, again):
        answers = collect_answers(config, folder, say, pairwise)
        found = find(answers, pairwise, annotate(answers, folder) if pairwise else None)
        path = publish(found, folder)
    if as_json:
        print(results_json(to_json(found)))
        return
    print_findings(found, Console())
    Console().print(f"report: {path}", highlight=False, soft_wrap=True)


def _prepare() -> None:
    """Say what is missing, and keep progress bars of loading out of the terminal."""
    from llm_env.installed import require_llm

    require_llm()
    from transformers.utils import logging

    logging.disable_progress_bar()
