"""The stages of the comparison on the embedded world, each a folder that is finished or absent.

    data → sft → preferences → reward_model ‖ cost_model ‖ … → runs/<method> ‖ …

A stage works in a hidden folder and renames it when it is done, so a killed comparison continues
with the stages that are missing; fits and RL runs continue from their checkpoints. Every stage
draws from random streams of its own, named by (seed, stage), so that they can run in any order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from constrained_rl.checkpoint import write_text
from constrained_rl.config import CheckpointConfig
from constrained_rl.devices import choose_device, device_here
from constrained_rl.errors import InputError
from constrained_rl.run import drive
from llm_env.collectors import by_model
from llm_env.comparison.config import CompareConfig
from llm_env.comparison.evaluate import evaluate, write_records
from llm_env.comparison.measure import Row, measure
from llm_env.comparison.methods import SCORES, Method, Score
from llm_env.comparison.model import small_llama
from llm_env.comparison.single import SingleRow, read_single, single_pairs, write_single
from llm_env.policy import CausalLMPolicy
from llm_env.preferences import (
    CostPair,
    PreferenceRow,
    RewardPair,
    cost_pairs,
    read_preferences,
    reward_pairs,
    write_preferences,
)
from llm_env.response_ends import save_model
from llm_env.safe_rlhf import alignment, sample_pairs
from llm_env.score_training import train_score_model
from llm_env.scoring import ScoreModel
from llm_env.sft import train_sft
from llm_env.stages import FIT, progress_file, stage, stream
from llm_env.world import (
    AnnotatorPool,
    Prompt,
    agreement,
    approval,
    build_tokenizer,
    demonstrate,
    sample_prompts,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Labelled: TypeAlias = list[RewardPair] | list[CostPair]


@dataclass(frozen=True)
class Workspace:
    """A comparison on disk."""

    folder: Path
    config: CompareConfig

    def rng(self, purpose: str) -> np.random.Generator:
        """Random stream of one purpose."""
        return stream(self.config.seed, purpose)

    def seed(self, purpose: str) -> int:
        """Integer seed of one purpose."""
        return int(self.rng(purpose).integers(2**31))

    @property
    def device(self) -> torch.device:
        """Where models live."""
        return choose_device(device_here(self.config.device))

    def prompts(self, purpose: str, count: int) -> list[Prompt]:
        """The prompts of one purpose; "evaluation" is the same for every method."""
        return sample_prompts(count, self.rng(f"prompts/{purpose}"))

    def demonstrations(self) -> list[tuple[str, str]]:
        """What the SFT model learns from: prompts and responses."""
        rng = self.rng("sft/demonstrations")
        prompts = self.prompts("sft", self.config.world.demonstrations)
        return [(prompt.text, demonstrate(prompt, rng)) for prompt in prompts]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The world's tokenizer."""
        return build_tokenizer()

    def causal_lm(self, stage: str) -> PreTrainedModel:
        """A language model that a stage has saved."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.folder / stage, local_files_only=True)
        return model.to(self.device).eval()

    def score_model(self, name: str) -> ScoreModel:
        """A score model by its name."""
        return ScoreModel.from_pretrained(self.folder / f"{name}_model").to(self.device)


def run_sft(space: Workspace) -> None:
    """Train the SFT model from scratch on demonstrations and evaluate it later, with the scores."""
    config, tokenizer = space.config, space.tokenizer()
    with stage(space.folder / "sft") as work:
        model = small_llama(config.model, tokenizer, space.seed("sft/weights")).to(space.device)
        pairs = space.demonstrations()
        generator = torch.Generator().manual_seed(space.seed("sft/order"))
        train_sft(model, tokenizer, pairs, config.sft, generator, progress_file(work), work / FIT)
        save_model(model, tokenizer, work)


def run_preferences(space: Workspace) -> None:
    """Sample pairs from the SFT model and have the pool label them; further ones are held out."""
    config, tokenizer, model = space.config, space.tokenizer(), space.causal_lm("sft")
    pool = AnnotatorPool(space.seed("annotators"), config.world.annotators)
    with stage(space.folder / "preferences") as work:
        for split, count in (("train", config.world.pairs), ("held_out", config.world.held_out)):
            texts = [prompt.text for prompt in space.prompts(f"pairs/{split}", count)]
            seed = space.seed(f"pairs/{split}")
            triples = sample_pairs(model, tokenizer, texts, config.align.max_new_tokens, seed)
            if not triples:
                raise InputError(
                    f"the SFT model answers all {count} {split} prompts twice alike or not at all, "
                    "so there is nothing to compare; raise world.pairs and world.held_out"
                )
            prompts, first, second = (list(column) for column in zip(*triples, strict=True))
            rows = pool.label(prompts, first, second, space.rng(f"labels/{split}"))
            single = pool.label_single(prompts, first, second, space.rng(f"labels/single/{split}"))
            write_preferences(
                work / f"{split}.jsonl", [PreferenceRow.model_validate(row) for row in rows]
            )
            write_single(
                work / f"single_{split}.jsonl", [SingleRow.model_validate(row) for row in single]
            )
            if split == "train":  # what score models learn from
                write_text(work / "approval.json", json.dumps(approval(rows, single)))
        shares = agreement(pool, prompts, first, second, space.rng("labels/agreement"))
        write_text(work / "agreement.json", json.dumps(shares))


def run_score_model(space: Workspace, name: str) -> None:
    """Fit a score model from the SFT model and measure it on held-out labels and on gold."""
    tokenizer, sft, score = space.tokenizer(), space.causal_lm("sft"), SCORES[name]
    train, held_out = read_labels(space, score, "train"), read_labels(space, score, "held_out")
    config = space.config.score.model_copy(update=dict(score.terms))
    with stage(space.folder / f"{name}_model") as work:
        # variants share head and order of the model that they vary, so only data and loss differ
        generator = torch.Generator().manual_seed(space.seed(f"{score.kind}_model"))
        model = ScoreModel.from_causal_lm(sft, generator=generator)
        progress = progress_file(work)
        train_score_model(
            model, tokenizer, train[1], score.kind, config, generator, progress, work / FIT
        )
        model.save_pretrained(work)
        found = measure(model, tokenizer, score, *held_out)
        write_text(work / "accuracy.json", json.dumps(found))


def read_labels(space: Workspace, score: Score, split: str) -> tuple[Sequence[Row], Labelled]:
    """Rows of one split, and the pairs that a score model makes of their labels."""
    folder = space.folder / "preferences"
    if score.labels == "single":
        single = read_single(folder / f"single_{split}.jsonl")
        return single, single_pairs(single)
    rows = read_preferences(folder / f"{split}.jsonl")
    return rows, reward_pairs(rows) if score.kind == "reward" else cost_pairs(rows)


def run_method(space: Workspace, method: Method) -> None:
    """Align one model (or take the SFT model as it is) and evaluate it.

    Whatever a method learns from, the standard reward and cost models and gold judge it.
    """
    tokenizer, sft = space.tokenizer(), space.causal_lm("sft")
    standard = space.score_model("reward"), space.score_model("cost")
    world, model = space.config.world, sft
    with stage(space.folder / "runs" / method.name) as work:
        if method.align is not None:
            prompts = [prompt.text for prompt in space.prompts("rl", world.prompts)]
            reward, cost = space.score_model(method.reward), space.score_model(method.cost)
            parts = alignment(
                sft,
                tokenizer,
                prompts,
                by_model(reward),
                {"cost": by_model(cost)},
                method.align,
                space.seed("rl"),
                critic_trunk=reward.backbone,
                demonstrations=space.demonstrations() if method.align.ptx_coefficient else (),
            )
            drive(parts, method.align.iterations, work, CheckpointConfig())
            assert isinstance(parts.policy, CausalLMPolicy)
            model = parts.policy.model
            save_model(model, tokenizer, work / "policy")
        records = evaluate(
            model,
            tokenizer,
            space.prompts("evaluation", world.evaluation),
            standard,
            space.config.align.max_new_tokens,
            space.seed("evaluation"),
        )
        write_records(work / "evaluation.jsonl", records)
