"""Runs the masked teacher inside a worker, for training without stored scores (learner.teacher=live)."""

from typing import Any

import torch

from masters_ray.errors import LearnerError
from masters_ray.kernels.head import LiveScores
from masters_ray.kernels.packing import PackedBatch
from masters_ray.learner.job import StagePlan
from masters_ray.models import hf, weights


class LiveTeacher:
    """Holds one masked teacher at a time: that of the current stage."""

    def __init__(self, device: torch.device, dtype: str) -> None:
        self._device, self._dtype = device, dtype
        self._loaded: tuple[str, float] | None = None
        self._teacher: Any = None

    @torch.no_grad()
    def scores(self, plan: StagePlan, batch: PackedBatch) -> LiveScores:
        """Returns the stage's teacher scores for the batch's answers. Raises LearnerError when the digest of the masked
        weights differs from the one with which the stage's rows were made."""
        if self._teacher is None or self._loaded != (plan.teacher, plan.ratio):
            self._teacher = None  # frees its memory before the next teacher is loaded
            folder = weights.locate(plan.teacher)
            model, report = hf.load_masked(folder, self._dtype, plan.ratio, frozenset(plan.masked))
            if report.digest != plan.teacher_digest:
                raise LearnerError(
                    f"{folder}: masked at {plan.ratio:g} it has the digest {report.digest[:16]}, but stage "
                    f"{plan.stage} was made with {plan.teacher_digest[:16]}. Is the checkpoint the same on every node?"
                )
            hf.read_packed(model, "teacher")
            self._teacher, self._loaded = model.to(self._device), (plan.teacher, plan.ratio)
        return hf.live_scores(self._teacher, batch)
