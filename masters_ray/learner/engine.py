"""DeepSpeed around the student: backward, update, save, resume, gather. The only file that needs DeepSpeed."""

from __future__ import annotations

from typing import Any

import ray.train
import torch
import torch.distributed
from torch import Tensor

from masters_ray.config import Learner
from masters_ray.engines.hf import AnswerLogprobs
from masters_ray.packing import PackedBatch

_TAG = "student"
_PREFIX = "model."
"""What AnswerLogprobs puts before the transformers model's parameter names."""


class StudentEngine:
    """The student under DeepSpeed on one rank of a worker group."""

    def __init__(self, module: AnswerLogprobs, settings: Learner, micro_batches: int, device: torch.device) -> None:
        import deepspeed
        import deepspeed.ops

        # An extension that DeepSpeed would compile on the spot; only its inference uses it, and it needs a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo" if device.type == "cpu" else "nccl")
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._engine, *_ = deepspeed.initialize(
            model=module, model_parameters=trainable, config=deepspeed_config(settings, micro_batches)
        )
        self._zero_stage = settings.zero_stage
        self._own_norm = torch.tensor(0.0)
        self.model: Any = module.model

    def answer_logprobs(self, batch: PackedBatch) -> Tensor:
        """float32 [answer tokens, vocabulary]."""
        return self._engine(batch)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradient. Over a step the losses count as their sum over micro-batches, and as their
        mean over workers."""
        self._engine.backward(loss * self._engine.gradient_accumulation_steps())
        if self._engine.is_gradient_accumulation_boundary():
            self._own_norm = self._whole_gradient_norm()
        self._engine.step()

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient, before clipping."""
        norm = self._engine.get_global_grad_norm()
        return float(self._own_norm if norm is None else norm)

    def _whole_gradient_norm(self) -> Tensor:
        """The norm where every rank holds the whole gradient; ZeRO's own optimizers tell theirs themselves."""
        gradients = [parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(gradients) if gradients else torch.tensor(0.0)

    def set_learning_rate(self, rate: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate

    def sum_over_workers(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all ranks."""
        values = values.to(self._engine.device)
        torch.distributed.all_reduce(values)
        return values.cpu()

    def save(self, folder: str, step: int) -> None:
        """This rank's part of a checkpoint after ``step`` optimizer steps."""
        self._engine.save_checkpoint(folder, tag=_TAG, client_state={"step": step}, save_latest=False)

    def resume(self) -> int:
        """Load the worker group's last checkpoint. Returns the optimizer steps it has seen; 0 without a checkpoint."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as folder:
            _, state = self._engine.load_checkpoint(folder, tag=_TAG)
        return int(state["step"])

    def gathered_state(self) -> dict[str, Tensor]:
        """Parameter names of the transformers model → whole tensors on the CPU. Every rank must call it together."""
        import deepspeed

        state: dict[str, Tensor] = {}
        for name, parameter in self._engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self._zero_stage == 3):
                state[name.removeprefix(_PREFIX)] = parameter.detach().cpu().clone()
        return state


def deepspeed_config(settings: Learner, micro_batches: int) -> dict[str, Any]:
    """DeepSpeed's own configuration for these settings."""
    return {
        "train_micro_batch_size_per_gpu": settings.groups_per_micro_batch,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": settings.gradient_clipping,
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        "zero_optimization": {"stage": settings.zero_stage},
        "zero_allow_untested_optimizer": True,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": settings.learning_rate,
                "weight_decay": settings.weight_decay,
                # PyTorch's own AdamW: DeepSpeed's needs a compiler on the machine that trains.
                "torch_adam": True,
            },
        },
    }
