"""Which streams of reward and cost does a rollout give, and what do their settings say of them?

S streams: the reward and each constraint's cost, or the single shaped one. Values and GAE are
computed in ppo.py; the formulas are in advantages.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from constrained_rl.advantages import charge_kl, group_normalized, leave_one_out
from constrained_rl.config import PPOConfig
from constrained_rl.constraints import Constraints
from constrained_rl.errors import InputError
from constrained_rl.rollout import Rollout, Streams


def stream_names(constraints: Constraints, config: PPOConfig) -> tuple[str, ...]:
    """Names of the S advantage streams: reward and each constraint, or the single shaped one."""
    if config.streams == "single":
        return ("shaped",)
    return ("reward", *(c.name for c in constraints.constraints))


def build_streams(
    rollout: Rollout,
    costs: Tensor,  # [B, T, K] of `Constraints.streams`
    config: PPOConfig,
    kl: Tensor | None = None,  # [B, T]
    shaping: Tensor | None = None,  # [K]
) -> Tensor:  # [B, T, S]
    """Reward and cost streams with KL charged.

    With `shaping` weights ν there is a single stream R − Σ ν_k C_k − β·KL, with one critic and no
    division by 1 + ν (the published shaping baseline, Safe RLHF reference §1.12).
    """
    if shaping is not None:
        streams = (rollout.reward - costs @ shaping.to(costs)).unsqueeze(-1)
    else:
        streams = torch.cat([rollout.reward.unsqueeze(-1), costs], dim=-1)
    if kl is not None and config.kl_coefficient > 0:
        streams = charge_kl(streams, kl, config.kl_coefficient, config.kl_streams)
    if config.score_clip is not None:
        streams = streams.clamp(-config.score_clip, config.score_clip)
    return streams * rollout.mask.unsqueeze(-1)


def corrected_costs(
    rollout: Rollout,
    costs: Tensor,  # [B, T, K] of `Constraints.streams`: neither KL nor a clip is part of J
    value: Tensor,  # [B, T + 1, 1 + K]
) -> Tensor | None:  # [K] float64
    """Expected episode cost from every decision of the window, unfinished episodes included.

    J = mean_{first decisions} V(s) + Σ_t δ_t / Σ_t e_t,   δ_t = c_t + (1 − e_t) V(s_{t+1}) − V(s_t)

    with e_t the number of episodes that are expected to end at t (`expected_ends`). Over a whole
    episode E Σ δ = E C − V(s_0), so any V leaves the expectation alone, and a good one leaves no
    noise in it: the control variate of doubly robust estimates (Jiang & Li 2016, eq. 10, on
    policy). None without a first decision or a chance of an end.

    Ends that are counted would not do. Under them Σ δ telescopes to Σ c and the window's edges, so
    nothing is gained, and they come in bursts, since episodes that began together end together: a
    window that sees two ends would share all its surprises among two.

    Raises:
        InputError: the environment does not report its chance of ending, or the collector does not
            say where episodes begin.
    """
    require_chance(rollout.ends is not None)
    assert rollout.ends is not None
    if rollout.first is None:
        raise InputError(
            "constraint.corrected counts what the critics expect at the first decisions of "
            "episodes, but the collector does not say which these are (Rollout.first); set "
            "constraint.corrected=false"
        )
    ending = rollout.ends.to(value)
    ends = ending[rollout.mask].double().sum()
    if ends == 0 or not bool(rollout.first.any()):
        return None
    expected = value[..., 1:]  # [B, T + 1, K]
    delta = costs + (1 - ending.unsqueeze(-1)) * expected[:, 1:] - expected[:, :-1]
    surprise = delta[rollout.mask].double().sum(0) / ends
    return expected[:, :-1][rollout.first].double().mean(0) + surprise


def require_chance(reported: bool) -> None:
    """Raise `InputError` unless the environment reports its chance of ending at every step."""
    if not reported:
        raise InputError(
            "constraint.corrected needs the chance that an episode ends, which the environment "
            "does not report at every step (info['termination']); set constraint.corrected=false"
        )


def expected_ends(
    ending: Tensor,  # [B, T] probability p of `terminated`
    truncated: Tensor,  # [B, T] bool
    apart: bool = False,
) -> Tensor:  # [B, T]
    """How many episodes are expected to end with each decision: E e = P(done), over a draw of p.

    e = p where nothing is cut, and where the episode is truncated
    e = 1        if a time limit truncates whatever was drawn: there every episode ends
    e = 1 + p    if it truncates only what was not drawn to terminate (`apart`), so that of an end
                 that was drawn at the limit nobody knows: E e = p · p + (1 − p) (1 + p) = 1
    """
    return torch.where(truncated, torch.ones_like(ending) + (ending if apart else 0), ending)


def expected_change(
    rollout: Rollout,
    streams: Streams,
    logp: Tensor,  # [B, T] of the policy after the update
    counted: float,
) -> Tensor:  # [K] float64
    """What an update is expected to change of the episode costs, by importance weights.

    ΔJ_k = Σ_t (π_new / π_old − 1) A_k / E, with E the episodes that are expected to end, or where
    the environment does not know it, the mean that windows have `counted`: the performance
    difference to first order (Kakade & Langford 2002, eq. 3).
    """
    moved = (logp - streams.logp).exp() - 1
    gain = (moved.unsqueeze(-1) * streams.advantage[..., 1:])[rollout.mask].double().sum(0)
    known = rollout.ends
    ends = counted if known is None else float(known[rollout.mask].double().sum())
    return gain / max(1.0, ends)


def compare_rows(
    rollout: Rollout,
    streams: Tensor,  # [B, T, S]
    config: PPOConfig,
) -> Tensor:  # [B, T, S]
    """Advantage without critics: a row's total in each stream against those of its group.

    It is the same for every decision of the row, whatever was still open when it was taken.
    """
    if rollout.group is None:
        raise InputError(
            f"ppo.advantage is {config.advantage!r}, but the collector names no group of rows that "
            "start alike (Rollout.group); use ppo.advantage='gae'"
        )
    rule = leave_one_out if config.advantage == "leave_one_out" else group_normalized
    return rule(streams.sum(1), rollout.group).unsqueeze(1).expand_as(streams)


def discounts(config: PPOConfig, streams: Tensor) -> tuple[Tensor, Tensor]:
    """γ and GAE-λ per stream [S]: the reward's first, the costs' after it."""
    costs = streams.shape[-1] - 1
    cost_gamma = config.gamma if config.cost_gamma is None else config.cost_gamma
    cost_lambda = config.gae_lambda if config.cost_gae_lambda is None else config.cost_gae_lambda
    return (
        streams.new_tensor([config.gamma] + [cost_gamma] * costs),
        streams.new_tensor([config.gae_lambda] + [cost_lambda] * costs),
    )
