"""One iteration of Safe RLHF by phase: tokens/s, memory, and share of what the device can do.

Usage: `python benchmarks/gpu.py` on a GPU (134 M-parameter random Llamas in bfloat16, prompts and
responses of 256 tokens, 64 of them), `python benchmarks/gpu.py --small` anywhere in seconds. The
device's limits are measured by a matrix product and a copy, not looked up. Arithmetic is counted
as 2 N + 2 n_layers · L · width per token and forward (Kaplan et al. 2020, §2.1, N without
embeddings), three times that in an update; the bytes of decoding are the weights and the keys and
values read at every step. Results go to results/gpu-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from random_models import MEDIUM, TINY, Size, write_models
from rich.console import Console
from rich.table import Table

from constrained_rl.checkpoint import write_text
from constrained_rl.ppo import Parts, annotate, mix, ppo_update
from constrained_rl.provenance import provenance
from constrained_rl.rollout import Rollout
from constrained_rl.settings import merge, validate
from llm_env.collectors import Responses
from llm_env.safe_rlhf import Task, token_parts
from llm_env.tokens import TokenRows
from llm_env.training.build import build_task, resolve
from llm_env.training.config import TrainConfig
from llm_env.training.models import build_models, from_disk

RESULTS = Path(__file__).parent / "results"
Found = TypeVar("Found")


@dataclass(frozen=True)
class Scale:
    """How large the iteration is."""

    size: Size
    prompt: int
    response: int
    rows: int
    micro_batch: int
    dtype: str
    matrix: int  # width of the probing product
    copied: int  # bytes of the probing copy


FULL = Scale(MEDIUM, 256, 256, 64, 16, "bfloat16", 8192, 2**30)
SMALL = Scale(TINY, 16, 16, 8, 4, "float32", 512, 2**26)


def timed(work: Callable[[], Found], device: torch.device) -> tuple[Found, float]:
    """Result and wall seconds, the device's queue emptied before and after."""
    wait(device)
    start = time.perf_counter()
    found = work()
    wait(device)
    return found, time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def limits(scale: Scale, device: torch.device) -> dict[str, float]:
    """What the device reaches: FLOP/s of a matrix product, bytes/s of a copy, the best of five."""
    a = torch.randn(scale.matrix, scale.matrix, device=device, dtype=getattr(torch, scale.dtype))
    source = torch.zeros(scale.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = min(timed(lambda: a @ a, device)[1] for _ in range(5))
    copy = min(timed(lambda: target.copy_(source), device)[1] for _ in range(5))
    return {"flops": 2 * scale.matrix**3 / product, "bytes": 2 * scale.copied / copy}


def flops(scale: Scale, training: bool = False) -> float:
    """Arithmetic of one model over all rows."""
    size, width = scale.size, scale.prompt + scale.response
    layer = 4 * size.hidden**2 + 3 * size.hidden * size.inner
    parameters = size.layers * layer + size.hidden * size.vocabulary
    per_token = 2 * parameters + 2 * size.layers * width * size.hidden
    return (3 if training else 1) * per_token * scale.rows * width


def decoded_bytes(scale: Scale, weights: int) -> float:
    """Weights, and the keys and values so far, read at every step of decoding."""
    item = torch.finfo(getattr(torch, scale.dtype)).bits // 8
    per_position = 2 * scale.size.layers * scale.size.hidden * item * scale.rows
    seen = sum(scale.prompt + t for t in range(scale.response))
    return scale.response * weights + per_position * seen


def config_of(scale: Scale, folder: Path) -> TrainConfig:
    """A config of the given scale."""
    dtype = {"dtype": scale.dtype}
    sections = write_models(folder, scale.size, scale.rows, scale.prompt)
    rates = {"learning_rate": 5e-4, "critic_learning_rate": 1e-3}
    ppo = {"micro_batch": scale.micro_batch, "epochs": 1, "minibatches": 1, **rates}
    align = {"prompts": scale.rows, "max_new_tokens": scale.response, "ppo": ppo}
    rest = {"policy": dtype, "reward": dtype, "costs": {"harm": dtype}, "align": align}
    return validate(TrainConfig, merge(sections, rest), "benchmark")


def iteration(parts: Parts, task: Task, device: torch.device) -> tuple[dict[str, float], Rollout]:
    """Seconds of each phase of one iteration; `collect` is split by scoring its rows again."""
    rollout, collect = timed(parts.collector.collect, device)
    rows = rollout.obs
    assert isinstance(rows, TokenRows)
    asked = task.tokenizer.batch_decode(rows.ids[:, : rows.prompt_width], skip_special_tokens=True)
    responses = Responses(rows, asked, task.tokenizer)

    def score() -> None:
        for source in (task.reward, *task.costs.values()):
            source(responses)

    _, scoring = timed(score, device)
    streams, annotating = timed(lambda: annotate(rollout, parts), device)
    lam = parts.multiplier.update(parts.constraints.signal(rollout.episodes, streams))
    batch = mix(streams, lam, parts.config)
    _, updating = timed(lambda: ppo_update(batch, parts), device)
    seconds = {"generate": collect - scoring, "score": scoring}
    return seconds | {"annotate": annotating, "update": updating}, rollout


def measure(scale: Scale, device: torch.device, folder: Path) -> dict[str, object]:
    """Limits of the device and the second of two iterations; the first warms up."""
    config = config_of(scale, folder)
    task, align = build_task(config, device), resolve(config)
    models = build_models(config, from_disk(device))
    parts = token_parts(models, task, align, config.seed)
    reached = limits(scale, device)
    iteration(parts, task, device)
    seconds, rollout = iteration(parts, task, device)
    assert isinstance(parts.policy, torch.nn.Module)
    weights = sum(p.numel() * p.element_size() for p in parts.policy.parameters())
    forward, training = flops(scale), flops(scale, training=True)
    forwards = 2 + (rollout.behaviour_logp is None)  # reference, critic; policy in bfloat16
    work = {
        "generate": forward, "score": 2 * forward, "annotate": forwards * forward,
        "update": 2 * training,
    }  # fmt: skip
    tokens = scale.rows * scale.response
    phases: dict[str, dict[str, float]] = {
        name: {
            "seconds": taken,
            "response tokens/s": tokens / taken,
            "share of arithmetic": work[name] / taken / reached["flops"],
        }
        for name, taken in seconds.items()
    }
    moved = decoded_bytes(scale, weights)
    phases["generate"]["share of bandwidth"] = moved / seconds["generate"] / reached["bytes"]
    return {
        "device": device_name(device), "scale": {**vars(scale), "size": vars(scale.size)},
        "limits": reached, "phases": phases, "peak_bytes": peak_bytes(device),
        "mean_length": float(rollout.episodes.length.double().mean()),
    }  # fmt: skip


def peak_bytes(device: torch.device) -> int:
    """Most memory that tensors took on a GPU; on a CPU, that the process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor's kind."""
    return torch.cuda.get_device_name() if device.type == "cuda" else f"cpu {platform.machine()}"


def show(found: dict[str, object], console: Console) -> None:
    """One row per phase."""
    phases, reached = found["phases"], found["limits"]
    assert isinstance(phases, dict)
    assert isinstance(reached, dict)
    table = Table("phase", "seconds", "response tokens/s", "of arithmetic", "of bandwidth")
    for name, phase in phases.items():
        moved = phase.get("share of bandwidth")
        table.add_row(
            name, f"{phase['seconds']:.3f}", f"{phase['response tokens/s']:,.0f}",
            f"{phase['share of arithmetic']:.1%}", "" if moved is None else f"{moved:.1%}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"{found['device']}: {reached['flops'] / 1e12:.3g} TFLOP/s and {reached['bytes'] / 1e9:.3g}"
        f" GB/s measured, peak memory {float(str(found['peak_bytes'])) / 1e9:.3g} GB",
        highlight=False,
    )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny models: seconds on a CPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scale = SMALL if arguments.small else FULL
    with tempfile.TemporaryDirectory() as folder:
        found = measure(scale, device, Path(folder))
    name = re.sub(r"[^a-z0-9]+", "-", str(found["device"]).lower())
    path = arguments.out / f"gpu-{name}{'-small' if arguments.small else ''}.json"
    write_text(path, json.dumps({"provenance": provenance(), **found}, indent=1) + "\n")
    show(found, Console())


if __name__ == "__main__":
    main()
