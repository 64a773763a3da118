"""`crl certify RUN` of a language model: the run's own costs on prompts it was not chosen by.

A sample is a prompt: one response each, or, where the run's constraint is per prompt, as many as
in training, whose mean is the sample. Several responses to one prompt are not independent.

Training prompts are left out. `policy/` was chosen by no evaluation, so every held-out prompt is
new to it; `best/` was chosen by the first `evaluation.count` of them, and so was a `policy/` whose
training `evaluation.patience` could end: these take what lies beyond, or other prompts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from constrained_rl.assembly import constrain
from constrained_rl.certificate import (
    Issued,
    Request,
    Subject,
    constrained_values,
    prepare,
    weights_digest,
)
from constrained_rl.devices import choose_device, device_here
from constrained_rl.distributed import World
from constrained_rl.errors import InputError
from constrained_rl.logging import read_metrics
from llm_env.data.digests import prompt_digest
from llm_env.data_sources import DataSource
from llm_env.divided_generation import Division
from llm_env.models import load_causal_lm
from llm_env.policy import CausalLMPolicy
from llm_env.prompts import Prompt
from llm_env.safe_rlhf import Task
from llm_env.training import starts
from llm_env.training.build import build_task, fitting_prompts, read_held_out
from llm_env.training.config import TrainConfig
from llm_env.training.evaluation import HeldOut
from llm_env.training.run import read_train_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def certify_training(folder: Path, home: Path, request: Request, prompts: Path | None) -> Issued:
    """Certify the last policy of the run `home`, or its best where `folder` is its `best/`."""
    config = read_train_config(home)
    constraints = constrain(tuple(config.costs), config.limits, config.align.constraint).constraints
    test = prepare(constraints, request)
    starts.compare(config, home)
    if request.seed == config.seed:
        raise InputError(
            f"--seed {request.seed} is the run's own, whose draws its evaluations used; a "
            "certificate needs responses that the policy was not chosen by; give another seed"
        )
    name = "best" if folder.name == "best" and folder != home else "policy"
    source = config.policy.model_copy(update={"path": str(_model(home, name)), "lora": None})
    device = choose_device(request.device or device_here(config.device))
    task = build_task(config, device, partial(_asked, config, prompts))
    fresh = unseen_prompts(config, task, name, request.samples, prompts)
    model = load_causal_lm(source, device)
    per_prompt = any(c.per == "group" for c in constraints)
    repeats = config.align.responses_per_prompt if per_prompt else 1
    held_out = HeldOut(
        task=replace(task, prompts=[prompt for prompt in fresh for _ in range(repeats)]),
        constraints=constraints,
        max_new_tokens=config.align.max_new_tokens,
        division=Division(World(), config.evaluation.batch),
        seed=request.seed,
    )
    samples = held_out.play(CausalLMPolicy(model), request.deterministic)
    group = np.repeat(np.arange(len(fresh)), repeats) if per_prompt else None
    found = held_out.evaluation(samples).cost
    subject = Subject(
        run=home,
        policy="best" if name == "best" else "last",
        iteration=_iteration(home, name),
        weights=weights_digest(model),
        population=_population(config, request, len(fresh), repeats, prompts),
    )
    return Issued(subject, request, test(constrained_values(constraints, found, group)))


def unseen_prompts(
    config: TrainConfig, task: Task, name: str, wanted: int | None, other: Path | None
) -> list[Prompt]:
    """The first `wanted` prompts that neither training saw nor the choice of the policy."""
    sources = _sources(config, other)
    seen = set(map(prompt_digest, [*task.prompts, *_judges(config, task, name)]))
    found = fitting_prompts(config, sources, task.tokenizer)
    fresh = [prompt for prompt in found if prompt_digest(prompt) not in seen]
    least = 2 if wanted is None else wanted
    if len(fresh) < least:
        paths = ", ".join(source.path for source in sources)
        fewer = "" if wanted is None else ", or fewer --episodes"
        raise InputError(
            f"{paths} holds {len(found)} prompts, of which the policy was trained or chosen by "
            f"{len(found) - len(fresh)}; {least} new ones are needed: give --prompts FILE{fewer}"
        )
    return fresh[:wanted]


def _asked(
    config: TrainConfig, other: Path | None, tokenizer: PreTrainedTokenizerBase
) -> list[Prompt]:
    """All prompts that the samples may be taken from."""
    return fitting_prompts(config, _sources(config, other), tokenizer)


def _sources(config: TrainConfig, other: Path | None) -> tuple[DataSource, ...]:
    """The run's held-out prompts, or others."""
    sources = config.evaluation.prompts if other is None else (DataSource(path=str(other)),)
    if not sources:
        raise InputError("the run holds no prompts out (evaluation.prompts); give --prompts FILE")
    return sources


def _judges(config: TrainConfig, task: Task, name: str) -> list[Prompt]:
    """The prompts of evaluations that had a say in which policy it is."""
    evaluation = config.evaluation
    judged = name == "best" or evaluation.patience is not None
    return read_held_out(config, task.tokenizer) if judged else []


def _model(home: Path, name: str) -> Path:
    """The model's folder; `InputError` where there is none yet."""
    path = home / name
    if not path.is_dir():
        what = "no evaluation was feasible, so there is no best/"
        what = what if name == "best" else f"it is not finished; continue it: crl resume {home}"
        raise InputError(f"{home} has no {name}/: {what}")
    return path


def _iteration(home: Path, name: str) -> int | None:
    """The last iteration, which policy/ is of; the card of best/ tells its own."""
    rows = read_metrics(home / "metrics.jsonl") if name == "policy" else []
    return int(rows[-1]["iteration"]) if rows else None


def _population(
    config: TrainConfig, request: Request, n: int, repeats: int, other: Path | None
) -> str:
    """Where the samples come from, in words."""
    sources = [str(other)] if other else [source.path for source in config.evaluation.prompts]
    each = "one response each" if repeats == 1 else f"the mean of {repeats} responses each"
    scores = ", ".join(f"{name} by {s.path or s.url}" for name, s in config.costs.items())
    mode = "greedy" if request.deterministic else "sampled at temperature 1"
    return (
        f"the scores ({scores}) of this model's responses ({mode}, {each}) to prompts like those "
        f"of {', '.join(sources)}, from {n} of them taken as independent (seed {request.seed})"
    )
