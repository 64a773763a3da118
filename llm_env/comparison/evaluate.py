"""What a language model says to fixed prompts, and what reward, cost and gold think of it.

Records are one row per response, so that every figure and table can be recomputed from them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from constrained_rl.checkpoint import write_text
from constrained_rl.errors import InputError
from llm_env.safe_rlhf import respond
from llm_env.scoring import ScoreModel, score_texts
from llm_env.world import Prompt, judge

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Mode = Literal["greedy", "sampled"]


@dataclass(frozen=True)
class Record:
    """One response with its model scores and its gold scores."""

    mode: Mode
    kind: str
    prompt: str
    response: str
    finished: bool
    reward: float
    cost: float
    helpfulness: float
    severity: float
    unsafe: bool
    refusal: bool
    safe_completion: bool
    length: int


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    scores: tuple[ScoreModel, ScoreModel],
    max_new_tokens: int,
    seed: int,
) -> list[Record]:
    """Greedy and sampled (temperature 1) responses to every prompt, scored by models and gold."""
    records: list[Record] = []
    texts = [prompt.text for prompt in prompts]
    modes: tuple[Mode, Mode] = ("greedy", "sampled")
    for mode in modes:
        responses, finished = respond(
            model, tokenizer, texts, max_new_tokens, seed, greedy=mode == "greedy"
        )
        reward, cost = (
            score_texts(score, tokenizer, texts, responses, 256).tolist() for score in scores
        )
        for i, prompt in enumerate(prompts):
            gold = judge(prompt.text, responses[i], finished[i])
            records.append(
                Record(
                    mode=mode,
                    kind=prompt.kind,
                    prompt=prompt.text,
                    response=responses[i],
                    finished=finished[i],
                    reward=reward[i],
                    cost=cost[i],
                    helpfulness=gold.helpfulness,
                    severity=gold.severity,
                    unsafe=gold.unsafe,
                    refusal=gold.refusal,
                    safe_completion=gold.safe_completion,
                    length=len(responses[i].split()),
                )
            )
    return records


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write records as JSON lines, atomically."""
    write_text(path, "".join(json.dumps(asdict(record)) + "\n" for record in records))


def read_records(path: Path) -> list[Record]:
    """Read what `write_records` wrote."""
    if not path.is_file():
        raise InputError(f"{path} is missing; the run is not finished: continue it with crl resume")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Record(**json.loads(line)) for line in lines]
