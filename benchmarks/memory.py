"""Peak memory of training, measured and planned, for the ways to hold the models of Safe RLHF.

Usage: `python benchmarks/memory.py`. Random Llamas of 58 M parameters are written to a temporary
folder; every case trains two iterations in a process of its own. Measured is the peak of resident
memory above what it was when all was imported and warm (Linux: VmHWM), and for tiny models, which
would drown in that, the peak of live tensors. Planned is what `crl llm plan` says of the same
config. glibc is told to give freed blocks back at once (MALLOC_MMAP_THRESHOLD_): a process that
keeps them shows the sum of its phases' fragments. Results go to results/memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from random_models import SMALL, TINY, write_models
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from constrained_rl.checkpoint import write_text
from constrained_rl.distributed import World
from constrained_rl.engines import Optimization, TorchEngine
from constrained_rl.learner import Learner, ValueObjective
from constrained_rl.ppo import Parts, train
from constrained_rl.protocols import Metrics
from constrained_rl.provenance import provenance
from constrained_rl.rollout import Batch
from constrained_rl.settings import merge, validate
from llm_env.plan.ledger import Ledger
from llm_env.plan.plan import Machine, Plan, make_plan
from llm_env.scoring import ScoreModel, TokenCritic
from llm_env.tokens import TokenRows
from llm_env.training.build import build
from llm_env.training.config import TrainConfig

OUT = Path(__file__).parent / "results" / "memory.json"
PROMPT, RESPONSE, ROWS = 32, 32, 16
RATES = {"learning_rate": 5e-4, "critic_learning_rate": 1e-3}
PPO: dict[str, object] = {"micro_batch": 4, "epochs": 1, "minibatches": 2, **RATES}
BASE: dict[str, object] = {
    "align": {"iterations": 2, "prompts": ROWS, "max_new_tokens": RESPONSE, "ppo": PPO}
}
LORA: dict[str, object] = {"policy": {"lora": {"rank": 16}}}
CRITIC_FREE: dict[str, object] = {
    "align": {"responses_per_prompt": 4, "ppo": {"advantage": "leave_one_out"}},
}
CASES: dict[str, dict[str, object]] = {
    "six full models": {},
    "one critic with 1 + K heads": {},
    "gradient checkpointing": {"policy": {"gradient_checkpointing": True}},
    "bfloat16": {
        "policy": {"dtype": "bfloat16"},
        "reward": {"dtype": "bfloat16"},
        "costs": {"harm": {"dtype": "bfloat16"}},
    },
    "no critic": CRITIC_FREE,
    "LoRA, shared critic": merge(LORA, {"critic": {"trunk": "shared"}}),
    "LoRA, no critic": merge(LORA, CRITIC_FREE),
}
SIX = "six full models"


class CriticPerStream(nn.Module):
    """The published layout: a critic of its own for the reward and for every cost."""

    def __init__(self, critics: list[TokenCritic]) -> None:
        super().__init__()
        self.critics = nn.ModuleList(critics)

    def forward(self, obs: TokenRows) -> Tensor:  # -> [B, T, S]
        """Values of all streams."""
        return torch.cat([critic(obs) for critic in self.critics], -1)

    def update_statistics(self, rollout: object) -> None:
        """Do nothing."""


class InTurn:
    """One learner per critic, stepped one after the other, so that one graph is held at a time."""

    def __init__(self, module: CriticPerStream, parts: Parts) -> None:
        config = parts.config
        rate = config.critic_learning_rate or config.learning_rate
        optimization = Optimization(rate, config.betas, config.max_grad_norm)
        engines = [TorchEngine(critic, optimization) for critic in module.critics]
        self.engine = replace_forward(engines[0], module)
        self.learners = [
            Learner(engine, ValueObjective(critic, [name], config.value_clip), config.micro_batch)
            for engine, critic, name in zip(
                engines, module.critics, ("reward", "cost"), strict=True
            )
        ]

    def step(self, batch: Batch) -> Metrics:
        """Each critic on its own column."""
        found: Metrics = {}
        for s, learner in enumerate(self.learners):
            column = slice(s, s + 1)
            own = replace(batch, value=batch.value[..., column], target=batch.target[..., column])
            found |= learner.step(own)
        return found

    def scale_learning_rate(self, factor: float) -> None:
        """As a learner."""
        for learner in self.learners:
            learner.scale_learning_rate(factor)


def replace_forward(engine: TorchEngine, module: CriticPerStream) -> TorchEngine:
    """`annotate` calls a learner's engine: let it see all critics."""
    engine.forward = module
    return engine


