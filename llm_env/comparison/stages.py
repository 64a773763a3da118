"""The stages of the comparison on the embedded world, each a folder that is finished or absent.

    data → sft → preferences → reward_model ‖ cost_model → runs/<method> ‖ …

A stage works in a hidden folder and renames it when it is done, so a killed comparison continues
with the stages that are missing; RL runs also continue from their checkpoints. Every stage draws
from random streams of its own, named by (seed, stage), so that stages can run in any order.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from constrained_rl.assembly import choose_device
from constrained_rl.checkpoint import write_text
from constrained_rl.config import CheckpointConfig
from constrained_rl.errors import InputError
from constrained_rl.run import drive
from llm_env.collectors import by_model
from llm_env.comparison.config import CompareConfig
from llm_env.comparison.evaluate import evaluate, write_records
from llm_env.config import AlignConfig
from llm_env.policy import CausalLMPolicy
from llm_env.preferences import (
    PreferenceRow,
    cost_pairs,
    read_preferences,
    reward_pairs,
    write_preferences,
)
from llm_env.safe_rlhf import alignment, fit_score, sample_pairs
from llm_env.score_training import score_accuracy
from llm_env.scoring import ScoreModel, score_texts
from llm_env.sft import train_sft
from llm_env.world import (
    AnnotatorPool,
    Prompt,
    agreement,
    build_tokenizer,
    demonstrate,
    judge,
    sample_prompts,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Workspace:
    """A comparison on disk."""

    folder: Path
    config: CompareConfig

    def rng(self, purpose: str) -> np.random.Generator:
        """Random stream of one purpose."""
        return np.random.default_rng([self.config.seed, zlib.crc32(purpose.encode())])

    def seed(self, purpose: str) -> int:
        """Integer seed of one purpose."""
        return int(self.rng(purpose).integers(2**31))

    @property
    def device(self) -> torch.device:
        """Where models live."""
        return choose_device(self.config.device)

    def prompts(self, purpose: str, count: int) -> list[Prompt]:
        """The prompts of one purpose; "evaluation" is the same for every method."""
        return sample_prompts(count, self.rng(f"prompts/{purpose}"))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The world's tokenizer."""
        return build_tokenizer()

    def causal_lm(self, stage: str) -> PreTrainedModel:
        """A language model that a stage has saved."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.folder / stage, local_files_only=True)
        return model.to(self.device).eval()

    def score_model(self, kind: str) -> ScoreModel:
        """The reward or cost model."""
        return ScoreModel.from_pretrained(self.folder / f"{kind}_model").to(self.device)


@contextmanager
def stage(folder: Path) -> Iterator[Path]:
    """Work in a hidden folder that becomes `folder` on success; its time is noted in it."""
    work = folder.with_name(f".{folder.name}")
    work.mkdir(parents=True, exist_ok=True)
    wall, cpu = time.perf_counter(), time.process_time()
    yield work
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    write_text(work / "time.json", json.dumps(seconds))
    work.rename(folder)


def progress_file(work: Path) -> Callable[[int, int, float], None]:
    """Report of a supervised fit, one JSON line per twenty steps."""
    file = (work / "progress.jsonl").open("w", encoding="utf-8")

    def report(step: int, steps: int, loss: float) -> None:
        if step % 20 == 0 or step == steps:
            file.write(json.dumps({"step": step, "steps": steps, "loss": loss}) + "\n")
            file.flush()

    return report


def run_sft(space: Workspace) -> None:
    """Train the SFT model from scratch on demonstrations and evaluate it later, with the scores."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config, tokenizer = space.config, space.tokenizer()
    with stage(space.folder / "sft") as work:
        torch.manual_seed(space.seed("sft/weights"))
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.model.hidden,
                intermediate_size=-(-config.model.hidden * 8 // 3 // 16) * 16,
                num_hidden_layers=config.model.layers,
                num_attention_heads=config.model.heads,
                max_position_embeddings=128,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ).to(space.device)
        rng = space.rng("sft/demonstrations")
        prompts = space.prompts("sft", config.world.demonstrations)
        pairs = [(prompt.text, demonstrate(prompt, rng)) for prompt in prompts]
        generator = torch.Generator().manual_seed(space.seed("sft/order"))
        train_sft(model, tokenizer, pairs, config.sft, generator, progress_file(work))
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)


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
            write_preferences(
                work / f"{split}.jsonl", [PreferenceRow.model_validate(row) for row in rows]
            )
        shares = agreement(pool, prompts, first, second, space.rng("labels/agreement"))
        write_text(work / "agreement.json", json.dumps(shares))


