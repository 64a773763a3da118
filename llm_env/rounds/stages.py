"""The stages of a round: red team → pairs → labels → score models → constrained RL.

    D_k = {(x, y_0, y_1)},  y ~ π_{k−1}(·|x),  x from ordinary and red-team prompts
    R_k, C_k fitted from the start model on the labels of D_1 ∪ … ∪ D_k
    π_k = constrained RL from π_{k−1} against R_k, C_k            (Dai et al., ICLR 2024, §4.1)

`train_from = "start"` replaces the last π_{k−1} by the start model.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from constrained_rl.checkpoint import write_text
from constrained_rl.constraints import Constraints
from constrained_rl.errors import InputError
from constrained_rl.run import drive
from constrained_rl.streams import stream_names
from llm_env.collectors import by_model
from llm_env.comparison.model import small_llama
from llm_env.lora import merge_for_export, with_lora
from llm_env.policy import CausalLMPolicy, response_logp
from llm_env.preferences import (
    PreferenceRow,
    cost_pairs,
    read_preferences,
    reward_pairs,
    write_preferences,
)
from llm_env.prompts import Prompt
from llm_env.response_ends import save_model
from llm_env.rounds.annotators import Annotator, Pairs, by_file, by_http
from llm_env.rounds.red_team import mixture, red_team_prompts
from llm_env.rounds.rows import read_rows, write_rows
from llm_env.rounds.space import Space
from llm_env.safe_rlhf import Models, Task, sample_pairs, token_parts
from llm_env.score_training import score_accuracy, train_score_model
from llm_env.scoring import ScoreModel, TokenCritic
from llm_env.sft import train_sft
from llm_env.stages import FIT, progress_file, stage
from llm_env.world import AnnotatorPool

Kind = Literal["reward", "cost"]


def run_start(space: Space) -> None:
    """Train the embedded world's start model on demonstrations of prompts that may be seen."""
    config, pairs = space.config.world, space.demonstrations
    with stage(space.folder / "start") as work:
        model = small_llama(config.model, space.tokenizer, space.seed("start/weights"))
        order = space.generator("start/order")
        train_sft(
            model.to(space.device),
            space.tokenizer,
            pairs,
            config.sft,
            order,
            progress_file(work),
            work / FIT,
        )
        save_model(model, space.tokenizer, work)


def run_red_team(space: Space, number: int) -> None:
    """Find the round's red-team prompts."""
    with stage(space.round(number) / "red_team") as work:
        write_rows(work / "prompts.jsonl", [{"prompt": p} for p in red_team_prompts(space, number)])


def run_pairs(space: Space, number: int) -> None:
    """Sample two responses of the current model to ordinary and red-team prompts."""
    config, folder = space.config, space.round(number)
    with stage(folder / "pairs") as work:
        prompts = mixture(
            space.prompts,
            read_red_team(folder),
            config.red_team_share,
            config.data.pairs,
            space,
            f"pairs/{number}",
        )
        model, seed = space.model(number - 1), space.seed(f"pairs/responses/{number}")
        pairs = sample_pairs(model, space.tokenizer, prompts, config.align.max_new_tokens, seed)
        if not pairs:
            raise InputError(
                f"model {number - 1} answers all {len(prompts)} prompts twice alike or not at "
                "all, so there is nothing to compare; raise data.pairs"
            )
        rows = [{"prompt": p, "response_0": a, "response_1": b} for p, a, b in pairs]
        write_rows(work / "pairs.jsonl", rows)


def run_preferences(space: Space, number: int) -> None:
    """Have the pairs labelled; the last ones are held out."""
    folder = space.round(number)
    rows = read_rows(folder / "pairs/pairs.jsonl")
    pairs = [(row["prompt"], row["response_0"], row["response_1"]) for row in rows]
    labelled = annotator(space, number)(pairs)
    cut = len(labelled) - round(space.config.data.held_out * len(labelled))
    with stage(folder / "preferences") as work:
        write_preferences(work / "train.jsonl", labelled[:cut])
        if labelled[cut:]:
            write_preferences(work / "held_out.jsonl", labelled[cut:])


def annotator(space: Space, number: int) -> Annotator:
    """Who labels a round's pairs."""
    config = space.config.annotator
    match config.kind:
        case "simulated":
            return lambda pairs: by_pool(space, pairs, f"labels/{number}")
        case "file":
            return lambda pairs: by_file(pairs, space.round(number), config)
        case "http":
            return lambda pairs: by_http(pairs, config)


