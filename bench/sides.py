"""The learners that are compared: each makes the gradient of a loss, or takes a whole optimizer step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.groups import Question, packed
from bench.models import LOGITS_BYTES
from masters_ray.config import Learner, Reward
from masters_ray.kernels.packing import PackedBatch
from masters_ray.method.grpo import LossOutputs, group_losses
from masters_ray.models.hf import PackedStudent, live_scores

if TYPE_CHECKING:
    from masters_ray.learner.collate import MicroBatch

KL_BETA = 0.1
CLIP = 0.2


class Masters:
    """This project's learner on one question: forward and backward without an optimizer."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.student = PackedStudent(model, LOGITS_BYTES)

    def backward(self, batch: PackedBatch, jsd_weight: float = 1.0, teacher: Any = None) -> LossOutputs:
        """All answers of the batch are one group's, however they are packed. teacher: live, in place of the
        batch's stored scores."""
        self.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            scores = None if teacher is None else live_scores(teacher, batch)
        settings = Learner(kl_beta=KL_BETA, clip_epsilon=CLIP, jsd_weight=jsd_weight)
        one_group = replace(batch, group_of=torch.zeros_like(batch.group_of))
        outputs = group_losses(settings, Reward(), one_group, self.student(batch, scores), len(batch.targets))
        outputs.loss.sum().backward()
        return outputs


class Trl:
    """TRL's GRPO on one question: forward and backward without an optimizer."""

    def __init__(self, model: Any) -> None:
        from bench import trl_step

        if trl_step.BETA != KL_BETA:
            raise ValueError(f"the two learners weigh k3 differently: {trl_step.BETA} and {KL_BETA}")
        self.model = model
        self._step = trl_step.TrlStep(model)

    @staticmethod
    def inputs(question: Question, advantages: Tensor) -> dict[str, Any]:
        from bench.trl_step import prepared

        given = question.inputs
        return prepared(
            given["input_ids"][0],
            question.answers,
            given["pixel_values"],
            given["image_grid_thw"],
            given["mm_token_type_ids"][0],
            advantages,
            torch.stack([torch.from_numpy(answer.reference_logprobs) for answer in question.group.answers]),
        )

    def backward(self, inputs: dict[str, Any]) -> None:
        self.model.zero_grad(set_to_none=True)
        self._step.loss(inputs).backward()


class Optimizer:
    """Whole optimizer steps of the learner's engine: DeepSpeed without ZeRO, AdamW, clipping; one worker."""

    def __init__(self, model: Any) -> None:
        from masters_ray.learner.engine import StudentEngine
        from masters_ray.learner.work import OperationCounter

        alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        os.environ.update(alone)
        settings = Learner(zero_stage=0, dtype="float32", kl_beta=KL_BETA, clip_epsilon=CLIP)
        self.model, self._settings = model, settings
        self._operations = OperationCounter(model)
        self._engine = StudentEngine(PackedStudent(model, LOGITS_BYTES), settings, torch.device("cpu"))

    @staticmethod
    def batches(questions: Sequence[Question], budget: int) -> list[MicroBatch]:
        """Micro-batches of at most ``budget`` tokens."""
        from masters_ray.learner.batches import micro_batches
        from masters_ray.learner.collate import MicroBatch

        rounds = micro_batches([len(packed([one]).input_ids) for one in questions], workers=1, budget=budget)
        chosen = [(indices, [questions[index] for index in indices]) for [indices] in rounds]
        return [
            MicroBatch(indices=indices, groups=[one.group for one in some], batch=packed(some))
            for indices, some in chosen
        ]

    def step(self, batches: Sequence[MicroBatch]) -> int:
        """One step with all that the learner's loop does but read rows and report. Returns its necessary operations."""
        from masters_ray.learner.metrics import step_totals

        groups = sum(len(micro.indices) for micro in batches)
        tokens = sum(len(micro.batch.targets) for micro in batches)
        made, operations = [], 0
        for micro in batches:
            student = self._engine(micro.batch)
            operations += self._operations.of(micro.batch)
            outputs = group_losses(self._settings, Reward(), micro.batch, student, tokens / groups)
            self._engine.add_gradient(outputs.loss.sum() / groups)
            made.append((micro, replace(outputs, loss=outputs.loss.detach()), student[0].detach()))
        step_totals(groups, made, self._engine.over_workers, operations, rank=0, workers=1)
        if self._engine.update(self._settings.learning_rate) is None:
            raise RuntimeError("the gradient is not finite")
        return operations
