"""The one optimization loop of supervised training: length buckets, AdamW, cosine schedule.

SFT and score training differ in their loss alone. Batches hold examples of similar length, so
little of them is padding, and come in random order. Dropout is off, so every random number comes
from the generator handed in, and a fit continues from its checkpoint to the last bit. A batch may
be computed in micro-batches: their losses are means over weights (tokens, pairs), so

    L = Σ_m (W_m / W) L_m,    W_m = Σ weights of micro-batch m,    W = Σ_m W_m

is the mean over the whole batch, and so is its gradient, whatever the split.
Absent: several ranks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from constrained_rl.checkpoint import load_latest, save_checkpoint
from constrained_rl.errors import InputError, require_finite
from constrained_rl.precision import FullPrecision
from constrained_rl.sections import Count, NonNegative, Positive, Section, Share
from constrained_rl.stopping import Stopped, finishing_steps

Progress: TypeAlias = Callable[[int, int, float], None]  # (step, steps, loss)
BUCKET_BATCHES = 32  # batches that are sorted by length together


class FitConfig(Section):
    """Settings of a supervised fit."""

    epochs: Count = 2
    """passes over the data"""
    batch_size: Count = 16
    """examples per step; small batches with large steps win at small budgets"""
    micro_batch: Count | None = None
    """examples per forward; splits batches to save memory and never changes a result"""
    learning_rate: Positive = 5e-3
    """peak step size of AdamW; 2e-5 for pretrained models of billions of parameters"""
    warmup: Share = 0.03
    """share of the steps over which the learning rate rises from 0"""
    weight_decay: NonNegative = 0.0
    """decoupled weight decay of AdamW"""
    max_gradient_norm: Positive = 1.0
    """gradients longer than this are shortened to it"""
    max_tokens: Count | None = None
    """longest prompt and response accepted, in tokens; None: the model's context"""
    over_length: Literal["error", "drop"] = "error"
    """when examples are longer: an error that counts them, or they are left out and counted"""
    checkpoint_every: Count = 100
    """steps between checkpoints, where a folder for them is given"""


