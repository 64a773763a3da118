"""What does each phase of an iteration need beside what is held anyway? Counted by running it.

The code of training runs once, on fake tensors of the largest shape that the config allows: every
response is as long as `max_new_tokens`. Absent: rows that end early, which need less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from constrained_rl.learner import Objective, PolicyObjective, ValueObjective
from constrained_rl.rollout import Batch
from llm_env.generation import Place, _Choice, _choose, _Decoder
from llm_env.plan.ledger import Ledger
from llm_env.policy import CausalLMPolicy, response_logp
from llm_env.scoring import ScoreModel, TokenCritic
from llm_env.tokens import TokenRows

Kind = Literal[
    "generate", "score", "annotate policy", "annotate reference", "annotate critic",
    "update critic", "update policy",
]  # fmt: skip


@dataclass(frozen=True)
class Working:
    """Bytes that a phase needs for a moment, beside models, optimizers and gradients held."""

    name: str
    bytes: int
    logits: int  # of them, tensors as wide as the vocabulary
    cache: int = 0  # of them, keys and values


@dataclass(frozen=True)
class Loss:
    """What of the settings shapes the graph of an update."""

    clip: float
    entropy: float
    dual_clip: float | None
    value_clip: float | None
    several: bool  # gradients of several micro-batches add up


@dataclass(frozen=True)
class Job:
    """What one model does in a phase. Equal jobs need equal memory."""

    kind: Kind
    model: tuple[str, ...]  # what shapes it: models of one description are alike
    rows: int
    prompt: int
    response: int
    loss: Loss | None = None  # of an update


@dataclass(frozen=True)
class Counted:
    """What a job needs at most in each of its segments (see `Segments`)."""

    peaks: dict[str, tuple[int, int]]  # bytes, and of them tensors as wide as the vocabulary
    cache: int = 0  # bytes of keys and values

    def working(self, name: str) -> Working:
        """The largest peak."""
        most, logits = max(self.peaks.values())
        return Working(name, most, logits, self.cache)


class Segments:
    """Cuts a ledger where a layer's forward or backward begins.

    With every layer of one kind, memory at a place of the first or the last layer grows by the
    same amount. The peak over all places need not: of shallow models it may lie at the logits, of
    deep ones at the end of the backward pass.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._run = ledger, 0

    @contextmanager
    def of(self, module: nn.Module) -> Iterator[None]:
        """Cut while `module` runs."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [x for x in module.modules() if isinstance(x, GradientCheckpointingLayer)]
        hooks = []
        for index, layer in enumerate(layers):
            place = "first" if index == 0 else "middle" if index + 1 < len(layers) else "last"
            hooks += [
                layer.register_forward_pre_hook(partial(self._enter, place)),
                layer.register_forward_hook(partial(self._leave, place)),
            ]
        yield
        for hook in hooks:
            hook.remove()

    def _enter(self, place: str, *_: object) -> None:
        self._run += place == "first"
        self._ledger.begin(f"forward {self._run}, {place} layer")

    def _leave(self, place: str, layer: nn.Module, asked: object, output: object) -> None:
        if place == "last":
            self._ledger.begin(f"forward {self._run}, behind the layers")
        hidden = output[0] if isinstance(output, tuple) else output
        assert isinstance(hidden, Tensor)
        if hidden.requires_grad:
            segment = f"backward {self._run}, {place} layer"
            hidden.register_hook(lambda _: self._ledger.begin(segment))  # type: ignore[no-untyped-call]


def count(job: Job, module: nn.Module) -> Counted:
    """Run a job with a model of fake tensors; call it inside their mode."""
    ledger = Ledger(None if isinstance(module, ScoreModel | TokenCritic) else _vocabulary(module))
    ledger.ignore(module)
    work = _work(job, module)
    with torch.set_grad_enabled(job.loss is not None), Segments(ledger).of(module), ledger:
        result = work()
    module.zero_grad(set_to_none=True)
    return Counted(ledger.peaks, result if isinstance(result, int) else 0)


def _work(job: Job, module: nn.Module) -> Callable[[], object]:
    rows, loss = _rows(job), job.loss
    match module:
        case CausalLMPolicy() if loss is not None:
            objective: Objective = PolicyObjective(module, loss.clip, loss.entropy, loss.dual_clip)
            return partial(_update, module, objective, job, 1)
        case CausalLMPolicy() if job.kind == "generate":
            return partial(_generate, module, job)
        case CausalLMPolicy() if job.kind == "annotate policy":
            return partial(module, rows, rows.response_ids)
        case CausalLMPolicy():
            return partial(response_logp, module.model, rows)
        case TokenCritic() if loss is not None:
            names = [str(s) for s in range(module.model.heads)]
            objective = ValueObjective(module, names, loss.value_clip)
            return partial(_update, module, objective, job, len(names))
        case ScoreModel():  # as `ScoreModel.end_score`, which looks at what the mask holds
            return lambda: module.score(module.hidden(rows.ids, rows.attention)[:, -1])
        case _:
            return partial(module, rows)


def _rows(job: Job) -> TokenRows:
    width = job.prompt + job.response
    ids = torch.zeros(job.rows, width, dtype=torch.long)
    return TokenRows(ids, torch.ones(job.rows, width, dtype=torch.bool), job.prompt)


def _vocabulary(module: nn.Module) -> int:
    assert isinstance(module, CausalLMPolicy)
    return int(module.model.get_input_embeddings().weight.shape[0])


def _generate(policy: CausalLMPolicy, job: Job) -> int:
    """Prefill, a choice, one step, rows leaving the batch; bytes of keys and values."""
    rows = job.rows
    attention = torch.ones(rows, job.prompt, dtype=torch.bool)
    decoder = _Decoder(policy.model, attention, job.response)
    logits = decoder.prefill(torch.zeros(rows, job.prompt, dtype=torch.long))
    choice = _Choice(1.0, False, torch.Generator(), Place(0, rows))
    token, _ = _choose(logits, torch.arange(rows), choice)
    decoder.step(token)
    cache = _cache_bytes(decoder)
    decoder.keep(torch.arange(max(1, rows * 3 // 4)))
    return cache


def _cache_bytes(decoder: _Decoder) -> int:
    """Bytes of keys and values, buffers at their full width."""
    tensors: list[Tensor] = []
    for layer in decoder.cache.layers:
        tensors += vars(layer).get("buffers", (layer.keys, layer.values))
    return sum(x.untyped_storage().nbytes() for x in tensors)


def _update(module: nn.Module, objective: Objective, job: Job, streams: int) -> None:
    """Forward and backward of one micro-batch, beside the gradients of those before it."""
    if job.loss is not None and job.loss.several:
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    rows = _rows(job)
    number = torch.zeros(job.rows, job.response)
    several = torch.zeros(job.rows, job.response, streams)
    batch = Batch(rows, rows.response_ids, number, number, number, several, several)
    objective(batch)[0].backward()  # type: ignore[no-untyped-call]
