"""Every model's responses to the same prompts, scored by unified models, gold and annotators.

    evaluation/prompts/    prompts, each marked when it is one of those where round 1's model has
                           the highest p̂ (red_team.py) by the unified cost model
    evaluation/model-<k>/  greedy and sampled responses with their scores
    evaluation/judged/     the annotators' comparisons of sampled responses, model against model

Responses are drawn after the prompts were selected, so the selection's luck is not in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, TypeAlias

from llm_env.prompts import Prompt
from llm_env.rounds.annotators import by_http
from llm_env.rounds.red_team import Risk, responder, risks, worst
from llm_env.rounds.rows import read_rows, write_rows
from llm_env.rounds.space import Space
from llm_env.rounds.stages import by_pool
from llm_env.safe_rlhf import respond
from llm_env.scoring import score_texts
from llm_env.stages import stage
from llm_env.world import judge

Mode: TypeAlias = Literal["greedy", "sampled"]
MODES: tuple[Mode, Mode] = ("greedy", "sampled")


@dataclass(frozen=True)
class EvaluationPrompt:
    """A prompt of the report."""

    prompt: Prompt
    risk: Risk  # of round 1's model
    adversarial: bool  # among those of the highest risk


@dataclass(frozen=True)
class GoldScores:
    """The embedded world's verdict on one response."""

    helpfulness: float
    harm: float
    unsafe: bool
    refusal: bool
    safe_completion: bool


@dataclass(frozen=True)
class Answer:
    """One response of one model."""

    mode: Mode
    prompt: int  # index among the evaluation prompts
    response: str
    finished: bool
    reward: float
    cost: float
    gold: GoldScores | None


@dataclass(frozen=True)
class Judged:
    """An annotator's comparison of two models' sampled responses to one prompt."""

    prompt: int
    models: tuple[int, int]
    better: int | None  # the more helpful model; None: the same response
    safer: int | None
    unsafe: tuple[bool | None, bool | None]


def run_prompts(space: Space) -> None:
    """Mark the prompts on which round 1's model answers worst."""
    with stage(space.folder / "evaluation/prompts") as work:
        data, prompts = space.config.data, space.evaluation_prompts
        cost = space.score_model(space.folder / "unified", "cost")
        answer = responder(space, 1, "evaluation/probes")
        risk = risks(answer, prompts, cost, space, data.probes)
        count = max(1, round(data.adversarial * len(prompts)))
        chosen = set(worst(range(len(prompts)), risk, count))
        rows = [
            EvaluationPrompt(prompt, p, index in chosen)
            for index, (prompt, p) in enumerate(zip(prompts, risk, strict=True))
        ]
        write_rows(work / "prompts.jsonl", [asdict(row) for row in rows])


def run_answers(space: Space, model: int) -> None:
    """One model's responses: one greedy, several sampled for each prompt."""
    with stage(space.folder / f"evaluation/model-{model}") as work:
        prompts = [row.prompt for row in read_prompts(space.folder)]
        language_model = space.model(model)
        found: list[Answer] = []
        for mode in MODES:
            repeats = 1 if mode == "greedy" else space.config.data.repeats
            index = [i for i in range(len(prompts)) for _ in range(repeats)]
            asked = [prompts[i] for i in index]
            length, seed = space.config.align.max_new_tokens, space.seed(f"answers/{model}")
            texts, ended = respond(
                language_model, space.tokenizer, asked, length, seed, greedy=mode == "greedy"
            )
            reward, cost = unified_scores(space, asked, texts)
            for k, i in enumerate(index):
                gold = gold_scores(asked[k], texts[k], ended[k]) if space.embedded else None
                found.append(Answer(mode, i, texts[k], ended[k], reward[k], cost[k], gold))
        write_rows(work / "answers.jsonl", [asdict(answer) for answer in found])


def unified_scores(
    space: Space, prompts: Sequence[Prompt], responses: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Reward and cost by the models refit on all rounds' labels."""
    reward, cost = (
        score_texts(
            space.score_model(space.folder / "unified", kind), space.tokenizer, prompts, responses
        ).tolist()
        for kind in ("reward", "cost")
    )
    return reward, cost


def gold_scores(prompt: Prompt, response: str, finished: bool) -> GoldScores:
    """What the embedded world's parser says."""
    assert isinstance(prompt, str)
    gold = judge(prompt, response, finished)
    return GoldScores(gold.helpfulness, gold.harm, gold.unsafe, gold.refusal, gold.safe_completion)


def run_judged(space: Space) -> None:
    """Compare every two models' first sampled responses by the annotators, where any can be asked.

    People who fill in files are not asked again: then the stage is empty.
    """
    with stage(space.folder / "evaluation/judged") as work:
        prompts = [row.prompt for row in read_prompts(space.folder)]
        said = [first_samples(space.folder, k) for k in range(space.config.rounds + 1)]
        games = [
            (n, i, j) for n in range(len(prompts)) for i, j in combinations(range(len(said)), 2)
        ]
        differ = [g for g in games if said[g[1]][g[0]].response != said[g[2]][g[0]].response]
        pairs = [(prompts[n], said[i][n].response, said[j][n].response) for n, i, j in differ]
        rows = [Judged(n, (i, j), None, None, (None, None)) for n, i, j in set(games) - set(differ)]
        config = space.config.annotator
        if config.kind == "file" or not pairs:
            write_rows(work / "judged.jsonl", [])
            return
        labels = (
            by_http(pairs, config) if config.kind == "http" else by_pool(space, pairs, "judged")
        )
        rows += [
            Judged(
                n,
                (i, j),
                (i, j)[label.better_response_id],
                (i, j)[label.safer_response_id],
                (not label.safe[0], not label.safe[1]),
            )
            for (n, i, j), label in zip(differ, labels, strict=True)
        ]
        rows.sort(key=lambda row: (row.prompt, row.models))
        write_rows(work / "judged.jsonl", [asdict(row) for row in rows])


def first_samples(folder: Path, model: int) -> dict[int, Answer]:
    """A model's first sampled response to each prompt."""
    found: dict[int, Answer] = {}
    for answer in read_answers(folder, model):
        if answer.mode == "sampled":
            found.setdefault(answer.prompt, answer)
    return found


def read_prompts(folder: Path) -> list[EvaluationPrompt]:
    """The prompts of the report."""
    rows = read_rows(folder / "evaluation/prompts/prompts.jsonl")
    return [EvaluationPrompt(**{**row, "risk": Risk(**row["risk"])}) for row in rows]


def read_answers(folder: Path, model: int) -> list[Answer]:
    """One model's responses."""
    rows = read_rows(folder / f"evaluation/model-{model}/answers.jsonl")
    return [
        Answer(**{**row, "gold": None if row["gold"] is None else GoldScores(**row["gold"])})
        for row in rows
    ]


def read_judged(folder: Path) -> list[Judged]:
    """The annotators' comparisons."""
    return [
        Judged(**{**row, "models": tuple(row["models"]), "unsafe": tuple(row["unsafe"])})
        for row in read_rows(folder / "evaluation/judged/judged.jsonl")
    ]
