"""What a collector returns and what an update consumes: rows × decisions.

Letters: B rows, T decisions, K cost channels, S streams, E finished episodes. A row is a window of
one sub-environment or a prompt with its response; observations are opaque and only models read
them. Shapes are checked once, here, and trusted afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from constrained_rl.errors import InputError, require_finite


class Observations(Protocol):
    """Opaque per-row payload: a tensor, or any object with these two methods."""

    def __getitem__(self, index: Tensor | slice) -> Self:
        """Select rows."""

    def __len__(self) -> int:
        """Number of rows."""


@dataclass(frozen=True)
class Episodes:
    """The episodes that ended inside a rollout; sums are raw and undiscounted."""

    return_: Tensor  # [E]
    cost: Tensor  # [E, K]
    length: Tensor  # [E] decisions, long
    row: Tensor  # [E] the row in which the episode ended, long
    end: Tensor  # [E] its last decision within that row, long
    stop_reason: tuple[str, ...] = ()  # per episode ("eos", "length"); empty if meaningless

    def __len__(self) -> int:
        """Number of finished episodes."""
        return len(self.return_)


@dataclass(frozen=True)
class Rollout:
    """Decisions of a fixed policy. `mask` is False where nobody decided (reset step, padding)."""

    obs: Observations | Tensor  # tensors hold T + 1 states: [B, T + 1, …]
    action: Tensor  # [B, T, …]
    reward: Tensor  # [B, T]
    cost: Tensor  # [B, T, K]
    terminated: Tensor  # [B, T] bool: no future beyond this decision
    done: Tensor  # [B, T] bool: the episode ends here (terminated or truncated)
    mask: Tensor  # [B, T] bool
    episodes: Episodes
    exchangeable: bool  # decisions are independent given obs, so rows may be flattened
    behaviour_logp: Tensor | None = None  # [B, T] where the engine knows it exactly
    group: Tensor | None = None  # [B] rows that share a prompt or start state
    first: Tensor | None = None  # [B, T] bool: an episode begins with this decision
    ending: Tensor | None = None  # [B, T] probability of `terminated`, where it is known
    ends: Tensor | None = None  # [B, T] expected number of episodes that end here, as `ending`

    def __post_init__(self) -> None:
        """Check shapes and finiteness where the data are born."""
        if self.reward.ndim != 2 or len(self.obs) != len(self.reward):
            raise InputError(
                f"rollout reward has shape {tuple(self.reward.shape)}, expected [B, T] with B = "
                f"{len(self.obs)} rows as in obs"
            )
        rows, decisions = self.reward.shape
        shapes = {
            "terminated": (self.terminated, (rows, decisions)),
            "done": (self.done, (rows, decisions)),
            "mask": (self.mask, (rows, decisions)),
            "action": (self.action, (rows, decisions, *self.action.shape[2:])),
            "cost": (self.cost, (rows, decisions, self.cost.shape[-1])),
        }
        if self.behaviour_logp is not None:
            shapes["behaviour_logp"] = (self.behaviour_logp, (rows, decisions))
        known = {"first": self.first, "ending": self.ending, "ends": self.ends}
        for name, optional in known.items():
            if optional is not None:
                shapes[name] = (optional, (rows, decisions))
        if self.group is not None:
            shapes["group"] = (self.group, (rows,))
        for name, (value, expected) in shapes.items():
            if tuple(value.shape) != expected:
                raise InputError(f"rollout {name} has shape {tuple(value.shape)}, not {expected}")
        if not bool(self.mask.any()):
            raise InputError(
                "the rollout holds no decision (mask is False everywhere): every episode is empty; "
                "check that the environment or the prompts leave room to act"
            )
        require_finite("rollout reward", self.reward)
        require_finite("rollout cost", self.cost)


@dataclass(frozen=True)
class Streams:
    """A rollout's rows with what the update needs of them, one advantage per stream; no λ yet."""

    obs: Observations | Tensor
    action: Tensor  # [B, T, …]
    mask: Tensor  # [B, T] bool
    logp: Tensor  # [B, T] of the policy that acted
    value: Tensor  # [B, T, S] predictions before the update; 0 without critics
    advantage: Tensor  # [B, T, S]
    exchangeable: bool
    kl: Tensor | None = None  # [B, T] log π − log π_ref of the actions taken
    group: Tensor | None = None  # [B] as the rollout's
    corrected: Tensor | None = None  # [K] episode costs by `streams.corrected_costs`

    @property
    def target(self) -> Tensor:
        """Regression targets of the critics, A + V: [B, T, S]."""
        return self.advantage + self.value


@dataclass(frozen=True)
class Batch:
    """What a learner sees. `weight` sums to 1 over a minibatch, so every mean is Σ weight · x."""

    obs: Observations | Tensor
    action: Tensor  # [B, T, …]
    weight: Tensor  # [B, T] ≥ 0, 0 where masked
    logp: Tensor  # [B, T]
    advantage: Tensor  # [B, T] mixed
    value: Tensor  # [B, T, S] old predictions; 0 without critics
    target: Tensor  # [B, T, S]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.logp)

    def rows(self, index: Tensor | slice) -> Batch:
        """Select rows; the weights keep the denominator they were given."""
        return Batch(
            obs=self.obs[index],
            action=self.action[index],
            weight=self.weight[index],
            logp=self.logp[index],
            advantage=self.advantage[index],
            value=self.value[index],
            target=self.target[index],
        )

    def flatten(self) -> Batch:
        """Turn exchangeable rows into one-decision rows [M, 1], masked decisions left out."""
        keep = self.weight.flatten().nonzero().squeeze(1)
        decisions = self.logp.shape[1]

        def flat(x: Tensor) -> Tensor:
            return x[:, :decisions].flatten(0, 1).index_select(0, keep).unsqueeze(1)

        if not isinstance(self.obs, Tensor):
            raise InputError("only rollouts whose observations are tensors can be flattened")
        return Batch(
            obs=flat(self.obs),
            action=flat(self.action),
            weight=flat(self.weight),
            logp=flat(self.logp),
            advantage=flat(self.advantage),
            value=flat(self.value),
            target=flat(self.target),
        )

    def minibatches(self, count: int, generator: torch.Generator) -> Iterator[Batch]:
        """Split the shuffled rows into `count` minibatches, each with weights that sum to 1.

        One minibatch is the batch: the order of its rows changes no sum.
        """
        if count == 1:
            yield self
            return
        order = torch.randperm(len(self), generator=generator).to(self.logp.device)
        # Not chunk(): of 10 rows in 8 parts that makes 5 of 2.
        for index in order.tensor_split(min(count, len(self))):
            part = self.rows(index)
            yield replace(part, weight=part.weight / part.weight.sum().clamp_min(1e-12))

    def microbatches(self, size: int | None) -> Iterator[Batch]:
        """Split a minibatch without touching its weights: the pieces' losses add up to its loss."""
        if size is None or size >= len(self):
            yield self
            return
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))


def decision_weights(mask: Tensor, loss_mean: str, dtype: torch.dtype) -> Tensor:
    """Weights of a mean over decisions [B, T], summing to 1.

    "token": every decision counts alike. "sequence": every row that holds a decision counts alike
    and shares its weight among its decisions (the mean of Safe RLHF's reference implementation).
    """
    weight = mask.to(dtype)
    if loss_mean == "sequence":
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1)
    return weight / weight.sum().clamp_min(1e-12)
