"""How is DeepSpeed told what to do, and how is it kept from what it should not?

Absent: the engine itself (deepspeed_engine.py); settings that its users cannot choose.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from constrained_rl.distributed import World
from constrained_rl.engines import Optimization
from constrained_rl.errors import InputError

BUCKET = 50_000_000
"""Elements of sharded weights that are made whole at a time, and of gradients that are reduced."""


@dataclass(frozen=True)
class ZeRO:
    """What is spread over the ranks."""

    stage: int
    offload_optimizer: bool = False  # optimizer states and float32 weights in CPU memory
    keep_whole: int = 100_000  # stage 3: parameters of fewer elements stay whole on every rank


def reduced_together(trained: int) -> int:
    """Elements of the buffer in which gradients of `trained` parameters are reduced.

    DeepSpeed allocates it whole; its default of 5e8 would be 2 GB for the smallest adapter.
    """
    return min(trained, BUCKET)


def reduced_precision(module: nn.Module, zero: ZeRO) -> torch.dtype | None:
    """bfloat16 or float16 where weights are; `InputError` for them at stage 0."""
    kinds = {p.dtype for p in module.parameters()}
    half = next((kind for kind in (torch.bfloat16, torch.float16) if kind in kinds), None)
    if half is not None and zero.stage == 0:
        raise InputError(
            f"DeepSpeed's Adam miscounts its first step in {half} at ZeRO stage 0; set "
            "distributed.zero to 1 or more, distributed.engine='torch', or policy.dtype='float32'"
        )
    return half


def settings_of(
    parameters: Sequence[nn.Parameter],
    optimization: Optimization,
    world: World,
    zero: ZeRO,
    half: torch.dtype | None,
) -> dict[str, Any]:
    """DeepSpeed's configuration for a module that trains `parameters`.

    Batch sizes say nothing: our losses are sums, and we say when a step is due.
    """
    bucket = reduced_together(sum(parameter.numel() for parameter in parameters))
    sharding: dict[str, Any] = {"stage": zero.stage, "reduce_bucket_size": bucket}
    if zero.offload_optimizer:
        sharding["offload_optimizer"] = {"device": "cpu"}
    if zero.stage == 3:
        sharding["stage3_param_persistence_threshold"] = zero.keep_whole
    if zero.stage in (1, 2):
        sharding["overlap_comm"] = False
    settings: dict[str, Any] = {
        "train_batch_size": world.size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if zero.stage == 0 else optimization.max_grad_norm,
        "zero_optimization": sharding,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
    }
    if half is torch.bfloat16:
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
    if half is torch.float16:
        settings["fp16"] = {"enabled": True}
    return settings


def prepare(world: World) -> None:
    """Import DeepSpeed, and let it use the process group that there is."""
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    os.environ.setdefault("LOCAL_RANK", str(world.rank))
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise InputError(
            "distributed.engine='deepspeed' needs DeepSpeed, which cannot be imported "
            f'({error}); install it with: pip install "constrained-rl[deepspeed]"'
        ) from error
    # On CPUs it would compile an all-reduce for inference: minutes, a compiler, and a lock file
    # that outlives a killed build and stops every later run.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # torch 2.13 announces new names for the collectives that DeepSpeed calls, at every call
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|deepspeed)\.")
    if not dist.is_initialized():
        alone = dist.HashStore()  # type: ignore[attr-defined]  # no port is opened
        dist.init_process_group("gloo", store=alone, rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=dist.get_backend(), dist_init_required=False)
