"""From rewards and costs to one advantage per decision: streams, GAE, mixing. Pure functions.

Without critics, a row is compared with the other rows of its group: leave-one-out, or
standardised. Letters: B rows, T decisions, K constraints, S streams (reward first). Absent:
V-trace, λ-returns for off-policy data.
"""

from typing import Literal

import torch
from torch import Tensor

from constrained_rl.errors import InputError, NonFiniteError

AdvantageRule = Literal["gae", "leave_one_out", "group"]
"""What a decision is compared with: a critic's value, or the other rows of its group."""
KLStreams = Literal["reward", "both", "paper"]
"""Which streams pay for β·KL; see `charge_kl`."""
LARGEST = 1e18
"""of an advantage: the square of ten times as much is beyond float32"""


def gae(
    reward: Tensor,  # [B, T, S]
    value: Tensor,  # [B, T + 1, S]
    terminated: Tensor,  # [B, T] bool, or the probability of it where the environment knows it
    done: Tensor,  # [B, T] bool
    gamma: Tensor,  # [S]
    gae_lambda: Tensor,  # [S]
) -> Tensor:  # [B, T, S]
    """Generalised advantage estimation of all streams in one pass (Schulman et al. 2016, eq. 16).

    Values cover every state a row holds, so truncation needs no branch: a truncated decision
    bootstraps from V_{t+1} and its episode is cut by `done`. A probability p of termination takes
    the expectation over it, δ = r + γ (1 − p) V_{t+1} − V_t. A masked decision always follows a
    `done` one, so what is computed there reaches nobody; mask it when averaging.
    """
    alive = 1 - terminated.to(reward.dtype).unsqueeze(-1)
    carry = (~done).to(reward.dtype).unsqueeze(-1) * (gamma * gae_lambda)
    # δ_t = r_t + γ (1 − terminated_t) V_{t+1} − V_t
    delta = reward + gamma * alive * value[:, 1:] - value[:, :-1]
    advantage = torch.empty_like(delta)
    running = torch.zeros_like(delta[:, 0])
    for t in range(reward.shape[1] - 1, -1, -1):
        # A_t = δ_t + γ λ (1 − done_t) A_{t+1}
        running = delta[:, t] + carry[:, t] * running
        advantage[:, t] = running
    return advantage


def leave_one_out(
    return_: Tensor,  # [B, S] what the row's whole episode paid, KL included
    group: Tensor,  # [B] rows with equal numbers share a prompt
) -> Tensor:  # [B, S]
    """Leave-one-out advantage: A_i = G_i − 1/(n − 1) Σ_{j ≠ i in i's group of n} G_j.

    The others' mean does not depend on row i, so it is a baseline that keeps the policy gradient
    unbiased. The advantage stays in true units: λ is a price. Ahmadian et al. 2024 (RLOO), eq. 7;
    Kool et al. 2019.
    """
    total, count, member = _group_sums(return_, group)
    # A_i = G_i − (Σ_j G_j − G_i) / (n − 1)
    return return_ - (total[member] - return_) / (count[member] - 1)


def group_normalized(
    return_: Tensor,  # [B, S] what the row's whole episode paid, KL included
    group: Tensor,  # [B] rows with equal numbers share a prompt
) -> Tensor:  # [B, S]
    """Group-standardised advantage: A_i = (G_i − mean of the group) / deviation of the group.

    Each stream has its own deviation in each group, so λ weighs standardised streams and is *no
    price*: the problem it solves is reweighted by prompt. A group without spread gives 0. Shao et
    al. 2024 (GRPO), §4.1.2; per stream before mixing as in Constrained GRPO (arXiv 2602.05863).
    Unlike GRPO's, the KL is part of the return and not of the loss.
    """
    total, count, member = _group_sums(return_, group)
    centred = return_ - (total / count)[member]
    square, _, _ = _group_sums(centred.square(), group)
    deviation = (square / count).sqrt()[member]
    # rounding leaves a constant stream a spread of its last digits
    flat = deviation <= 1e-6 * return_.abs().clamp_min(1e-2)
    return torch.where(flat, torch.zeros_like(centred), centred / deviation)


