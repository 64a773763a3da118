"""Check a file of reference vectors against this library's own functions.

    python tests/check_vectors.py tests/reference_vectors.json

Prints the worst deviation |a − b| / max(1, |b|) of each group in float64 and exits with 1 if one
exceeds 1e-6. The groups are inputs and outputs of the reference formulas of Safe RLHF and of the
PID and Adam multipliers of the classic peers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from constrained_rl.advantages import gae
from constrained_rl.config import PPOConfig
from constrained_rl.constraints import Constraint, Constraints, Signal
from constrained_rl.estimators import Mean
from constrained_rl.losses import clipped_surrogate, clipped_value_loss
from constrained_rl.multipliers import PID, Gradient, Multiplier
from constrained_rl.ppo import mix
from constrained_rl.rollout import Episodes, Rollout, Streams
from constrained_rl.streams import build_streams, discounts
from llm_env.preference_losses import cost_model_loss, reward_model_loss

TOLERANCE = 1e-6
Case = dict[str, Any]
Pairs = Iterator[tuple[str, Tensor, Tensor]]


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rollout_of(case: Case) -> Rollout:
    """The case's responses as a rollout: scores at the last token, terminated."""
    mask = torch.tensor(case["mask"])
    rows = torch.arange(len(mask))
    end = mask.sum(1) - 1
    at_end = torch.zeros_like(mask)
    at_end[rows, end] = True
    reward, cost = tensor(case["reward_score"]), tensor(case["cost_score"])
    return Rollout(
        obs=torch.zeros(*mask.shape, 1),
        action=torch.zeros_like(mask, dtype=torch.long),
        reward=at_end * reward.unsqueeze(1),
        cost=(at_end * cost.unsqueeze(1)).unsqueeze(-1),
        terminated=at_end,
        done=at_end,
        mask=mask,
        episodes=Episodes(reward, cost.unsqueeze(1), end + 1, rows, end),
        exchangeable=False,
    )


def safe_rlhf_update(case: Case) -> Pairs:
    expected = {name: tensor(value) for name, value in case["expected"].items()}
    config = PPOConfig(
        gamma=case["gamma"],
        gae_lambda=case["gae_lambda"],
        clip=case["clip_ratio"],
        value_clip=case["value_clip"],
        kl_coefficient=case["kl_coefficient"],
        score_clip=case["score_clip"],
        kl_streams="both",
        loss_mean="sequence",
        normalize="none",
        flatten=False,
    )
    rollout = rollout_of(case)
    logp_old, mask = tensor(case["logp_old"]), rollout.mask
    constraints = Constraints([Constraint("cost", 0.0)], [Mean()])
    streams = build_streams(
        rollout, constraints.streams(rollout), config, logp_old - tensor(case["logp_ref"])
    )
    yield "token_rewards", streams[..., 0], expected["token_rewards"]
    yield "token_costs", streams[..., 1], expected["token_costs"]
    value = torch.stack([tensor(case["reward_values"]), tensor(case["cost_values"])], -1)
    padded = torch.cat([value, torch.zeros_like(value[:, :1])], 1)
    advantage = gae(
        streams, padded, rollout.terminated, rollout.done, *discounts(config, streams)
    ) * mask.unsqueeze(-1)
    yield "reward_advantages", advantage[..., 0], expected["reward_advantages"]
    yield "cost_advantages", advantage[..., 1], expected["cost_advantages"]
    annotated = Streams(
        rollout.obs, rollout.action, mask, logp_old, value, advantage, exchangeable=False
    )
    target = annotated.target * mask.unsqueeze(-1)
    yield "reward_returns", target[..., 0], expected["reward_returns"] * mask
    yield "cost_returns", target[..., 1], expected["cost_returns"] * mask
    batch = mix(annotated, tensor([case["multiplier"]]), config)
    actor = clipped_surrogate(
        tensor(case["logp_new"]), batch.logp, batch.advantage, batch.weight, config.clip
    )
    yield "actor_loss", actor, expected["actor_loss"]
    critic = clipped_value_loss(
        tensor(case["reward_values_new"]),
        batch.value[..., 0],
        batch.target[..., 0],
        batch.weight,
        config.value_clip,
    )
    yield "reward_critic_loss", critic, expected["reward_critic_loss"]