def parts_of(case: str, config: TrainConfig) -> Parts:
    """What training builds; for the six models, with a critic per stream instead of one."""
    parts, _ = build(config, World())
    if case == SIX:
        first = parts.critic
        assert isinstance(first, TokenCritic)
        assert config.reward.path is not None
        second = ScoreModel.from_pretrained(config.reward.path)
        module = CriticPerStream(
            [TokenCritic(ScoreModel(m.backbone)) for m in (first.model, second)]
        )
        parts.critic, parts.critic_learner = module, InTurn(module, parts)  # type: ignore[assignment]
    return parts


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def iterate(parts: Parts, config: TrainConfig) -> int:
    """Train; the longest response, which is the whole width unless all ended early."""
    return max(int(m["episode/length"]) for m in train(parts, config.align.iterations))


def measure_resident(case: str, config: TrainConfig, warm: TrainConfig) -> int:
    """Peak of resident memory of a whole run above the baseline, in bytes."""
    iterate(parts_of(case, warm), warm)
    baseline = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident
    iterate(parts_of(case, config), config)
    return status("VmHWM") - baseline


def measure_live(case: str, config: TrainConfig) -> int:
    """Peak of live tensors of a whole run, in bytes."""
    ledger = Ledger()
    with ledger:
        parts = parts_of(case, config)
        ledger.forget_peaks()
        iterate(parts, config)
    return ledger.peak


def planned(case: str, config: TrainConfig) -> tuple[Plan, int]:
    """The plan, and its peak; six models hold one more critic than any config says."""
    plan = make_plan(config, Machine(prompt=PROMPT, available=1))
    if case != SIX:
        return plan, plan.peak.bytes
    critic = next(model for model in plan.models if model.name == "critic")
    return plan, plan.peak.bytes + critic.bytes


def run_case(case: str, size: str, folder: Path) -> dict[str, object]:
    """One case in this process."""
    sections = {name: json.loads((folder / name / "sections.json").read_text()) for name in SIZES}
    config, warm = (
        validate(TrainConfig, merge(merge(sections[name], BASE), CASES[case]), case)
        for name in (size, "tiny")
    )
    plan, expected = planned(case, config)
    tiny = size == "tiny"
    found = measure_live(case, config) if tiny else measure_resident(case, config, warm)
    return {
        "case": case, "size": size, "measured": found, "planned": expected,
        "method": "live tensors" if tiny else "resident memory",
        "peak_phase": plan.peak.working.name,
        "parameters": plan.models[0].parameters,
    }  # fmt: skip


SIZES = {"tiny": TINY, "small": SMALL}


def main() -> None:
    """Measure every case in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help="one case, in this process; prints JSON")
    parser.add_argument("--size", choices=[*SIZES], default="small")
    parser.add_argument("--folder", type=Path, help="where the models are")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(arguments.case, arguments.size, arguments.folder)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for size, shape in SIZES.items():
            folder = Path(name) / size
            sections = write_models(folder, shape, 64, PROMPT)
            (folder / "sections.json").write_text(json.dumps(sections))
        for size in SIZES:
            for case in CASES:
                rows.append(in_process(case, size, Path(name)))
                print(json.dumps(rows[-1]), flush=True)
    write_text(OUT, json.dumps(summary(rows), indent=1) + "\n")
    show(rows)


def in_process(case: str, size: str, folder: Path) -> dict[str, object]:
    """Run a case in a fresh process."""
    command = [sys.executable, __file__, "--case", case, "--size", size, "--folder", str(folder)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(rows: list[dict[str, object]]) -> dict[str, object]:
    """What is committed."""
    setting = {"prompt": PROMPT, "response": RESPONSE, "rows": ROWS, **PPO}
    return {"provenance": provenance(), "setting": setting, "cases": rows}


def show(rows: list[dict[str, object]]) -> None:
    """Measured, planned, and the share of the six full models."""
    table = Table("size", "case", "measured MB", "planned MB", "plan/measured", "of six models")
    for row in rows:
        six = next(r for r in rows if r["case"] == SIX and r["size"] == row["size"])
        measured, expected = float(str(row["measured"])), float(str(row["planned"]))
        share = measured / float(str(six["measured"]))
        table.add_row(
            str(row["size"]), str(row["case"]), f"{measured / 1e6:.1f}", f"{expected / 1e6:.1f}",
            f"{expected / measured:.2f}", f"{share:.0%}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
