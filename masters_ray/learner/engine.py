"""DeepSpeed around the student: terms, gradient, update, save, resume, gather."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from masters_ray.config import Learner
from masters_ray.engines.hf import PackedStudent
from masters_ray.learner import saved
from masters_ray.learner.gradients import Gradients
from masters_ray.live import LiveScores
from masters_ray.packing import PackedBatch

_PREFIX = "model."
"""What PackedStudent puts before the transformers model's parameter names."""


class StudentEngine:
    """The student under DeepSpeed on one rank of a worker group."""

    def __init__(self, module: PackedStudent, settings: Learner, device: torch.device) -> None:
        import deepspeed
        import deepspeed.ops

        # An extension that DeepSpeed would compile on the spot; only its inference uses it, and it needs a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo" if device.type == "cpu" else "nccl")

        def adamw(parameters: Any) -> torch.optim.Optimizer:
            # PyTorch's own: DeepSpeed's needs a compiler on the machine that trains.
            return torch.optim.AdamW(
                parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
            )

        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=adamw, model_parameters=trainable, config=deepspeed_config(settings)
        )
        self._zero_stage = settings.zero_stage
        self.gradients = Gradients(self._engine, settings.gradient_clipping)
        self.model: Any = module.model

    def terms(self, batch: PackedBatch, teacher: LiveScores | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What ``PackedStudent`` gives: log-probability, divergence and the divergence's error of each answer token."""
        return self._engine(batch, teacher)

    def set_learning_rate(self, rate: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate

    def over_workers(self, values: Tensor, operation: Any = torch.distributed.ReduceOp.SUM) -> Tensor:
        """The sum of ``values`` over all ranks, or what ``operation`` makes of them."""
        values = values.to(self._engine.device)
        torch.distributed.all_reduce(values, operation)
        return values.cpu()

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """This rank's part of a checkpoint: optimizer, trained weights, and ``state``, in ``folder``."""
        saved.save(self._engine, folder, state)

    def load(self, folder: Path) -> dict[str, Any]:
        """Everything that ``save`` wrote. Returns its ``state``. Frozen weights stay those of the checkpoint that the
        student was loaded from. Raises LearnerError when reading it would run code."""
        return saved.load(self._engine, folder)

    def trained_state(self, keep: bool) -> dict[str, Tensor]:
        """Parameter names of the transformers model → whole tensors on the CPU, for every parameter, gathered one after
        the other; nothing on ranks that do not ``keep`` them. Every rank must call it together."""
        import deepspeed

        state: dict[str, Tensor] = {}
        for name, parameter in self._engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self._zero_stage == 3):
                if keep:
                    state[name.removeprefix(_PREFIX)] = parameter.detach().cpu().clone()
        return state


def deepspeed_config(settings: Learner) -> dict[str, Any]:
    """DeepSpeed's own configuration for these settings."""
    zero: dict[str, Any] = {"stage": settings.zero_stage}
    on_cpu = {"device": "cpu", "pin_memory": settings.gpus > 0}
    if settings.offload != "nothing":
        zero["offload_optimizer"] = on_cpu
    if settings.offload == "everything":
        zero["offload_param"] = on_cpu
    config: dict[str, Any] = {
        "managed_gradient_accumulation": False,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Without ZeRO, gradients.py clips.
        "gradient_clipping": settings.gradient_clipping if settings.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if settings.dtype == "bfloat16":
        # Gradients are summed in float32, over micro-batches and over workers: in bfloat16 they lose a percent.
        config |= {
            "bf16": {"enabled": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
        }
    return config
