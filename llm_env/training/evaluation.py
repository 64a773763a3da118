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

from constrained_rl.checkpoint import write_text
from constrained_rl.constraints import Constraint
from constrained_rl.evaluation import Evaluation
from llm_env.collectors import Responses, finite_scores
from llm_env.divided_generation import Division, generate_own
from llm_env.generation import Generation
from llm_env.policy import CausalLMPolicy, prompt_room
from llm_env.prompts import Prompt
from llm_env.response_ends import Reading, end_ids
from llm_env.safe_rlhf import Task
from llm_env.tokens import encode_prompts, join


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
    division: Division
    seed: int

    def play(self, policy: CausalLMPolicy, greedy: bool) -> list[Sample]:
        """Answer every prompt once, greedily or sampled at temperature 1.

        Each rank answers and scores its share, and all know all samples, which depend neither on
        the number of ranks nor on how many prompts are answered together.
        """
        task, model, world = self.task, policy.model, self.division.world
        room = prompt_room(model.config, self.max_new_tokens)
        ids, attention = encode_prompts(task.tokenizer, task.prompts, room)
        own = generate_own(
            model,
            ids,
            attention,
            self.division,
            max_new_tokens=self.max_new_tokens,
            end_ids=end_ids(task.tokenizer, model),
            generator=torch.Generator(model.device).manual_seed(self.seed),
            greedy=greedy,
        )
        mine = world.slice(len(ids))
        read = Reading.by(task.tokenizer)(own.response, own.mask, own.finished)
        rows = join(ids[mine], attention[mine], *read)
        responses = Responses(rows, task.prompts[mine], task.tokenizer)
        mode = "greedy" if greedy else "sampled"
        return world.together(self._samples(responses, own, mode))

    def _samples(self, responses: Responses, own: Generation, mode: str) -> list[Sample]:
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
                stop="eos" if own.finished[i] else "length",
                tokens=int(own.mask[i].sum()),
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
