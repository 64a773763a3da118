"""How good is a language model? Responses to held-out prompts, scored, as finished episodes.

The same random numbers start every evaluation of a run, so its checkpoints answer the same prompts
with the same draws. Absent: gold scores and comparisons of models (`crl llm evaluate`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from constrained_rl.checkpoint import write_text
from constrained_rl.constraints import Constraint
from constrained_rl.evaluation import Evaluation
from llm_env.collectors import Responses, finite_scores
from llm_env.policy import CausalLMPolicy
from llm_env.prompts import Prompt
from llm_env.safe_rlhf import Task, respond_rows


@dataclass(frozen=True)
class Sample:
    """A response with its scores: a line of samples/<iteration>.jsonl."""

    mode: str  # "greedy" or "sampled"
    prompt: Prompt
    response: str
    stop: str  # "eos" or "length"
    tokens: int
    reward: float
    costs: Mapping[str, float]


@dataclass(frozen=True)
class HeldOut:
    """Prompts that training does not see, and how they are answered and scored."""

    task: Task  # its prompts are the held-out ones
    constraints: tuple[Constraint, ...]
    max_new_tokens: int
    batch: int
    seed: int

    def play(self, policy: CausalLMPolicy, greedy: bool) -> list[Sample]:
        """Answer every prompt once, greedily or sampled at temperature 1."""
        task = self.task
        samples: list[Sample] = []
        batches = respond_rows(
            policy.model,
            task.tokenizer,
            task.prompts,
            self.max_new_tokens,
            self.seed,
            greedy,
            self.batch,
        )
        for rows, ended in batches:
            prompts = task.prompts[len(samples) : len(samples) + len(rows)]
            responses = Responses(rows, prompts, task.tokenizer)
            samples += self._samples(responses, ended, "greedy" if greedy else "sampled")
        return samples

    def _samples(self, responses: Responses, ended: Tensor, mode: str) -> list[Sample]:
        reward = finite_scores("reward", self.task.reward, responses).tolist()
        costs = {
            name: finite_scores(f"cost {name!r}", cost, responses).tolist()
            for name, cost in self.task.costs.items()
        }
        return [
            Sample(
                mode=mode,
                prompt=responses.prompts[i],
                response=text,
                stop="eos" if ended[i] else "length",
                tokens=int(responses.rows.response_mask[i].sum()),
                reward=reward[i],
                costs={name: cost[i] for name, cost in costs.items()},
            )
            for i, text in enumerate(responses.texts)
        ]

    def evaluation(self, samples: Sequence[Sample]) -> Evaluation:
        """Samples as finished episodes."""
        names = tuple(self.task.costs)
        costs = [[sample.costs[name] for name in names] for sample in samples]
        return Evaluation(
            return_=torch.tensor([s.reward for s in samples], dtype=torch.float64).numpy(),
            cost=torch.tensor(costs, dtype=torch.float64).reshape(len(samples), -1).numpy(),
            length=torch.tensor([s.tokens for s in samples], dtype=torch.float64).numpy(),
            constraints=self.constraints,
            cost_names=names,
        )


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples as JSON lines, atomically."""
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(asdict(sample), ensure_ascii=False) for sample in samples]
    write_text(path, "\n".join(lines) + "\n")


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read what `write_samples` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
