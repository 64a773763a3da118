"""Does a training config fit? Bytes of every model and phase on one rank, before anything loads.

    phase = weights + optimizer states + gradients + rollout + what the phase needs for a moment
    peak  = the largest phase

What is held is arithmetic on parameter counts; what a phase needs is counted by running it on fake
tensors (phases.py). ZeRO's shares are those of Rajbhandari et al. 2020, §3. Absent: the allocator's
fragments and the CUDA context, for which `margin` keeps a share of the device free; that what no
text reaches (an image encoder) is frozen; demonstrations longer than prompt and response;
checkpoints, which are written from CPU memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from constrained_rl.devices import choose_device
from llm_env.deepspeed_setup import ZeRO, reduced_together
from llm_env.plan.phases import Working
from llm_env.plan.shapes import Shapes, score_sources
from llm_env.plan.tracer import Sizes, Tracer
from llm_env.training.config import TrainConfig

LIVE = 10**9
"""most parameters that DeepSpeed keeps gathered at a time (its stage3_max_live_parameters)"""
ADAM = 2 * 4
"""bytes of Adam's two moments per trained parameter, float32"""
MASTER = 4
"""bytes of the float32 copy of a trained parameter that is kept in less"""


@dataclass(frozen=True)
class Held:
    """What a model holds on one rank between phases, in bytes."""

    name: str
    parameters: int
    trained: int  # parameters
    weights: int
    gradients: int = 0
    optimizer: int = 0
    host: int = 0  # in CPU memory, where the device is another
    elsewhere: int = 0  # weights that other ranks hold and that are gathered for a forward
    accumulated: int = 0  # whole gradients, of which a rank keeps `gradients`
    resting: int = 0  # of the gradients' memory, what is not given back after a step

    @property
    def bytes(self) -> int:
        """On the device."""
        return self.weights + self.resting + self.optimizer


@dataclass(frozen=True)
class Phase:
    """A phase of an iteration."""

    held: int  # models, optimizers, gradients and rollout
    working: Working

    @property
    def bytes(self) -> int:
        """At its peak."""
        return self.held + self.working.bytes


@dataclass(frozen=True)
class Plan:
    """What one of `ranks` ranks needs, and what there is."""

    models: tuple[Held, ...]
    rollout: int
    phases: tuple[Phase, ...]
    ranks: int
    device: str
    available: int | None  # bytes; None where no such device is here
    margin: float  # share of it to be kept free

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def fits(self) -> bool | None:
        """None where the device is not here and its memory was not given."""
        if self.available is None:
            return None
        return self.peak.bytes <= self.available * (1 - self.margin)


@dataclass(frozen=True)
class Machine:
    """What a plan is held against."""

    ranks: int = 1
    prompt: int = 512  # tokens of the longest prompt
    available: int | None = None  # bytes per rank; None: what this machine has
    margin: float = 0.1


def make_plan(config: TrainConfig, machine: Machine, tracer: Tracer | None = None) -> Plan:
    """Count what `config` needs on `machine`; only config.json files are read.

    A `tracer` keeps what it has counted: give the same to the plans of similar configs.
    """
    tracer = tracer or Tracer()
    device = planned_device(config)
    models = tuple(_held_models(tracer.shapes(config), config, machine.ranks, device))
    sizes = rows_of_phases(config, machine)
    rollout = _rollout_bytes(config, sizes)
    counted = tracer.phases(config, sizes)
    phases = tuple(_phase(working, models, rollout, sizes) for working in counted)
    available = machine.available or device_memory(device, machine.ranks)
    return Plan(models, rollout, phases, machine.ranks, device, available, machine.margin)


def planned_device(config: TrainConfig) -> str:
    """Where training would run; a GPU may be planned for where there is none."""
    named = config.device not in ("auto", "cpu")
    return config.device if named else str(choose_device(config.device))


def rows_of_phases(config: TrainConfig, machine: Machine) -> Sizes:
    """Rows and widths of each phase on one rank, as training divides them."""
    align, ppo = config.align, config.align.ppo
    own = math.ceil(align.prompts / machine.ranks)
    minibatch = math.ceil(math.ceil(align.prompts / ppo.minibatches) / machine.ranks)
    update = min(ppo.micro_batch or minibatch, minibatch)
    return Sizes(
        prompt=machine.prompt,
        response=align.max_new_tokens,
        generate=min(align.generation_batch or own, own),
        score={name: min(source.batch_size, own) for name, source in score_sources(config).items()},
        annotate=min(ppo.micro_batch or own, own),
        update=update,
        accumulated=update < minibatch or align.ptx_coefficient > 0,
    )


