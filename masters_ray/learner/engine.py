"""Wraps the student in DeepSpeed: forward, gradient accumulation, update, checkpoint, gathered weights.

The number of micro-batches varies from step to step, so the caller accumulates (``managed_gradient_accumulation:
false``). From ZeRO stage 1 on DeepSpeed reduces and clips the gradient, computes its norm, and skips a step whose
gradient is not finite; without ZeRO it does not skip, so this module does all four.
"""

import math
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from masters_ray.config import Learner
from masters_ray.errors import LearnerError

_TAG = "student"
BUCKET = 50_000_000  # numbers exchanged at a time; DeepSpeed's own 500 million take 2 GB of each GPU
LIVE = 1_000_000_000  # most parameters that ZeRO 3 keeps gathered


class StudentEngine:
    def __init__(self, module: nn.Module, settings: Learner, device: torch.device) -> None:
        import deepspeed
        import deepspeed.ops

        # DeepSpeed would compile this extension here, which needs a compiler; only its inference uses it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo" if device.type == "cpu" else "nccl")

        self._engine, *_ = deepspeed.initialize(
            model=module,
            # DeepSpeed's own needs a compiler on the training machine. The rate comes with each step.
            optimizer=partial(torch.optim.AdamW, weight_decay=settings.weight_decay, fused=True),
            model_parameters=[parameter for parameter in module.parameters() if parameter.requires_grad],
            config=deepspeed_config(settings),
        )
        self._zero_stage, self._clipping = settings.zero_stage, settings.gradient_clipping

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def add_gradient(self, loss: Tensor) -> None:
        """Runs backward and adds a micro-batch's gradient to the step's; workers' gradients are averaged. A non-finite
        loss makes the step's gradient non-finite, even where the gradient of that loss is finite."""
        self._engine.backward(loss * (1.0 + loss.detach() * 0.0))  # the factor is 1, or NaN

    def update(self, learning_rate: float) -> float | None:
        """Clips the gradient and runs the optimizer step. Returns the gradient norm over all parameters and workers
        before clipping, or None when it is not finite: then weights and optimizer state are unchanged."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._zero_stage == 0:
            return self._update_without_zero()
        self._engine.step()
        self._clear_stale()
        return float(self._engine.get_global_grad_norm()) if self._engine.was_step_applied() else None

    def _update_without_zero(self) -> float | None:
        """``update`` where every worker holds the whole gradient in ``.grad``."""
        parameters = [one for one in self._engine.module.parameters() if one.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:  # Adam would skip it; with a zero gradient its momentum still acts
                parameter.grad = torch.zeros_like(parameter)
        if self._engine.dp_world_size > 1:
            self._engine.buffered_allreduce_fallback()
        norm = float(nn.utils.clip_grad_norm_(parameters, self._clipping))
        if math.isfinite(norm):
            self._engine.optimizer.step()
        self._engine.zero_grad()
        return norm if math.isfinite(norm) else None

    def _clear_stale(self) -> None:
        """Zeroes buffers that DeepSpeed would otherwise add to when some micro-batch does not use a parameter."""
        zero = self._engine.optimizer
        held: list[Tensor] = []
        if self._zero_stage == 3:
            zero.grad_partitions_flat_buffer.zero_()
            held = zero.fp32_partitioned_groups_flat if zero.offload_optimizer else []
        elif getattr(zero, "cpu_offload", False):
            for sums in zero.accumulated_grads_in_cpu.values():
                sums.zero_()
            held = zero.single_partition_of_fp32_groups
        for parameter in held:
            if parameter.grad is not None:
                parameter.grad.zero_()

    def over_workers(self, values: Tensor, operation: Any = torch.distributed.ReduceOp.SUM) -> Tensor:
        """Returns ``values`` reduced over all ranks by ``operation``, on the CPU."""
        values = values.to(self._engine.device)
        torch.distributed.all_reduce(values, operation)
        return values.cpu()

    def whole_weights(self, keep: bool) -> dict[str, Tensor]:
        """Gathers parameters one by one. Returns the transformers model's parameter names, without the prefix of
        PackedStudent → whole tensors on the CPU; empty on ranks where ``keep`` is false. All ranks must call it."""
        import deepspeed

        state: dict[str, Tensor] = {}
        for name, parameter in self._engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self._zero_stage == 3):
                if keep:
                    state[name.removeprefix("model.")] = parameter.detach().cpu().clone()
        return state

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Writes this rank's part of a checkpoint: optimizer, trained weights, ``state`` (tensors and plain values)."""
        self._engine.save_checkpoint(
            str(folder), tag=_TAG, client_state=state, save_latest=False, exclude_frozen_parameters=True
        )

    def load(self, folder: Path) -> dict[str, Any]:
        """Loads what ``save`` wrote and returns its ``state``. Frozen weights stay as the student was first loaded.
        Raises LearnerError for a file that would run code."""
        from deepspeed.runtime.fp16.loss_scaler import LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        # A pickle names functions, and DeepSpeed has torch.load call whatever is named. From here on torch.load accepts
        # only tensors, plain values and the classes that DeepSpeed writes, whatever weights_only the caller passes.
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])
        try:
            _, state = self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
        except pickle.UnpicklingError as error:
            raise LearnerError(
                f"{folder} is no checkpoint of the learner's; nothing of it was run ({str(error).splitlines()[0]}). "
                f"Delete {folder.parent} to train from the start."
            ) from error
        return dict(state)


def deepspeed_config(settings: Learner) -> dict[str, Any]:
    on_cpu = {"device": "cpu", "pin_memory": settings.gpus > 0}
    zero: dict[str, Any] = {"stage": settings.zero_stage, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    zero |= {"stage3_max_live_parameters": LIVE, "stage3_max_reuse_distance": LIVE} if settings.zero_stage == 3 else {}
    if settings.offload != "nothing":
        zero["offload_optimizer"] = on_cpu
    if settings.offload == "everything":
        zero["offload_param"] = on_cpu
    return {
        "managed_gradient_accumulation": False,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.gradient_clipping if settings.zero_stage else 0.0,  # StudentEngine clips
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        # Gradients of micro-batches and workers are summed in float32: bfloat16 loses about a percent.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }
