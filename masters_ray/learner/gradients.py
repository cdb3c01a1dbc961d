"""A step's gradient under DeepSpeed: summed over any number of micro-batches, looked at, applied or dropped.

DeepSpeed settles beforehand how many micro-batches make a step, and applies a gradient in the same call that completes
it. Here their number varies from step to step, and a gradient that is not finite must leave no trace; so the step is
taken apart along DeepSpeed's own seams, which differ by optimizer. The seams are those of the pinned version.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


class Gradients:
    """The gradient of a DeepSpeed engine whose ZeRO stage is 0: every worker holds all of it, in ``.grad``."""

    def __init__(self, engine: Any, clipping: float) -> None:
        """clipping: largest norm of a gradient that is applied."""
        self._engine = engine
        self._optimizer: Any = engine.optimizer
        self._clipping = clipping
        self._last_norm = 0.0

    def add(self, loss: torch.Tensor) -> None:
        """Backward: adds a micro-batch's gradient to the step's. Workers count as their mean."""
        self._engine.set_gradient_accumulation_boundary(False)
        self._engine.backward(loss)

    def complete(self) -> float:
        """Bring the workers' gradients together. Returns the norm over all parameters, before clipping; nan, inf or
        −1 if it is not finite."""
        self._engine.set_gradient_accumulation_boundary(True)
        self._reduce()
        self._last_norm = self._norm()
        return self._last_norm

    def apply(self) -> None:
        """The optimizer's step on the completed gradient, clipped."""
        self._clip()
        self._engine.step()
        self._clear_stale()

    def drop(self) -> None:
        """Forget the completed gradient: weights and optimizer are as if the step had never been."""
        self._forget()
        self._clear_stale()

    def _reduce(self) -> None:
        if self._engine.dp_world_size > 1:
            self._engine.allreduce_gradients()
            return
        for parameter in self._engine.module.parameters():
            if parameter.requires_grad and parameter.grad is None:
                # As with several workers: Adam would leave out what this step did not use instead of letting it coast.
                parameter.grad = torch.zeros_like(parameter)

    def _clip(self) -> None:
        if self._last_norm > self._clipping:
            clip_grads_with_norm_(
                self._engine.module.parameters(), self._clipping, torch.tensor(self._last_norm), foreach=True
            )

    def _norm(self) -> float:
        gradients = [parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None]
        return float(get_total_norm(gradients)) if gradients else 0.0

    def _forget(self) -> None:
        self._engine.zero_grad()

    def _clear_stale(self) -> None:
        """Set buffers to zero that DeepSpeed would add to where a parameter is not used by every micro-batch."""


class _Zero(Gradients):
    """From ZeRO stage 1 on, where DeepSpeed clips."""

    def _reduce(self) -> None:
        self._engine.allreduce_gradients()

    def _clip(self) -> None:
        """Done in the optimizer's step."""


class _Bfloat16(_Zero):
    """bfloat16 weights with float32 sums, ZeRO stage 1."""

    def _norm(self) -> float:
        from deepspeed.runtime.utils import get_global_norm_of_tensors

        gradients, _ = self._optimizer.get_grads_for_norm()
        return float(get_global_norm_of_tensors(gradients, mpu=None, norm_type=2))

    def _forget(self) -> None:
        self._optimizer.clear_hp_grads()
        self._optimizer.clear_lp_grads(set_to_none=True)


class _Partitioned(_Zero):
    """ZeRO stages 1 and 2."""

    def _reduce(self) -> None:
        if self._engine.zero_optimization_partition_gradients():
            self._optimizer.finalize_gradient_accumulation_boundary()
        else:
            super()._reduce()

    def _norm(self) -> float:
        return float(self._optimizer.scaled_global_norm())

    def _forget(self) -> None:
        zero = self._optimizer
        zero.micro_step_id = -1
        zero._wait_for_offload_copies()
        zero.zero_grad(set_to_none=True)
        zero._release_preflattened_grad_buffers()
        for held in (zero.averaged_gradients, zero.all_grad_tensors):
            held.update(dict.fromkeys(held))
        if zero.cpu_offload:
            zero._offload_accumulated_param_ids = set()
            zero.reset_cpu_buffers()

    def _clear_stale(self) -> None:
        if self._optimizer.cpu_offload:
            for sums in self._optimizer.accumulated_grads_in_cpu.values():
                sums.zero_()
            _zero_gradients(self._optimizer.single_partition_of_fp32_groups)


class _FullyPartitioned(_Partitioned):
    """ZeRO stage 3."""

    def _norm(self) -> float:
        from deepspeed.runtime.utils import combine_grad_norm_groups

        return float(combine_grad_norm_groups(self._optimizer._get_norm_groups()))

    def _forget(self) -> None:
        self._optimizer._pre_step()
        self._optimizer._overflow_clean_up(1.0)

    def _clear_stale(self) -> None:
        self._optimizer.grad_partitions_flat_buffer.zero_()
        if self._optimizer.offload_optimizer:
            _zero_gradients(self._optimizer.fp32_partitioned_groups_flat)


def of(engine: Any, clipping: float) -> Gradients:
    """The gradient of this engine, whose own configuration clips from ZeRO stage 1 on."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    kinds = {
        BF16_Optimizer: _Bfloat16,
        DeepSpeedZeroOptimizer: _Partitioned,
        DeepSpeedZeroOptimizer_Stage3: _FullyPartitioned,
    }
    return kinds.get(type(engine.optimizer), Gradients)(engine, clipping)


def _zero_gradients(parameters: list[torch.Tensor]) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.zero_()
