"""What test ranks do: functions of a world, run in forked processes."""

import pytest
import torch

from constrained_rl.config import CheckpointConfig
from constrained_rl.distributed import connect, joined
from constrained_rl.engines import Engines, Optimization
from constrained_rl.errors import NonFiniteError
from constrained_rl.run import drive
from tests.llm_env.tiny_alignment import align_config, rows_of, tiny_parts

CPU = torch.device("cpu")


def engines_of(kind, world):
    """DDP, or ZeRO of a stage that shards every parameter, with options."""
    if kind == "ddp":
        return Engines(world)
    from llm_env.deepspeed_engine import deepspeed_engines
    from llm_env.deepspeed_setup import ZeRO

    stage, options = kind if isinstance(kind, tuple) else (kind, {})
    return deepspeed_engines(world, ZeRO(stage, **{"keep_whole": 0} | options))


def weights(parts):
    """All that is trained, whole."""
    engines = (parts.policy_learner.engine, parts.critic_learner.engine)
    return [value.clone() for engine in engines for _, value in engine.full_parameters()]


def trained(kinds, settings, iterations=3):
    """Rows of metrics of each kind of engine, one after another in one job."""
    with joined(connect(CPU, 60.0)) as world:
        return [
            rows_of(tiny_parts(align_config(**one), engines_of(kind, world)), iterations)
            for kind, one in zip(kinds, settings, strict=True)
        ]


def driven(kind, folder, iterations, settings):
    """Weights and λ after continuing the run in a folder up to `iterations`."""
    with joined(connect(CPU, 60.0)) as world:
        config = align_config(**settings)
        parts = tiny_parts(config, engines_of(kind, world))
        drive(parts, iterations, folder, CheckpointConfig(every=1), seed=0)
        return weights(parts), parts.multiplier.lam.clone()


class Weight(torch.nn.Module):
    """One weight w = 1; the loss is w, its slope 1 or, where `broken`, no number."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(8))

    def forward(self, broken):
        loss = self.w.sum()
        return loss + (0 * loss).abs().sqrt() if broken else loss  # 0 · ∂√x/∂x at 0: 0 · ∞


def broken_on_the_last(kinds):
    """What each rank says of a gradient that is no number on the last; and its weights then."""
    found = []
    with joined(connect(CPU, 60.0)) as world:
        for kind in kinds:
            engines = engines_of(kind, world)
            engine = engines.make(Weight(), Optimization(0.1, (0.9, 0.999), 1.0), world)
            broken = world.rank == world.size - 1

            def share(forward=engine.forward, broken=broken):
                return forward(broken), {}

            engine.accumulate(share, last=True)
            with pytest.raises(NonFiniteError) as raised:
                engine.step()
            (weight,) = (value.clone() for _, value in engine.full_parameters())
            found.append((str(raised.value), weight.tolist()))
    return found
