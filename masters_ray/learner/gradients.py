"""A step's gradient under DeepSpeed: summed over any number of micro-batches, then applied, or left without a trace.

How many micro-batches make a step varies from step to step, so DeepSpeed is told to leave that to the caller
(``managed_gradient_accumulation: false``). From ZeRO stage 1 on it reduces, measures, clips, and skips a gradient that
is not finite; without ZeRO it skips none, so that is done here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


class Gradients:
    """The gradient of a DeepSpeed engine, step after step."""

    def __init__(self, engine: Any, clipping: float) -> None:
        """clipping: largest norm of a gradient that is applied; the engine's configuration clips from stage 1 on."""
        self._engine, self._clipping = engine, clipping
        self._zero_stage = engine.zero_optimization_stage()

    def add(self, loss: torch.Tensor) -> None:
        """Backward: adds a micro-batch's gradient to the step's. Workers count as their mean. A loss that is not finite
        makes the whole gradient so, also where its own gradient is finite."""
        poison = loss.detach() * 0.0  # 0, or NaN
        self._engine.backward(loss * (1.0 + poison))

    def apply(self) -> float | None:
        """The optimizer's step on the gradient, clipped. Returns the norm over all parameters and workers, before
        clipping; None: it is not finite, and weights and optimizer are as if the step had never been."""
        if self._zero_stage == 0:
            return self._apply_plain()
        self._engine.step()
        self._clear_stale()
        return float(self._engine.get_global_grad_norm()) if self._engine.was_step_applied() else None

    def _apply_plain(self) -> float | None:
        """Without ZeRO: every worker holds the whole gradient in ``.grad``."""
        parameters = [one for one in self._engine.module.parameters() if one.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                # Adam would leave out what this step did not use instead of letting it coast.
                parameter.grad = torch.zeros_like(parameter)
        if self._engine.dp_world_size > 1:
            self._engine.buffered_allreduce_fallback()
        total = get_total_norm([one.grad for one in parameters if one.grad is not None])
        norm = float(total)
        if taken := bool(torch.isfinite(total)):
            if norm > self._clipping:
                clip_grads_with_norm_(parameters, self._clipping, total, foreach=True)
            self._engine.optimizer.step()
        self._engine.zero_grad()
        return norm if taken else None

    def _clear_stale(self) -> None:
        """Set buffers to zero that DeepSpeed would add to where a parameter is not used by every micro-batch."""
        zero = self._engine.optimizer
        if self._zero_stage == 3:
            zero.grad_partitions_flat_buffer.zero_()
            if zero.offload_optimizer:
                _zero_gradients(zero.fp32_partitioned_groups_flat)
        elif getattr(zero, "cpu_offload", False):
            for sums in zero.accumulated_grads_in_cpu.values():
                sums.zero_()
            _zero_gradients(zero.single_partition_of_fp32_groups)


def _zero_gradients(parameters: list[torch.Tensor]) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.zero_()