def _held_models(shapes: Shapes, config: TrainConfig, ranks: int, device: str) -> Iterator[Held]:
    policy = _trained("policy", shapes.policy, config, ranks)
    yield policy
    if shapes.reference:
        weights = _bytes(shapes.policy.parameters())
        yield Held("reference", policy.parameters, 0, weights)
    if shapes.critic is not None:
        critic = _trained("critic", shapes.critic, config, ranks)
        if shapes.critic_shares:
            own = [p for p in shapes.critic.parameters() if p.requires_grad]
            critic = replace(critic, parameters=_count(own), weights=_bytes(own))
        yield critic
    for name, model in shapes.scores.items():
        count, weights = _count(model.parameters()), _bytes(model.parameters())
        away = score_sources(config)[name].offload and device != "cpu"
        yield Held(name, count, 0, 0 if away else weights, host=weights if away else 0)
    if config.distributed.engine == "deepspeed" and config.distributed.zero == 3:
        yield Held("replica", policy.parameters, 0, _bytes(shapes.policy.parameters()))


def _trained(name: str, module: nn.Module, config: TrainConfig, ranks: int) -> Held:
    """Weights, gradients and optimizer states of a module that learns, on one rank."""
    parameters, spread = list(module.parameters()), config.distributed
    own = [p for p in parameters if p.requires_grad]
    count, reduced = _count(own), any(torch.finfo(p.dtype).bits < 32 for p in own)
    weights = _bytes(parameters)
    if spread.engine == "torch":
        # where there are several ranks, DDP keeps its buckets beside the gradients
        buckets = _bytes(own) if ranks > 1 else 0
        return Held(
            name, _count(parameters), count, weights,
            gradients=4 * count + buckets,
            optimizer=(ADAM + MASTER * reduced) * count,
            accumulated=_bytes(own),
            resting=buckets,
        )  # fmt: skip
    # DeepSpeed keeps float32 copies from stage 1 on, whatever the weights are kept in
    master = MASTER * count if reduced or spread.zero > 0 else 0
    optimizer = (ADAM * count + master) // (ranks if spread.zero >= 1 else 1)
    gpu = planned_device(config) != "cpu"
    away = spread.offload_optimizer and spread.zero >= 1 and gpu
    bucket = reduced_together(count) * own[0].element_size() if spread.zero >= 1 else 0
    # stage 1 keeps the reduced gradients beside the others until the step
    copies = 2 if spread.zero == 1 else 1
    gradients = copies * _bytes(own) // (ranks if spread.zero >= 2 else 1) + bucket
    # at stage 3 small parameters are whole on every rank, and their shares stay
    small = _bytes([p for p in parameters if p.numel() < ZeRO.keep_whole])
    gathered = min(_count(parameters), LIVE) * parameters[0].element_size()
    return Held(
        name, _count(parameters), count,
        weights=weights // ranks + small if spread.zero == 3 else weights,
        elsewhere=gathered * (ranks - 1) // ranks if spread.zero == 3 else 0,
        accumulated=_bytes(own),
        gradients=gradients,
        resting=gradients if spread.zero == 3 else bucket,  # at stage 3 they stay allocated
        optimizer=0 if away else optimizer,
        host=optimizer if away else 0,
    )  # fmt: skip


def _phase(counted: Working, models: tuple[Held, ...], rollout: int, sizes: Sizes) -> Phase:
    """A traced phase on one rank, beside what the models hold."""
    held, own = rollout + sum(model.bytes for model in models), _model_of(counted, models)
    working = counted.bytes
    if counted.name.startswith("score"):
        held += own.host  # one that is kept in CPU memory visits the device while it scores
    else:
        working += own.elsewhere
    if counted.name.startswith("update"):  # its gradients are part of what was traced
        fresh = own.gradients - own.resting
        if sizes.accumulated:
            working += fresh - own.accumulated
        working = max(working, fresh)
    return Phase(held, replace(counted, bytes=working))


def _model_of(counted: Working, models: tuple[Held, ...]) -> Held:
    """The model that runs in a phase; the reference without weights of its own is the policy."""
    name = {"generate": "policy"}.get(counted.name, counted.name.split(maxsplit=1)[-1])
    return next((model for model in models if model.name == name), models[0])


def _rollout_bytes(config: TrainConfig, sizes: Sizes) -> int:
    """Rows, their numbers per token and stream, and a minibatch's copy; every rank holds all."""
    align = config.align
    streams = 1 + len(config.costs)
    width = sizes.prompt + sizes.response
    rows = 9 * width + sizes.response * (8 + 3 + 4 * 7 + 4 * 5 * streams)
    return int(align.prompts * rows * (1 + 1 / align.ppo.minibatches))


def _count(parameters: Iterator[nn.Parameter] | list[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _bytes(parameters: Iterator[nn.Parameter] | list[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def device_memory(device: str, ranks: int) -> int | None:
    """Bytes for one rank: a GPU's own memory; of the CPU's free memory, an equal share."""
    if device.startswith("cuda"):
        number = int(device.partition(":")[2] or 0)
        there = torch.cuda.is_available() and number < torch.cuda.device_count()
        return torch.cuda.get_device_properties(number).total_memory if there else None
    return free_memory() // ranks


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its control group."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # SC_AVPHYS_PAGES leaves out what the page cache would give back
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free
