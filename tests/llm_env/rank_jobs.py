"""What test ranks do: functions of a world, run in forked processes."""

import torch
from tiny_alignment import align_config, rows_of, tiny_parts

from constrained_rl.config import CheckpointConfig
from constrained_rl.distributed import connect, joined
from constrained_rl.engines import Engines
from constrained_rl.run import drive

CPU = torch.device("cpu")


def engines_of(kind, world):
    """DDP, or ZeRO of a stage that shards every parameter, with options."""
    if kind == "ddp":
        return Engines(world)
    from llm_env.deepspeed_engine import ZeRO, deepspeed_engines

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