def by_pool(space: Space, pairs: Pairs, purpose: str) -> list[PreferenceRow]:
    """Labels of the embedded world's people, who are the same in every round."""
    assert space.config.annotator.kind == "simulated"
    pool = AnnotatorPool(space.seed("annotators"), space.config.annotator.people)
    prompts, first, second = (list(map(str, column)) for column in zip(*pairs, strict=True))
    rows = pool.label(prompts, first, second, space.rng(purpose))
    return [PreferenceRow.model_validate(row) for row in rows]


def run_score_model(space: Space, kind: Kind, number: int, folder: Path) -> None:
    """Fit a score model from the start model on the labels of rounds 1 … `number`."""
    name = f"{folder.name}/{kind}"
    data = [row for k in range(1, number + 1) for row in read_labels(space.round(k), "train")]
    pairs = reward_pairs(data) if kind == "reward" else cost_pairs(data)
    with stage(folder / f"{kind}_model") as work:
        generator = space.generator(name)
        model = ScoreModel.from_causal_lm(space.model(0), generator=generator)
        progress = progress_file(work)
        train_score_model(
            model, space.tokenizer, pairs, kind, space.config.score, generator, progress, work / FIT
        )
        model.save_pretrained(work)
        found = {str(k): accuracy(space, model, kind, k) for k in range(1, number + 1)}
        write_text(work / "accuracy.json", json.dumps(found))


def accuracy(space: Space, model: ScoreModel, kind: Kind, number: int) -> dict[str, float | None]:
    """Agreement with one round's held-out labels; nothing where none are held out."""
    rows = read_labels(space.round(number), "held_out")
    if not rows:
        return {}
    pairs = reward_pairs(rows) if kind == "reward" else cost_pairs(rows)
    return asdict(score_accuracy(model, space.tokenizer, pairs))


def run_policy(space: Space, number: int) -> None:
    """Constrained RL against the round's score models, ordinary and red-team prompts mixed."""
    config, folder = space.config, space.round(number)
    align = config.round_align(number)
    target = folder / "policy"
    with stage(target) as work:
        reward, cost = (space.score_model(folder, kind) for kind in ("reward", "cost"))
        prompts = mixture(
            space.prompts,
            read_red_team(folder),
            config.red_team_share,
            align.iterations * align.prompts,
            space,
            f"rl/prompts/{number}",
        )
        task = Task(
            space.tokenizer,
            prompts,
            by_model(reward),
            {"cost": by_model(cost)},
            space.demonstrations if align.ptx_coefficient else (),
        )
        models = round_models(space, number, reward, task.constraints(align))
        parts = token_parts(models, task, align, space.seed(f"rl/{number}"))
        drive(parts, align.iterations, work, config.checkpoint)
        assert isinstance(parts.policy, CausalLMPolicy)
        model = parts.policy.model
        lora = config.policy is not None and config.policy.lora is not None
        save_model(merge_for_export(model) if lora else model, space.tokenizer, work)
    shutil.rmtree(target / "checkpoints", ignore_errors=True)  # afterwards: a kill loses nothing


def round_models(space: Space, number: int, reward: ScoreModel, constraints: Constraints) -> Models:
    """Policy, critic on the reward model's trunk, and KL reference of a round.

    With policy.lora the policy shares the weights of its reference, and the critic the reward
    model's; only adapters and heads are trained.
    """
    config = space.config
    start = space.model(number - 1 if config.train_from == "previous" else 0)
    lora = None if config.policy is None else config.policy.lora
    if lora is None:
        policy, trunk = copy.deepcopy(start), copy.deepcopy(reward.backbone)
    else:
        generator = space.generator(f"rl/adapters/{number}")
        policy, trunk = (with_lora(model, lora, generator) for model in (start, reward.backbone))
    critic = None
    if config.align.ppo.advantage == "gae":
        critic = TokenCritic(ScoreModel(trunk, len(stream_names(constraints, config.align.ppo))))
    return Models(CausalLMPolicy(policy), critic, lambda obs, _: response_logp(start, obs))


def read_labels(folder: Path, split: Literal["train", "held_out"]) -> list[PreferenceRow]:
    """Labelled rows of a round; none where nothing was held out."""
    path = folder / f"preferences/{split}.jsonl"
    return read_preferences(path) if path.exists() else []


def read_red_team(folder: Path) -> list[Prompt]:
    """The red-team prompts of a round."""
    return [row["prompt"] for row in read_rows(folder / "red_team/prompts.jsonl")]
