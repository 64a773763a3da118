"""How fast, and where the time goes: environments, training, decoding. Process-CPU seconds.

Usage: `python benchmarks/throughput.py`. Every figure is the median of interleaved rounds on one
thread, with the range; results go to results/throughput.json. Decoding is timed side by side with
Hugging Face `generate` on the same model and prompts in the same round.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import constrained_rl as crl
from constrained_rl.checkpoint import write_text
from constrained_rl.cmdp import make_vec
from constrained_rl.envs import BUILT_IN
from constrained_rl.provenance import provenance
from llm_env.generation import generate

OUT = Path(__file__).parent / "results" / "throughput.json"
ROUNDS = 7
Measure = Callable[[], tuple[int, float]]  # (work done, CPU seconds)


def timed(work: Callable[[], int]) -> tuple[int, float]:
    """Amount of work and process-CPU seconds of one call."""
    start = time.process_time()
    return work(), time.process_time() - start


def stepping(env_id: str, count: int = 4096, steps: int = 200) -> Measure:
    """Random actions in `count` native sub-environments."""
    envs = make_vec(env_id, count, seed=0)
    envs.reset(seed=0)
    actions = [envs.action_space.sample() for _ in range(8)]

    def work() -> int:
        for t in range(steps):
            envs.step(actions[t % 8])
        return count * steps

    return lambda: timed(work)


def short_name(env_id: str) -> str:
    """Without the package's name."""
    return env_id.removeprefix("constrained_rl/")


def training(env_id: str, steps: int, **settings: dict[str, int]) -> Measure:
    """PPO-Lagrangian end to end."""
    agent = crl.ppo_lagrangian(env_id, **settings)

    def work() -> int:
        before = agent.parts.decisions
        for _ in agent.iterate(steps):
            pass
        return agent.parts.decisions - before

    return lambda: timed(work)


def decoding(ours: bool, batch: int = 64, prompt: int = 16, new: int = 40) -> Measure:
    """Tokens of full-length responses by a Llama of the demo's size."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=269,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(4, 269, (batch, prompt))
    attention = torch.ones_like(ids, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def work() -> int:
        for _ in range(3):
            if ours:
                generate(model, ids, attention, max_new_tokens=new, eos_id=-1, generator=generator)
            else:
                model.generate(ids, attention_mask=attention, do_sample=True, max_new_tokens=new)
        return 3 * batch * new

    return lambda: timed(work)


def main() -> None:
    """Measure in interleaved rounds, print, write."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    measures: dict[str, Measure] = {
        **{
            f"stepping {short_name(env_id)}, 4096 sub-environments": stepping(env_id)
            for env_id in BUILT_IN
        },
        **{
            f"training on {short_name(env_id)} (defaults)": training(env_id, 32_768)
            for env_id in ("constrained_rl/Detour-v0", "constrained_rl/Garnet-v0")
        },
        "training on PointHazard-v0 (defaults)": training("constrained_rl/PointHazard-v0", 4_096),
        "training on PointHazard-v0, minibatch 1 024": training(
            "constrained_rl/PointHazard-v0", 8_192, env={"num_envs": 64}
        ),
        "decoding, this library": decoding(ours=True),
        "decoding, transformers generate": decoding(ours=False),
    }
    rates: dict[str, list[float]] = {name: [] for name in measures}
    for round_ in range(ROUNDS + 1):
        for name, measure in measures.items():
            amount, seconds = measure()
            if round_ > 0:  # the first round warms caches up
                rates[name].append(amount / seconds)
    table = Table(title=f"per CPU second, one thread, median of {ROUNDS} rounds (range)")
    table.add_column("what")
    table.add_column("steps or tokens / CPU s", justify="right")
    for name, found in rates.items():
        middle, low, high = statistics.median(found), min(found), max(found)
        table.add_row(name, f"{middle:,.0f} ({low:,.0f} – {high:,.0f})")
    Console(width=110).print(table)
    pairs = zip(
        rates["decoding, this library"], rates["decoding, transformers generate"], strict=True
    )
    ratios = [a / b for a, b in pairs]
    print(f"decoding against transformers, pair by pair: {statistics.median(ratios):.2f}×")
    OUT.parent.mkdir(exist_ok=True)
    document = {
        "rates": rates,
        "decoding_ratio": float(np.median(ratios)),
        "provenance": provenance(),
    }
    write_text(OUT, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
