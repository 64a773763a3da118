"""A learner: a module, its optimizer and an objective; `step(batch) → metrics`.

The seam to a distributed engine. Separate models are several learners stepped in turn, so that one
model's graph is freed before the next one's forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn

from constrained_rl.errors import require_finite
from constrained_rl.losses import (
    approximate_kl,
    clip_fraction,
    clipped_surrogate,
    clipped_value_loss,
)
from constrained_rl.protocols import Critic, Metrics, Policy, Stateful
from constrained_rl.rollout import Batch
from constrained_rl.value_norm import ValueNorm

LossShare = tuple[Tensor, dict[str, Tensor]]
"""A micro-batch's share of the minibatch loss, and metrics that add up over micro-batches."""
Objective = Callable[[Batch], LossShare]


class Auxiliary(Stateful, Protocol):
    """A further loss on data of its own, added to a learner's objective before its one step."""

    def shares(self, micro_batch: int | None) -> Iterator[LossShare]:
        """Draw one batch; yield its micro-batches' shares of the loss, one at a time."""


class Learner:
    """Steps one module group on one objective, and an auxiliary loss where there is one."""

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        learning_rate: float,
        betas: tuple[float, float],
        max_grad_norm: float,
        micro_batch: int | None = None,
    ) -> None:
        self.module = module
        self.auxiliary: Auxiliary | None = None
        self._objective = objective
        self._learning_rate = learning_rate
        self._max_grad_norm = max_grad_norm
        self._micro_batch = micro_batch
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            self._parameters, lr=learning_rate, betas=betas, eps=1e-5, fused=True
        )

    def step(self, batch: Batch) -> Metrics:
        """Forward, backward over micro-batches, clip, update. Returns the objective's metrics."""
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for loss, metrics in self._shares(batch):
            loss.backward()  # type: ignore[no-untyped-call]
            for name, value in metrics.items():
                totals[name] = totals[name] + value if name in totals else value
        for name, value in totals.items():
            require_finite(name, value)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        require_finite("gradient norm", norm)
        self.optimizer.step()
        return {name: float(value) for name, value in totals.items()}

    def _shares(self, batch: Batch) -> Iterator[LossShare]:
        """The shares of all losses, each made when the one before it has left memory."""
        own = (self._objective(micro) for micro in batch.microbatches(self._micro_batch))
        if self.auxiliary is None:
            return own
        return chain(own, self.auxiliary.shares(self._micro_batch))

    def scale_learning_rate(self, factor: float) -> None:
        """Set the learning rate to `factor` times its initial value."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate * factor

    def state_dict(self) -> dict[str, object]:
        """Weights, optimizer state and where the auxiliary loss stands in its data."""
        state: dict[str, object] = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.auxiliary is not None:
            state["auxiliary"] = self.auxiliary.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`."""
        module, optimizer = state["module"], state["optimizer"]
        assert isinstance(module, Mapping)
        assert isinstance(optimizer, dict)
        self.module.load_state_dict(module)
        self.optimizer.load_state_dict(optimizer)
        if self.auxiliary is not None:
            auxiliary = state["auxiliary"]
            assert isinstance(auxiliary, Mapping)
            self.auxiliary.load_state_dict(auxiliary)


class PolicyObjective:
    """Clipped surrogate minus an entropy bonus whose weight the schedule moves."""

    def __init__(
        self, policy: Policy, clip: float, entropy: float, dual_clip: float | None = None
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
    """Clipped value regression, summed over the critic's streams."""

    def __init__(
        self,
        critic: Critic,
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
        losses = {}
        for s, name in enumerate(self._names):
            loss = clipped_value_loss(
                value[..., s], batch.value[..., s], batch.target[..., s], batch.weight, self._clip
            )
            losses[f"loss/value/{name}"] = loss if square is None else loss / square[s]
        total = torch.stack(list(losses.values())).sum()
        return total, {name: loss.detach() for name, loss in losses.items()}
