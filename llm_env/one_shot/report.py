"""What `crl llm dual` says: λ̂, its interval, whether enough samples carry it, and the setting."""

from __future__ import annotations

import shlex

from rich.console import Console

from llm_env.one_shot.estimate import LEAST_EFFECTIVE, OneShot
from llm_env.one_shot.sampling import Drawn
from llm_env.terminal import print_table


def override(found: OneShot) -> str:
    """The setting that starts λ at the estimate: a number, or one per cost."""
    prices = [f"{price:.4g}" for price in found.multipliers]
    value = prices[0] if len(prices) == 1 else f"[{','.join(prices)}]"
    return f"align.multiplier.initial={value}"


def as_json(found: OneShot, drawn: Drawn) -> dict[str, object]:
    """The estimate as one object."""
    names = [constraint.name for constraint in drawn.constraints]
    ppo = drawn.align.ppo
    return {
        "multipliers": dict(zip(names, found.multipliers.tolist(), strict=True)),
        "interval": {
            name: [float(low), float(high)]
            for name, low, high in zip(names, found.low, found.high, strict=True)
        },
        "effective_sample_size": {
            "per_prompt": found.per_prompt,
            "total": found.total,
            "samples": drawn.samples.reward.shape[1],
            "prompts": found.effective.tolist(),
            "least": LEAST_EFFECTIVE,
        },
        "reward": found.reward,
        "cost": dict(zip(names, found.cost.tolist(), strict=True)),
        "start_cost": dict(zip(names, found.start_cost.tolist(), strict=True)),
        "limit": {constraint.name: constraint.limit for constraint in drawn.constraints},
        "kl": found.kl,
        "beta": ppo.kl_coefficient,
        "kl_streams": ppo.kl_streams,
        "override": override(found),
    }


def print_estimate(found: OneShot, drawn: Drawn, console: Console) -> None:
    """A table with a line per cost, the sample size, and the setting to use."""
    header = ("cost", "bounded", "limit", "reference", "λ", "95 % over prompts")
    rows = [
        (
            constraint.name,
            constraint.quantity,
            f"{constraint.limit:g}",
            f"{start:.3f}",
            f"{lam:.3f}",
            f"{low:.3f} … {high:.3f}",
        )
        for constraint, start, lam, low, high in zip(
            drawn.constraints,
            found.start_cost,
            found.multipliers,
            found.low,
            found.high,
            strict=True,
        )
    ]
    print_table(console, header, rows, text_columns=2)
    ppo, (prompts, samples) = drawn.align.ppo, drawn.samples.reward.shape
    lines = [
        f"effective sample size {found.per_prompt:.1f} of {samples} per prompt (harmonic mean of "
        f"{prompts}; least {found.effective.min():.1f}, expected ≥ {LEAST_EFFECTIVE:g})",
        f"β = {ppo.kl_coefficient:g}, kl_streams = {ppo.kl_streams}; expected at the optimum: "
        f"reward {found.reward:.3f}, KL {found.kl:.2f} nats",
    ]
    lines.append(f"crl llm train … {shlex.quote(override(found))}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