def fit(
    model: nn.Module,
    lengths: Sequence[int],
    loss: Callable[[list[int]], Tensor],
    config: FitConfig,
    generator: torch.Generator,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    data: Sequence[object] = (),
    weights: Sequence[float] | None = None,
) -> list[float]:
    """Minimize `loss(indices of a batch)` over examples; return the loss of every step.

    Args:
        model: its parameters that require gradients are trained.
        lengths: tokens of each example; examples of similar length share a batch.
        loss: mean loss of the examples with these indices.
        config: optimizer settings.
        generator: source of the order of the examples.
        progress: called after every step with (step, steps, loss).
        checkpoint: folder of checkpoints; the newest intact one in it is continued.
        data: the examples, or digests of them; their `repr` tells the checkpoints of other data.
        weights: what `loss` is a mean over: tokens of each example; None: examples count alike.

    Raises:
        InputError: there are no examples, or the checkpoints are of another fit.
        NonFiniteError: a loss or gradient is no number.
    """
    if not lengths:
        raise InputError("there are no examples to train on; expected at least one")
    precise = FullPrecision(model)
    optimizer = _optimizer(precise, config)
    per_epoch = math.ceil(len(lengths) / config.batch_size)
    steps = config.epochs * per_epoch
    beginning = "" if checkpoint is None else fingerprint(model, lengths, config, generator, data)
    state = FitState(precise, optimizer, generator, steps, checkpoint, beginning)
    history = state.restore()
    with finishing_steps() as stopping:
        for epoch in range(max(0, len(history) - 1) // per_epoch, config.epochs):
            state.epoch_start = generator.get_state()
            batches = bucketed_batches(lengths, config.batch_size, generator)
            for batch in batches[len(history) - epoch * per_epoch :]:
                rate = config.learning_rate * cosine(len(history), state.steps, config.warmup)
                total = 0.0
                optimizer.zero_grad()
                for share in _shares(batch, loss, weights, config.micro_batch):
                    share.backward()  # type: ignore[no-untyped-call]
                    precise.add_gradients()
                    total += share.item()
                _step(optimizer, rate, config.max_gradient_norm)
                precise.round()
                history.append(total)
                if progress is not None:
                    progress(len(history), state.steps, history[-1])
                stop, last = stopping(), len(history) == state.steps
                if stop or last or len(history) % config.checkpoint_every == 0:
                    state.save(history)
                if stop:
                    raise Stopped
    return history


@dataclass
class FitState:
    """What a checkpoint of a fit holds; its folder, if any."""

    weights: FullPrecision
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    steps: int
    folder: Path | None
    beginning: str  # fingerprint of what the fit began with
    epoch_start: Tensor | None = None  # generator's state before the epoch's order was drawn

    def save(self, history: list[float]) -> None:
        """Write a checkpoint, atomically."""
        if self.folder is None:
            return
        state = {
            "model": self.weights.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.epoch_start,
            "steps": self.steps,
            "beginning": self.beginning,
            "history": torch.tensor(history, dtype=torch.float64),
        }
        save_checkpoint(self.folder, len(history), state, keep=2)

    def restore(self) -> list[float]:
        """Continue from the newest intact checkpoint; the losses of the steps that are done."""
        state = None if self.folder is None else load_latest(self.folder)
        if state is None:
            return []
        if state["steps"] != self.steps:
            raise InputError(
                f"the checkpoints in {self.folder} are of a fit of {state['steps']} steps, this "
                f"one has {self.steps}; delete the folder to fit anew, or restore the settings"
            )
        if state.get("beginning") != self.beginning:
            raise InputError(
                f"the checkpoints in {self.folder} are of a fit with other data, settings, seed or "
                "model; delete the folder to fit anew, or restore what it began with"
            )
        model, optimizer, generator, history = (
            state[name] for name in ("model", "optimizer", "generator", "history")
        )
        assert isinstance(model, dict)
        assert isinstance(optimizer, dict)
        assert isinstance(generator, Tensor)
        assert isinstance(history, Tensor)
        self.weights.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.generator.set_state(generator)
        losses: list[float] = history.tolist()
        return losses


def fingerprint(
    model: nn.Module,
    lengths: Sequence[int],
    config: FitConfig,
    generator: torch.Generator,
    data: Sequence[object],
) -> str:
    """Digest of what decides the steps of a fit; of the model, names and shapes alone."""
    digest = hashlib.sha256(config.model_dump_json(exclude={"checkpoint_every"}).encode())
    digest.update(generator.get_state().numpy().tobytes())
    shapes = [(name, tuple(value.shape)) for name, value in model.named_parameters()]
    for part in (shapes, list(lengths), *data):
        digest.update(repr(part).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _optimizer(precise: FullPrecision, config: FitConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        precise.weights,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(0.9, 0.95),
    )


def _shares(
    batch: list[int],
    loss: Callable[[list[int]], Tensor],
    weights: Sequence[float] | None,
    micro_batch: int | None,
) -> Iterator[Tensor]:
    """What each micro-batch adds to the loss of a batch; the graph of one exists at a time."""
    size = micro_batch or len(batch)
    parts = [batch[start : start + size] for start in range(0, len(batch), size)]
    weight = [float(len(p) if weights is None else sum(weights[i] for i in p)) for p in parts]
    whole = sum(weight)
    for part, share in zip(parts, weight, strict=True):
        # L = Σ_m (W_m / W) L_m
        yield require_finite("training loss", loss(part) * (share / whole))


def _step(optimizer: torch.optim.Optimizer, rate: float, max_gradient_norm: float) -> None:
    """One step at the given learning rate; a gradient that is no number stops it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(group["params"], max_gradient_norm)
        require_finite("training gradient norm", norm)
    optimizer.step()


def cosine(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate at a step: linear warm-up, then (1 + cos πx) / 2 down to 0."""
    rise = math.ceil(warmup * steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def bucketed_batches(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator
) -> list[list[int]]:
    """Random batches of examples of similar length; every index once.

    Shuffled indices are sorted by length within stretches of many batches; the batches are then
    shuffled, so that training does not see short examples first.
    """
    order: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    stretch = batch_size * BUCKET_BATCHES
    batches = []
    for start in range(0, len(order), stretch):
        part = sorted(order[start : start + stretch], key=lambda index: lengths[index])
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    shuffled: list[int] = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i] for i in shuffled]
