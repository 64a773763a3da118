"""What would make a config fit, the cheapest changes first, each with what it costs.

Smaller pieces change nothing but time; then come recomputed activations, score models kept away,
other ranks, and last what changes the learner itself. Absent: buying memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from constrained_rl.errors import InputError
from constrained_rl.settings import merge, validate
from llm_env.plan.plan import Machine, Plan, make_plan, planned_device, rows_of_phases
from llm_env.plan.tracer import Tracer
from llm_env.training.config import TrainConfig

MOST = 3


@dataclass(frozen=True)
class Change:
    """Settings that make a config fit."""

    settings: dict[str, object]  # "key.path": value
    price: str
    plan: Plan


def advise(config: TrainConfig, machine: Machine, plan: Plan, tracer: Tracer) -> list[Change]:
    """The cheapest changes that fit, at most three; all of them together where none does alone.

    `tracer` is what counted `plan`.
    """
    found: list[Change] = []
    together: dict[str, object] = {}
    prices: list[str] = []
    for settings, price in _candidates(config, machine, plan):
        alone = _planned(config, machine, settings, tracer)
        if alone is None:
            continue
        if alone.fits:
            found.append(Change(settings, price, alone))
            if len(found) == MOST:
                return found
        if alone.peak.bytes < plan.peak.bytes:
            together |= settings
            prices.append(price)
    if found or not together:
        return found
    combined = _planned(config, machine, together, tracer)
    if combined is None or not combined.fits:
        return []
    return [Change(together, "; ".join(prices), combined)]


def _planned(
    config: TrainConfig, machine: Machine, settings: dict[str, object], tracer: Tracer
) -> Plan | None:
    """The plan of a changed config; None where the change does not go with the rest of it."""
    tree: dict[str, object] = config.model_dump(mode="json", exclude_none=True)
    for path, value in settings.items():
        for key in reversed(path.split(".")):
            value = {key: value}
        assert isinstance(value, dict)
        tree = merge(tree, value)
    try:
        return make_plan(validate(TrainConfig, tree, "the changed config"), machine, tracer)
    except InputError:
        return None


def _candidates(
    config: TrainConfig, machine: Machine, plan: Plan
) -> Iterator[tuple[dict[str, object], str]]:
    """Changes by rising price."""
    pieces = _smaller_pieces(config, machine, plan)
    if pieces:
        yield pieces, "more and smaller forwards; results stay the same"
    scores = ["reward", *(f"costs.{name}" for name in config.costs)]
    if not config.policy.gradient_checkpointing:
        again: dict[str, object] = {"policy.gradient_checkpointing": True}
        yield again, "an update takes about a third longer; results stay the same"
    if planned_device(config) != "cpu":
        away: dict[str, object] = dict.fromkeys((f"{s}.offload" for s in scores), True)
        yield away, "score models travel to the GPU and back"
    rounded: dict[str, object] = {f"{s}.dtype": "bfloat16" for s in scores}
    yield rounded, "scores are rounded to three digits"
    if machine.ranks > 1:
        for stage in (2, 3):
            if config.distributed.engine == "torch" or config.distributed.zero < stage:
                zero: dict[str, object] = {
                    "distributed.engine": "deepspeed",
                    "distributed.zero": stage,
                }
                yield zero, "ranks talk more; needs DeepSpeed"
    if config.policy.lora is None:
        lora: dict[str, object] = {"policy.lora.rank": 16}
        if config.distributed.zero == 3:  # frozen weights need no ZeRO-3, which refuses them
            lora["distributed.zero"] = 2
        yield lora | {"critic.trunk": "shared"}, "adapters learn instead of all weights"
    if config.align.ppo.advantage == "gae":
        yield (
            {"align.ppo.advantage": "leave_one_out", "align.responses_per_prompt": 4},
            "no critic: the advantages of long responses are noisier",
        )
    if config.policy.dtype == "float32":
        yield {"policy.dtype": "bfloat16"}, "forwards are rounded to three digits"


def _smaller_pieces(config: TrainConfig, machine: Machine, plan: Plan) -> dict[str, object]:
    """Fewer rows at a time in every phase that does not fit: memory goes in proportion to them."""
    assert plan.available is not None
    room, sizes = plan.available * (1 - plan.margin), rows_of_phases(config, machine)
    fewest: dict[str, int] = {}
    for phase in plan.phases:
        kind, _, name = phase.working.name.partition(" ")
        match kind:
            case "generate":
                key, rows = "align.generation_batch", sizes.generate
            case "score":
                key, rows = f"{name.replace('cost ', 'costs.')}.batch_size", sizes.score[name]
            case "annotate":
                key, rows = "align.ppo.micro_batch", sizes.annotate
            case _:
                key, rows = "align.ppo.micro_batch", sizes.update
        share = (room - phase.held) / phase.working.bytes
        if 0 < share < 1 and rows > 1:
            fewest[key] = min(fewest.get(key, rows), power_of_two(rows * share))
    return dict(fewest)


def power_of_two(most: float) -> int:
    """The largest power of two that is no larger, at least 1."""
    return 1 << max(0, int(most).bit_length() - 1)