def _group_sums(
    x: Tensor,  # [B, S]
    group: Tensor,  # [B]
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums [G, S] and sizes [G, 1] of the groups, and the group of each row [B]."""
    _, member, size = torch.unique(group, return_inverse=True, return_counts=True)
    if int(size.min()) < 2:
        raise InputError(
            f"{int((size < 2).sum())} of {len(size)} groups hold one row, and an advantage without "
            "a critic compares a row with others of its group; let at least 2 share a prompt"
        )
    total = x.new_zeros(len(size), x.shape[1]).index_add_(0, member, x)
    return total, size.unsqueeze(1).to(x), member


def charge_kl(
    stream: Tensor,  # [B, T, S] reward first, then costs
    kl: Tensor,  # [B, T] log π_old − log π_ref of the tokens taken (the k1 estimator)
    beta: float,
    kl_streams: KLStreams,
) -> Tensor:  # [B, T, S]
    """Charge β·KL to the streams.

    "reward": r − β·kl only; the optimum is π_ref · exp((R − λC)/β), the problem as written.
    "both":   r − β·kl and c + β·kl, so that after (A_r − λA_c)/(1 + λ) the KL weight is β for
              every λ (Safe RLHF's reference implementation).
    "paper":  both at β/2 (Dai et al. 2024, appendix).
    """
    factor = beta / 2 if kl_streams == "paper" else beta
    sign = torch.ones(stream.shape[-1], dtype=stream.dtype, device=stream.device)
    sign[0] = -1
    if kl_streams == "reward":
        sign[1:] = 0
    return stream + factor * kl.unsqueeze(-1) * sign


def penalized_advantage(
    advantage: Tensor,  # [B, T, 1 + K]
    lam: Tensor,  # [K] ≥ 0
    divide: bool = True,
) -> Tensor:  # [B, T]
    """Advantage of the Lagrangian: A = (A_r − Σ_k λ_k A_ck) / (1 + Σ_k λ_k).

    Dividing by 1 + Σλ keeps the step size comparable as λ grows (Stooke et al. 2020, §4).
    """
    lam = lam.to(advantage)
    mixed = advantage[..., 0] - advantage[..., 1:] @ lam
    return mixed / (1 + lam.sum()) if divide else mixed


def require_mixable(
    mixed: Tensor,  # [B, T]
    advantage: Tensor,  # [B, T, S] the streams it was mixed from
    lam: Tensor,  # [K]
) -> Tensor:  # [B, T]
    """Return `mixed`, or raise `NonFiniteError` where λ took it beyond what can be squared.

    Its deviation would be infinite, and every decision as good as any other.
    """
    reach = float(mixed.abs().max())
    if reach < LARGEST or not float(advantage.abs().max()) < LARGEST:
        return mixed  # streams that are no numbers are told by what made them so
    prices = ", ".join(f"{price:.3g}" for price in lam.tolist())
    raise NonFiniteError(
        f"λ has exploded: it is {prices}, at which the mixed advantages reach {reach:.3g}; the run "
        "stops here and its last checkpoint is intact. λ grew faster than the policy could answer: "
        "set multiplier.maximum, lower multiplier.learning_rate or the gains, or count costs in "
        "larger units; a run's config.toml may be changed before `crl resume`"
    )


def whiten(advantage: Tensor, mask: Tensor) -> Tensor:
    """Subtract the mean and divide by the deviation over masked decisions.

    `advantage` is [B, T] or [B, T, S] (each stream on its own), `mask` [B, T] bool. Fewer than two
    decisions, or no spread, leave only the centring.
    """
    chosen = advantage[mask]
    mean = chosen.mean(0)
    deviation = chosen.std(0, correction=0)
    scale = torch.where(deviation > 1e-8, deviation, torch.ones_like(deviation))
    keep = mask if advantage.ndim == 2 else mask.unsqueeze(-1)
    return (advantage - mean) / scale * keep


def scale_by_spreads(
    mixed: Tensor,  # [B, T] of `penalized_advantage`
    advantage: Tensor,  # [B, T, 1 + K] the streams it was mixed from
    lam: Tensor,  # [K]
    mask: Tensor,  # [B, T] bool
    divide: bool = True,
) -> Tensor:  # [B, T]
    """Centre the mixed advantage and divide it by its streams' spreads, σ_r + Σ_k λ_k σ_k.

    An optimal policy that randomises is indifferent: there A_r − Σ λ_k A_k is 0, and dividing it by
    its own deviation would make steps of full size out of noise. The streams keep their spread.
    """
    lam = lam.to(advantage)
    weight = torch.cat([lam.new_ones(1), lam])
    scale = weight @ advantage[mask].std(0, correction=0)
    if divide:
        scale = scale / weight.sum()
    centred = mixed - mixed[mask].mean()
    return centred / torch.where(scale > 1e-8, scale, torch.ones_like(scale)) * mask
