"""A language model as policy and critic of `TokenEnv`, for the vector-environment collector.

Every state is a prompt, its action a response of one token: log π(a | s) and V(s) are those of
`CausalLMPolicy` and `TokenCritic` on that row, so the modules are shared with the fused path. Each
state is a forward pass of its own. Absent: a cache from one step to the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from constrained_rl.rollout import Rollout
from llm_env.generation import invert
from llm_env.policy import CausalLMPolicy, response_log_softmax
from llm_env.scoring import TokenCritic
from llm_env.tokens import TokenRows


class StepPolicy(nn.Module):
    """Acts token by token; satisfies the loop's `Policy` and the collector's `ActingPolicy`."""

    def __init__(self, policy: CausalLMPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy [B, T] of `action`; `obs` [B, T or T + 1, 2, L]."""
        states = obs[:, : action.shape[1]].flatten(0, 1)
        token = action.reshape(-1, 1)
        logp, entropy = self.policy(step_rows(states, token), token)
        return logp.view(action.shape), entropy.view(action.shape)

    @torch.no_grad()
    def act(self, obs: Tensor, generator: torch.Generator | None, deterministic: bool) -> Tensor:
        """Draw (or take the most likely) tokens [N] for states [N, 2, L].

        One float64 uniform per row is inverted as in `generate`: equal seeds choose equal tokens.
        """
        rows = step_rows(obs, obs.new_zeros(len(obs), 1))  # the token appended is never read
        logp = response_log_softmax(self.policy.model, rows).squeeze(1)  # [N, V]
        if deterministic:
            return logp.argmax(-1)
        device = obs.device if generator is None else generator.device
        u = torch.rand(len(obs), 1, generator=generator, device=device, dtype=torch.float64)
        return invert(logp, u.to(logp.device))

    def executed(self, action: Tensor) -> NDArray[np.generic]:
        """Token ids as they are."""
        tokens: NDArray[np.generic] = action.cpu().numpy()
        return tokens

    def encode(self, obs: Tensor | NDArray[Any]) -> Tensor:
        """Observations as a tensor on the model's device; `TokenEnv` returns fresh ones."""
        return torch.as_tensor(obs, device=self.policy.model.device)

    def update_statistics(self, rollout: Rollout) -> None:
        """Do nothing: token ids need no running statistics."""


class StepCritic(nn.Module):
    """Values of `TokenEnv`'s states."""

    def __init__(self, critic: TokenCritic) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, obs: Tensor) -> Tensor:
        """Values [B, states, S] of `obs` [B, states, 2, L], read at each state's newest token."""
        states = obs.flatten(0, 1)
        value: Tensor = self.critic(step_rows(states, states.new_zeros(len(states), 1)))
        return value.view(*obs.shape[:2], -1)

    def update_statistics(self, rollout: Rollout) -> None:
        """Do nothing: token ids need no running statistics."""


def step_rows(
    obs: Tensor,  # [M, 2, L]
    token: Tensor,  # [M, 1]
) -> TokenRows:
    """States of `TokenEnv`, each followed by one token; columns that are padding for all are cut.

    Ids and attention are padded on the left, so the state is the row's prompt.
    """
    attention = obs[:, 1].bool()
    width = int(attention.sum(1).max())
    return TokenRows(
        ids=torch.cat([obs[:, 0, -width:], token], 1),
        attention=torch.cat([attention[:, -width:], torch.ones_like(token, dtype=torch.bool)], 1),
        prompt_width=width,
    )