def run_score_model(space: Workspace, kind: Literal["reward", "cost"]) -> None:
    """Fit the reward or the cost model and measure it on held-out labels and on gold."""
    tokenizer, sft = space.tokenizer(), space.causal_lm("sft")
    rows = read_preferences(space.folder / "preferences/train.jsonl")
    held_out = read_preferences(space.folder / "preferences/held_out.jsonl")
    with stage(space.folder / f"{kind}_model") as work:
        seed = space.seed(f"{kind}_model")
        model = fit_score(kind, sft, tokenizer, rows, space.config.score, seed, progress_file(work))
        model.save_pretrained(work)
        pairs = reward_pairs(held_out) if kind == "reward" else cost_pairs(held_out)
        labels = asdict(score_accuracy(model, tokenizer, pairs))
        gold = gold_accuracy(model, tokenizer, held_out, kind)
        write_text(work / "accuracy.json", json.dumps({"labels": labels, **gold}))


def gold_accuracy(
    model: ScoreModel, tokenizer: PreTrainedTokenizerBase, rows: list[PreferenceRow], kind: str
) -> dict[str, Any]:
    """Share of held-out pairs ordered as gold orders them, and every response's score."""
    prompts = [row.prompt for row in rows]
    scores = torch.stack(
        [score_texts(model, tokenizer, prompts, [row.responses[i] for row in rows]) for i in (0, 1)]
    )
    gold = [[judge(row.prompt, row.responses[i]) for row in rows] for i in (0, 1)]
    value = torch.tensor(
        [[g.helpfulness if kind == "reward" else g.harm for g in side] for side in gold]
    )
    differs = value[0] != value[1]
    agrees = (scores[0] > scores[1]) == (value[0] > value[1])
    unsafe = torch.tensor([[g.unsafe for g in side] for side in gold])
    return {
        "gold_ranking": float(agrees[differs].float().mean()),
        "gold_sign": float(((scores > 0) == unsafe).float().mean()) if kind == "cost" else None,
        "score": scores.flatten().tolist(),
        "unsafe": unsafe.flatten().tolist(),
    }


def run_method(space: Workspace, name: str, align: AlignConfig | None) -> None:
    """Align one model (None: the SFT model as it is) and evaluate it."""
    tokenizer, sft = space.tokenizer(), space.causal_lm("sft")
    reward, cost = space.score_model("reward"), space.score_model("cost")
    world, model = space.config.world, sft
    with stage(space.folder / "runs" / name) as work:
        if align is not None:
            prompts = [prompt.text for prompt in space.prompts("rl", world.prompts)]
            parts = alignment(
                sft,
                tokenizer,
                prompts,
                by_model(reward),
                {"cost": by_model(cost)},
                align,
                space.seed("rl"),
                critic_trunk=reward.backbone,
            )
            drive(parts, align.iterations, work, CheckpointConfig(), space.config.seed)
            assert isinstance(parts.policy, CausalLMPolicy)
            model = parts.policy.model
            model.save_pretrained(work / "policy")
            tokenizer.save_pretrained(work / "policy")
        records = evaluate(
            model,
            tokenizer,
            space.prompts("evaluation", world.evaluation),
            (reward, cost),
            space.config.align.max_new_tokens,
            space.seed("evaluation"),
        )
        write_records(work / "evaluation.jsonl", records)
