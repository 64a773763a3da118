"""A training run of a language model on disk: start, resume, export.

provenance.json  config.toml  metrics.jsonl  checkpoints/<iteration>/  policy/

A folder with `policy/`, which is written last, is a finished run.
"""

from __future__ import annotations

from pathlib import Path

import torch

from constrained_rl.assembly import choose_device
from constrained_rl.checkpoint import write_text
from constrained_rl.logging import RichLogger
from constrained_rl.ppo import Parts
from constrained_rl.provenance import write_provenance
from constrained_rl.run import drive, refuse_used
from constrained_rl.settings import read_toml, to_toml, validate
from llm_env.data_sources import read_demonstrations, read_prompts
from llm_env.models import load_causal_lm, load_tokenizer
from llm_env.policy import CausalLMPolicy
from llm_env.safe_rlhf import alignment
from llm_env.score_sources import load_scores
from llm_env.training.config import TrainConfig


def build(config: TrainConfig) -> Parts:
    """The loop's parts from what the config names."""
    torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    tokenizer = load_tokenizer(config.policy)
    prompts = read_prompts(config.prompts)
    reward, costs = load_scores(config.reward, config.costs, tokenizer, device)
    demonstrations = read_demonstrations(config.demonstrations) if config.demonstrations else ()
    model = load_causal_lm(config.policy, device)
    return alignment(
        model, tokenizer, prompts, reward, costs, config.align, config.seed,
        demonstrations=demonstrations,
    )  # fmt: skip


def start(config: TrainConfig, folder: Path) -> Path:
    """Create a run directory, train in it to the end, and return it."""
    refuse_used(folder)
    parts = build(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_provenance(folder)
    write_text(folder / "config.toml", to_toml(config))
    finish(config, parts, folder)
    return folder


def resume(folder: Path) -> bool:
    """Continue a run; False when it was finished already."""
    if (folder / "policy").is_dir():
        return False
    path = folder / "config.toml"
    config = validate(TrainConfig, read_toml(path), str(path))
    finish(config, build(config), folder)
    return True


def finish(config: TrainConfig, parts: Parts, folder: Path) -> None:
    """Train from wherever the folder stands to the end, then write the policy."""
    limits = {c.name: c.limit for c in parts.constraints.constraints}
    loggers = [RichLogger(config.align.iterations, str(folder), limits)]
    drive(parts, config.align.iterations, folder, config.checkpoint, config.seed, loggers)
    assert isinstance(parts.policy, CausalLMPolicy)
    parts.policy.model.save_pretrained(folder / "policy")
    load_tokenizer(config.policy).save_pretrained(folder / "policy")
