"""What test ranks do: functions of a world, run in forked processes."""

import gc
import time

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from constrained_rl.checkpoint import load_state, save_state
from constrained_rl.config import CheckpointConfig
from constrained_rl.distributed import connect, joined
from constrained_rl.engines import Engines, Optimization
from constrained_rl.errors import NonFiniteError
from constrained_rl.run import drive
from llm_env.plan.ledger import Ledger
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
        drive(parts, iterations, folder, CheckpointConfig(every=1))
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


def descended_in_bfloat16(kinds, folder):
    """w after 100 steps of 1e-4 down the slope 1, the last 50 by an engine that was restored."""
    found = []
    with joined(connect(CPU, 60.0)) as world:
        for number, kind in enumerate(kinds):
            state = None
            for _ in range(2):
                engines = engines_of(kind, world)
                settings = Optimization(1e-4, (0.9, 0.999), 1e9)
                engine = engines.make(Weight().bfloat16(), settings, world)
                if state is not None:
                    engine.load_state_dict(state)
                for _ in range(50):
                    engine.accumulate(lambda e=engine: (e.forward(False) / world.size, {}), True)
                    engine.step()
                saved = engine.state_dict()
                if world.first:
                    save_state(folder / f"{number}", saved)
                state = world.same(load_state(folder / f"{number}") if world.first else {})
            ((_, weight),) = engine.full_parameters()
            found.append((weight.tolist(), state["master"][0].tolist()))
    return found


def llama(dtype):
    """357 k parameters, most of them in two matrices that ZeRO-3 shards by default."""
    config = LlamaConfig(
        vocab_size=2000, hidden_size=64, intermediate_size=176, num_hidden_layers=2,
        num_attention_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


def at_rest(ledger):
    """Bytes alive once they have been the same for half a second.

    A communication thread lets go of its last bucket only when it is scheduled again.
    """
    gc.collect()
    alike, live = 0, ledger.live
    while alike < 10:
        time.sleep(0.05)
        alike, live = (alike + 1, live) if ledger.live == live else (0, ledger.live)
    return live


def held(kinds, dtype):
    """Bytes of live tensors after a step of each kind of engine: at rest, and with gradients."""
    found, ids = [], torch.ones(1, 3, dtype=torch.long)
    gc.freeze()  # what was there before the fork: collecting is quick without it
    with joined(connect(CPU, 60.0)) as world:
        for kind in kinds:
            with Ledger() as ledger:
                model = llama(dtype)
                engine = engines_of(kind, world).make(
                    model, Optimization(0.1, (0.9, 0.999), 1.0), world
                )

                def share(forward=engine.forward):
                    return forward(input_ids=ids).logits.float().logsumexp(-1).sum(), {}

                for _ in range(2):
                    engine.accumulate(share, last=True)
                    loaded = at_rest(ledger)
                    engine.step()
                found.append((at_rest(ledger), loaded))
            del model, engine, share
            gc.collect()
    return found
