"""A learner: an engine and an objective; `step(batch) → metrics`.

Separate models are several learners stepped in turn, so that one model's graph is freed before the
next one's forward. Of a minibatch every rank computes its rows' share of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from constrained_rl.distributed import World
from constrained_rl.engines import Engine, LossShare
from constrained_rl.errors import require_finite
from constrained_rl.losses import (
    approximate_kl,
    clip_fraction,
    clipped_surrogate,
    clipped_value_loss,
)
from constrained_rl.protocols import Metrics, Stateful
from constrained_rl.rollout import Batch
from constrained_rl.value_norm import ValueNorm

Objective = Callable[[Batch], LossShare]


class Auxiliary(Stateful, Protocol):
    """A further loss on data of its own, added to a learner's objective before its one step."""

    def shares(self, micro_batch: int | None, engine: Engine) -> Sequence[Callable[[], LossShare]]:
        """Draw one batch, the same on all ranks; this rank's micro-batches, run when called.

        They call `engine.forward`. Every rank gets the same number of them, and all of them add up
        to the loss.
        """


class Learner:
    """Steps one module on one objective, and an auxiliary loss where there is one."""

    def __init__(
        self, engine: Engine, objective: Objective, micro_batch: int | None = None
    ) -> None:
        self.engine = engine
        self.auxiliary: Auxiliary | None = None
        self._objective = objective
        self._micro_batch = micro_batch

    def step(self, batch: Batch) -> Metrics:
        """Forward, backward over micro-batches, clip, update. Returns the objective's metrics.

        Losses and metrics are sums over micro-batches and ranks; where one is no number, all ranks
        raise before a weight has moved.
        """
        shares = self._shares(batch)
        totals: dict[str, Tensor] = {}
        for number, share in enumerate(shares, start=1):
            metrics = self.engine.accumulate(share, last=number == len(shares))
            for name, value in metrics.items():
                totals[name] = totals[name] + value if name in totals else value
        totals = self.engine.world.sum(totals)
        found = dict(zip(totals, torch.stack(list(totals.values())).tolist(), strict=True))
        for name, number in found.items():
            if not math.isfinite(number):
                require_finite(name, totals[name])
        self.engine.step()
        return found

    def _shares(self, batch: Batch) -> list[Callable[[], LossShare]]:
        """This rank's shares of all losses; each builds its graph when it is called."""
        own = own_rows(batch, self.engine.world).microbatches(self._micro_batch)
        shares: list[Callable[[], LossShare]] = [partial(self._objective, part) for part in own]
        if self.auxiliary is not None:
            shares += self.auxiliary.shares(self._micro_batch, self.engine)
        return shares

    def scale_learning_rate(self, factor: float) -> None:
        """Set the learning rate to `factor` times its initial value."""
        self.engine.scale_learning_rate(factor)

    def state_dict(self) -> dict[str, object]:
        """Weights, optimizer state and where the auxiliary loss stands in its data."""
        state = self.engine.state_dict()
        if self.auxiliary is not None:
            state["auxiliary"] = self.auxiliary.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`."""
        self.engine.load_state_dict(state)
        if self.auxiliary is not None:
            auxiliary = state["auxiliary"]
            assert isinstance(auxiliary, Mapping)
            self.auxiliary.load_state_dict(auxiliary)


def own_rows(batch: Batch, world: World) -> Batch:
    """This rank's rows of a minibatch, filled up with rows of weight 0 to the longest share."""
    if world.size == 1:
        return batch
    index, real = (x.to(batch.weight.device) for x in world.padded(len(batch)))
    part = batch.rows(index)
    return replace(part, weight=part.weight * real.unsqueeze(1))


class PolicyObjective:
    """Clipped surrogate minus an entropy bonus whose weight the schedule moves.

    `policy` is the module as its engine calls it: (obs, action) → log-probability, entropy.
    """

    def __init__(
        self,
        policy: Callable[..., Any],
        clip: float,
        entropy: float,
        dual_clip: float | None = None,
    ) -> None:
        self._policy, self._clip, self._dual_clip = policy, clip, dual_clip
        self.entropy = entropy

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """L = clipped_surrogate − c_H Σ w H."""
        logp, entropy = self._policy(batch.obs, batch.action)
        surrogate = clipped_surrogate(
            logp, batch.logp, batch.advantage, batch.weight, self._clip, self._dual_clip
        )
        bonus = (batch.weight * entropy).sum()
        with torch.no_grad():
            metrics = {
                "loss/policy": surrogate.detach(),
                "entropy": bonus.detach(),
                "kl/approx": approximate_kl(logp, batch.logp, batch.weight),
                "clip_fraction": clip_fraction(logp, batch.logp, batch.weight, self._clip),
            }
        return surrogate - self.entropy * bonus, metrics


class ValueObjective:
    """Clipped value regression, summed over the critic's streams.

    `critic` is the module as its engine calls it: obs → values.
    """

    def __init__(
        self,
        critic: Callable[..., Any],
        names: Sequence[str],
        clip: float | None,
        norm: ValueNorm | None = None,
    ) -> None:
        self._critic, self._names, self._clip, self._norm = critic, names, clip, norm

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """L = Σ_s clipped_value_loss of stream s, over σ_s² where values are normalised."""
        value = self._critic(batch.obs)[:, : batch.target.shape[1]]
        square = None
        if self._norm is not None:
            value, square = self._norm.restore(value), self._norm.deviation.square().to(value)
        losses = clipped_value_loss(
            value, batch.value, batch.target, batch.weight.unsqueeze(-1), self._clip
        )
        if square is not None:
            losses = losses / square
        names = [f"loss/value/{name}" for name in self._names]
        return losses.sum(), dict(zip(names, losses.detach().unbind(), strict=True))
