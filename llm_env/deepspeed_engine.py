"""Training by DeepSpeed's ZeRO: optimizer states (1), gradients (2) and weights (3) over the ranks.

Rajbhandari et al. 2020. Adam is torch's, with the settings of `TorchEngine`, and its state is
exchanged in that engine's form, so a run goes on with another engine, stage or number of ranks.
Tested with DeepSpeed 0.19.8, the first that lets the caller say when a step is due
(`managed_gradient_accumulation`); putting states back touches attributes that are not public, for
its own checkpoints cannot be read by another number of ranks without a conversion.
Absent: pipeline and tensor parallelism, NVMe offload, quantised collectives, loading a model that
does not fit one rank's CPU memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from constrained_rl.distributed import World
from constrained_rl.engines import (
    Engines,
    LossShare,
    Optimization,
    adam,
    check_names,
    load_tensors,
    master_copies,
    module_tensors,
    optimizer_state,
    saved_tensors,
    trainable,
)
from constrained_rl.errors import InputError, require_finite
from llm_env.deepspeed_setup import BUCKET, ZeRO, prepare, reduced_precision, settings_of

MOMENTS = ("exp_avg", "exp_avg_sq")


def deepspeed_engines(world: World, zero: ZeRO) -> Engines:
    """Engines of this kind; `InputError` where DeepSpeed is missing or the settings do not fit."""
    if zero.offload_optimizer and zero.stage == 0:
        raise InputError(
            "distributed.offload_optimizer needs distributed.zero ≥ 1: at stage 0 DeepSpeed does "
            "not hold the optimizer's states"
        )
    prepare(world)
    return Engines(world, partial(DeepSpeedEngine, zero=zero), sharded=zero.stage == 3)


class DeepSpeedEngine:
    """`Engine` on DeepSpeed. `module` is trained in place; at stage 3 its weights leave it."""

    def __init__(
        self, module: nn.Module, optimization: Optimization, world: World, zero: ZeRO
    ) -> None:
        import deepspeed

        self.world = world
        self._module, self._optimization, self._zero = module, optimization, zero
        self._half = reduced_precision(module, zero)
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._adam = adam(self._parameters, optimization)
        if zero.stage == 0:  # its states are plain ones, and so is the clipping
            self._adam.register_step_pre_hook(self._clip)
        self._engine = deepspeed.initialize(
            model=module,
            optimizer=self._adam,
            config=settings_of(self._parameters, optimization, world, zero, self._half),
            dist_init_required=False,
        )[0]
        self.forward: Callable[..., Any] = self._engine

    def accumulate(self, share: Callable[[], LossShare], last: bool) -> dict[str, Tensor]:
        """As `Engine.accumulate`; DeepSpeed talks to the other ranks when it chooses."""
        loss, metrics = share()
        # it averages over ranks, and shares of a loss have to be added
        self._engine.backward(loss * self.world.size)
        return metrics

    def step(self) -> None:
        """As `Engine.step`. In float16 an overflow skips the step and halves the loss scale."""
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        if norm is not None and self._half is not torch.float16 and self._zero.stage > 0:
            require_finite("gradient norm", torch.as_tensor(norm))

    def scale_learning_rate(self, factor: float) -> None:
        """As `Engine.scale_learning_rate`."""
        for group in self._adam.param_groups:
            group["lr"] = self._optimization.learning_rate * factor

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """As `Engine.full_parameters`; of sharded weights a bucket is whole at a time."""
        for bucket in _buckets(trainable(self._module)):
            with self._whole([p for _, p in bucket]):
                yield from ((name, p.detach()) for name, p in bucket)

    def state_dict(self) -> dict[str, object]:
        """As `Engine.state_dict`."""
        found = saved_tensors(self._module)
        whole = {id(p): self._kept(p) for _, p in self._full()}
        tensors = {name: whole.get(id(value), value) for name, value in found.items()}
        state = {"module": tensors, "optimizer": {"state": self._moments()}}
        if self._half is not None:
            state["master"] = dict(enumerate(self._masters()))
        return state if self.world.first else {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore `state_dict`; `InputError` where names or shapes differ."""
        moments = optimizer_state(state, self._parameters)
        if self._zero.stage == 0:
            load_tensors(self._module, state)
            groups = self._adam.state_dict()["param_groups"]
            self._adam.load_state_dict({"state": moments, "param_groups": groups})
            return
        self._load_weights(module_tensors(state), master_copies(state))
        self._load_moments(moments)

    def _clip(self, *_: object) -> None:
        norm = nn.utils.clip_grad_norm_(self._parameters, self._optimization.max_grad_norm)
        require_finite("gradient norm", norm)

    def _whole(self, parameters: list[nn.Parameter], modifier: int | None = None) -> Any:  # noqa: ANN401
        """Within it, sharded parameters are whole; what `modifier` changes reaches all ranks."""
        import deepspeed

        sharded = self._zero.stage == 3
        return deepspeed.zero.GatheredParameters(
            parameters, modifier_rank=modifier, enabled=sharded
        )

    def _full(self) -> Iterator[tuple[str, nn.Parameter]]:
        for bucket in _buckets(trainable(self._module)):
            with self._whole([p for _, p in bucket]):
                yield from bucket

    def _kept(self, value: Tensor) -> Tensor:
        """A copy in CPU memory, on the rank that writes; elsewhere nothing is kept."""
        return value.detach().cpu().clone() if self.world.first else value.new_empty(0)

    def _masters(self) -> Iterator[Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        return (self._kept(safe_get_full_fp32_param(p)) for p in self._parameters)

    def _moments(self) -> dict[int, dict[str, Tensor]]:
        """Adam's state by parameter; none before the first step."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if self._zero.stage == 0:
            state: dict[int, dict[str, Tensor]] = self._adam.state_dict()["state"]
            return state
        steps = [s["step"] for s in self._adam.state.values() if "step" in s]
        if not steps:
            return {}
        return {
            index: {
                "step": steps[0].detach().cpu().clone(),
                **{k: self._kept(safe_get_full_optimizer_state(p, k)) for k in MOMENTS},
            }
            for index, p in enumerate(self._parameters)
        }

    def _load_weights(self, tensors: Mapping[str, Tensor], masters: Mapping[int, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        found = saved_tensors(self._module)
        shapes = {name: getattr(value, "ds_shape", value.shape) for name, value in found.items()}
        check_names(shapes, tensors)
        place = {id(p): index for index, p in enumerate(self._parameters)}
        for name, value in found.items():
            saved = tensors[name].to(value.device)
            if id(value) not in place:
                value.copy_(saved)
                continue
            assert isinstance(value, nn.Parameter)
            with self._whole([value], modifier=0), torch.no_grad():
                value.copy_(saved)
            master = masters.get(place[id(value)], saved).to(value.device).float()
            if self._zero.stage == 3:
                safe_set_local_fp32_param(value, self._local(value, master))
            else:
                safe_set_full_fp32_param(value, master)

    def _load_moments(self, moments: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Create Adam's state, which otherwise appears in the first step, and fill it."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not moments:
            return
        step = next(iter(moments.values()))["step"]
        optimizer = self._engine.optimizer
        sharded = self._zero.stage == 3
        flat = (
            optimizer.fp32_partitioned_groups_flat
            if sharded
            else optimizer.single_partition_of_fp32_groups
        )
        for part in flat:
            self._adam.state[part] = {
                "step": step.to(part.device).clone(),
                **{key: torch.zeros_like(part) for key in MOMENTS},
            }
        if not sharded:
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()
        for index, parameter in enumerate(self._parameters):
            for key in MOMENTS if index in moments else ():
                value = moments[index][key].to(parameter.device)
                if sharded:
                    safe_set_local_optimizer_state(parameter, self._local(parameter, value), key)
                else:
                    safe_set_full_optimizer_state(parameter, value, key)

    def _local(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """This rank's part of a whole tensor, filled up with zeros behind its end."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        flat = value.flatten()
        flat = nn.functional.pad(flat, (0, size * self.world.size - flat.numel()))
        return flat[self.world.rank * size :][:size]


def _buckets(
    parameters: Iterator[tuple[str, nn.Parameter]],
) -> Iterator[list[tuple[str, nn.Parameter]]]:
    bucket: list[tuple[str, nn.Parameter]] = []
    elements = 0
    for name, parameter in parameters:
        size = int(getattr(parameter, "ds_numel", parameter.numel()))
        if bucket and elements + size > BUCKET:
            yield bucket
            bucket, elements = [], 0
        bucket.append((name, parameter))
        elements += size
    if bucket:
        yield bucket
