"""The process of a replica: one model, and the roles that it plays."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any, Literal

from masters_ray import weights
from masters_ray.actors.judge import Judge
from masters_ray.actors.model import Model
from masters_ray.actors.rollout import Student
from masters_ray.actors.teacher import Teacher
from masters_ray.config import Engine
from masters_ray.engines.vllm_engine import Mask
from masters_ray.errors import CheckpointError, ReplicaLostError
from masters_ray.masks import MaskReport

_SECONDS_TO_TELL = 1.0

Role = Literal["teacher", "student", "reference", "judge", "teacher_judge"]
"""A judge is the student as it was at the start, and so is the reference policy, which scores answers when another
student writes them; a teacher_judge is the teacher without a mask."""


@dataclass(frozen=True, kw_only=True)
class HostSpec:
    """What a process loads and plays. Roles share it when their weights are the same."""

    checkpoint: str
    roles: tuple[Role, ...]
    engine: Engine
    tensor_parallel: int = 1
    top_k: int = 1
    """Teacher: log-probabilities kept per token."""
    mask: Mask | None = None
    """Teacher: what is masked, and the ratio to start with."""
    judge_max_tokens: int = 256


class Host:
    """Loads the model once; answers calls of its roles, several at a time."""

    def __init__(self, spec: HostSpec) -> None:
        self._ending = threading.Event()
        self._model = model = Model(
            weights.locate(spec.checkpoint),
            spec.engine,
            tensor_parallel=spec.tensor_parallel,
            top_k=spec.top_k,
            mask=spec.mask,
        )
        players: dict[Role, Any] = {
            "teacher": Teacher(model, spec.top_k),
            "student": Student(model),
            "reference": Student(model),
            "judge": Judge(model, spec.judge_max_tokens),
            "teacher_judge": Judge(model, spec.judge_max_tokens),
        }
        self._players = {role: players[role] for role in spec.roles}

    def ready(self) -> bool:
        """True once the model is loaded, until the engine breaks."""
        return not self._ending.is_set()

    def busy_seconds(self) -> float:
        """How long the engine has worked since it was started."""
        return self._model.engine.loop.busy_seconds

    def call(self, role: Role, method: str, *arguments: Any, expected: MaskReport | None = None) -> Any:
        """``method`` of the role's player, with the weights masked as ``expected``, if there is anything to expect: a
        process that came later than others, or took the place of another one, has the ratio that it was started with.

        Raises CheckpointError when the masked weights are others. When the engine broke, the process ends after it has
        told so.
        """
        try:
            if expected is not None:
                self._mask_as(expected)
            return getattr(self._players[role], method)(*arguments)
        except ReplicaLostError:
            self._ending.set()
            threading.Timer(_SECONDS_TO_TELL, os._exit, (1,)).start()
            raise

    def _mask_as(self, expected: MaskReport) -> None:
        report = self._model.engine.mask(expected.ratio)
        if report != expected:
            raise CheckpointError(
                f"a replica that came later holds other weights than the first ones: {report} instead of {expected}. "
                "Make the checkpoint the same on every node, and let nobody change it during a run."
            )