def preference_losses(case: Case) -> Pairs:
    expected, mu = case["expected"], case["regularization"]
    reward = reward_model_loss(
        tensor(case["chosen_reward"]), tensor(case["rejected_reward"]), regularization=mu
    )
    cost = cost_model_loss(
        tensor(case["more_harmful_cost"]),
        tensor(case["less_harmful_cost"]),
        tensor(case["more_harmful_sign"]),
        tensor(case["less_harmful_sign"]),
        regularization=mu,
    )
    yield "reward_model_loss", reward, tensor(expected["reward_model_loss"])
    yield "cost_model_loss", cost, tensor(expected["cost_model_loss"])


def trajectory(multiplier: Multiplier, case: Case, limit: float) -> Pairs:
    lam = [
        multiplier.update(
            Signal(tensor([cost]), tensor([limit]), tensor([1.0]), tensor([1.0]), 1.0, 1.0)
        )[0]
        for cost in case["mean_costs"]
    ]
    yield "lambda", torch.stack(lam), tensor(case["expected"])


def log_multiplier(case: Case) -> Pairs:
    multiplier = Gradient(
        1,
        case["learning_rate"],
        initial=case["initial"],
        parameterization="log",
        maximum=case["maximum"],
    )
    return trajectory(multiplier, case, case["threshold"])


def projected_adam(case: Case) -> Pairs:
    multiplier = Gradient(
        1,
        case["learning_rate"],
        initial=case["initial"],
        optimizer="adam",
        maximum=case["maximum"],
    )
    return trajectory(multiplier, case, case["limit"])


def pid(case: Case) -> Pairs:
    multiplier = PID(
        1,
        case["kp"],
        case["ki"],
        case["kd"],
        initial=case["initial_integral"],
        proportional_ema=case["proportional_ema"],
        derivative_ema=case["derivative_ema"],
        derivative_delay=case["derivative_delay"],
    )
    return trajectory(multiplier, case, case["limit"])


GROUPS: dict[str, Callable[[Case], Pairs]] = {
    "safe_rlhf_update": safe_rlhf_update,
    "log_multiplier": log_multiplier,
    "preference_losses": preference_losses,
    "pid": pid,
    "projected_adam": projected_adam,
}


def deviations(document: dict[str, list[Case]]) -> dict[str, float]:
    """Worst relative deviation of each group; an unknown group is an error."""
    unknown = set(document) - set(GROUPS)
    if unknown:
        raise ValueError(f"unknown groups {sorted(unknown)}; known: {sorted(GROUPS)}")
    worst: dict[str, float] = {}
    for group, cases in document.items():
        if not cases:
            raise ValueError(f"group {group} holds no case")
        worst[group] = 0.0
        for case in cases:
            for name, found, expected in GROUPS[group](case):
                if found.shape != expected.shape:
                    raise ValueError(f"{group}.{name}: {found.shape} is not {expected.shape}")
                gap = (found - expected).abs() / expected.abs().clamp_min(1)
                # A NaN compares false with everything: make it infinitely wrong.
                worst[group] = max(worst[group], float(gap.nan_to_num(nan=float("inf")).max()))
    return worst


def main(path: str) -> int:
    worst = deviations(json.loads(Path(path).read_text(encoding="utf-8")))
    for group, value in worst.items():
        print(f"{group:20} {value:.3e}  {'ok' if value <= TOLERANCE else 'FAILED'}")
    return int(max(worst.values()) > TOLERANCE)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/check_vectors.py FILE")
    sys.exit(main(sys.argv[1]))
