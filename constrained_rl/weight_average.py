"""Which policy comes out of a training whose last policies swing around the optimum? Their mean.

Absent: averages of critics, and of language models, whose engines may hold a part of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.optim.swa_utils import AveragedModel


class WeightAverage:
    """Puts the mean of a policy's weights over the last share of training in its place at the end.

    θ̄ = Σ_{i > (1 − share) N} θ_i / n, θ_i the weights and the statistics of observations after
    iteration i of N. Each update answers a noisy J_C, so the last policy is a draw around the
    limit; close policies' mean in weights acts like their mean (tail averaging, Jain et al. 2018;
    in networks Izmailov et al. 2018). Training itself never sees θ̄. Weights belong to the
    statistics that they were trained with: averaged without them the policy's costs are biased.

    Args:
        policy: the trained module; float32.
        share: of the iterations, in (0, 1].
    """

    def __init__(self, policy: nn.Module, share: float) -> None:
        self._policy, self._share = policy, share
        self._mean = AveragedModel(policy, use_buffers=True)

    def covers(self, iteration: int, iterations: int) -> bool:
        """Whether the weights after an iteration, counted from 1, belong to the mean."""
        return iteration > (1 - self._share) * iterations

    def observe(self, iteration: int, iterations: int) -> None:
        """Take in the weights after an iteration, counted from 1; after the last, put θ̄ there."""
        if self.covers(iteration, iterations):
            self._mean.update_parameters(self._policy)
        if iteration == iterations:
            self._policy.load_state_dict(self._mean.module.state_dict())
            self._mean.n_averaged.zero_()  # a training that goes on begins anew

    def state_dict(self) -> dict[str, object]:
        """The mean so far, and of how many."""
        return dict(self._mean.state_dict())

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`."""
        self._mean.load_state_dict(dict(state))
