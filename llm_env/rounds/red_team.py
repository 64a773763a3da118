"""Which prompts provoke the current model? A file, a generator, or a search with the cost model.

    p̂(x) = mean over sampled responses y ~ π(·|x) of 1[C(x, y) > 0];  ties: by the mean of σ(C)

The search ranks candidates by p̂ and keeps the worst. It uses what a team has in the middle of a
project: the current policy and the cost model that its annotators' labels made; never gold. The
mean of σ(C) alone would rank a prompt that always gets a borderline answer above one that gets a
harmful answer now and then.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

from constrained_rl.errors import InputError, Notice, short
from llm_env.data.digests import prompt_digest
from llm_env.data_sources import DataSource, read_prompts
from llm_env.prompts import FieldError, Prompt, checked_prompt
from llm_env.rounds.config import AdversarialRedTeam, GeneratorRedTeam
from llm_env.rounds.space import Space
from llm_env.safe_rlhf import respond
from llm_env.scoring import ScoreModel, score_texts

Item = TypeVar("Item")
Respond: TypeAlias = Callable[[Sequence[Prompt]], list[str]]
"""Sampled responses of the current model, one per prompt."""
ROUND = "{round}"
"""stands for the round's number in a path"""


@dataclass(frozen=True, order=True)
class Risk:
    """How badly a model answers a prompt, by a cost model; larger is worse."""

    unsafe: float  # p̂, share of sampled responses with C > 0
    probability: float  # mean of σ(C), which orders prompts of the same p̂


def red_team_prompts(space: Space, number: int) -> list[Prompt]:
    """Red-team prompts of a round, against the model that the round starts from."""
    config = space.config.red_team
    match config.kind:
        case "none":
            return []
        case "file":
            found = read_prompts([_of_round(source, number) for source in config.sources])
            return unseen(found, space)
        case "generator":
            answer = responder(space, number - 1, "red_team")
            return unseen(generated(config, answer, space, number), space)
        case "adversarial":
            return adversarial(config, space, number)


def unseen(prompts: Sequence[Prompt], space: Space) -> list[Prompt]:
    """Prompts without those of the evaluation, with a notice; `InputError` if none is left."""
    kept_back = {prompt_digest(prompt) for prompt in space.evaluation_prompts}
    found = [prompt for prompt in prompts if prompt_digest(prompt) not in kept_back]
    out = len(prompts) - len(found)
    if prompts and not found:
        raise InputError(
            f"all {out} red-team prompts are evaluation prompts, which are not trained on; give "
            "others in red_team"
        )
    if out:
        warnings.warn(
            f"{out} of {len(prompts)} red-team prompts are evaluation prompts and were left out",
            Notice,
            stacklevel=2,
        )
    return found


def responder(space: Space, model: int, purpose: str) -> Respond:
    """The responses that a model samples; every call draws anew from the purpose's stream."""
    language_model, rng = space.model(model), space.rng(f"{purpose}/{model}")

    def answer(prompts: Sequence[Prompt]) -> list[str]:
        seed = int(rng.integers(2**31))
        length = space.config.align.max_new_tokens
        return respond(language_model, space.tokenizer, prompts, length, seed)[0]

    return answer


def adversarial(config: AdversarialRedTeam, space: Space, number: int) -> list[Prompt]:
    """The worst share of the candidates; at random in the first round, before any cost model."""
    found = read_prompts(config.candidates) if config.candidates else space.prompts
    candidates = unseen(list({repr(prompt): prompt for prompt in found}.values()), space)
    if len(candidates) > config.tried:
        drawn = space.rng(f"red_team/candidates/{number}").permutation(len(candidates))
        candidates = [candidates[i] for i in drawn[: config.tried]]
    count = max(1, round(config.keep * len(candidates)))
    if number == 1:
        order = space.rng("red_team/first").permutation(len(candidates))
        return [candidates[i] for i in order[:count]]
    cost = space.score_model(space.round(number - 1), "cost")
    risk = risks(responder(space, number - 1, "red_team"), candidates, cost, space, config.probes)
    return worst(candidates, risk, count)


def risks(
    answer: Respond, prompts: Sequence[Prompt], cost: ScoreModel, space: Space, probes: int
) -> list[Risk]:
    """The risk of every prompt from `probes` sampled responses."""
    repeated = [prompt for prompt in prompts for _ in range(probes)]
    scores = score_texts(cost, space.tokenizer, repeated, answer(repeated)).reshape(-1, probes)
    unsafe, probability = (scores > 0).float().mean(1), torch.sigmoid(scores).mean(1)
    pairs = zip(unsafe.tolist(), probability.tolist(), strict=True)
    return [Risk(*pair) for pair in pairs]


def worst(found: Sequence[Item], risk: Sequence[Risk], count: int) -> list[Item]:
    """The `count` prompts of the highest risk, the worst first; ties keep their order."""
    order = sorted(range(len(found)), key=risk.__getitem__, reverse=True)
    return [found[i] for i in order[:count]]


def generated(config: GeneratorRedTeam, answer: Respond, space: Space, number: int) -> list[Prompt]:
    """Prompts of a user's function, checked; `InputError` names what it did wrong."""
    function = load_function(config.function)
    try:
        found = function(answer, config.count, space.seed(f"red_team/generator/{number}"))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"red_team.function {config.function} raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise InputError(
            f"red_team.function {config.function} returned {short(found)}; expected a list of "
            f"1 … {config.count} prompts"
        )
    try:
        return [checked_prompt(prompt) for prompt in found[: config.count]]
    except FieldError as error:
        raise InputError(f"red_team.function {config.function}: {error}") from error


def load_function(name: str) -> Callable[..., Any]:
    """The callable `module:function`."""
    module, _, function = name.partition(":")
    try:
        found = vars(importlib.import_module(module))[function]
    except (ImportError, KeyError) as error:
        raise InputError(
            f"red_team.function = {name!r} cannot be loaded ({type(error).__name__}: {error}); "
            "give module:function of a module that Python can import from here"
        ) from error
    if not callable(found):
        raise InputError(f"red_team.function = {name!r} is {short(found)}, which cannot be called")
    loaded: Callable[..., Any] = found
    return loaded


def _of_round(source: DataSource, number: int) -> DataSource:
    return source.model_copy(update={"path": source.path.replace(ROUND, str(number))})


def mixture(
    ordinary: Sequence[Prompt],
    provoking: Sequence[Prompt],
    share: float,
    count: int,
    space: Space,
    purpose: str,
) -> list[Prompt]:
    """`count` prompts in random order, a `share` of them provoking; both in shuffled passes."""
    rng = space.rng(purpose)
    hard = round(share * count) if provoking else 0
    drawn = [*_passes(ordinary, count - hard, rng), *_passes(provoking, hard, rng)]
    return [drawn[i] for i in rng.permutation(len(drawn))]


def _passes(prompts: Sequence[Prompt], count: int, rng: np.random.Generator) -> list[Prompt]:
    """`count` prompts: whole shuffled passes, then a part of one."""
    found: list[Prompt] = []
    while len(found) < count:
        found += [prompts[i] for i in rng.permutation(len(prompts))]
    return found[:count]
