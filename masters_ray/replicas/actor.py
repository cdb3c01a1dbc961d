"""The process of a replica: one model, and the roles that it plays."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.experimental import internal_kv

from masters_ray import weights
from masters_ray.config import Engine
from masters_ray.engines.vllm_engine import Mask
from masters_ray.errors import CheckpointError, ReplicaLostError
from masters_ray.masks import MaskReport
from masters_ray.replicas.devices import show_own_devices
from masters_ray.replicas.judge import JudgeRole
from masters_ray.replicas.model import ReplicaModel
from masters_ray.replicas.processes import Role
from masters_ray.replicas.rollout import StudentRole
from masters_ray.replicas.teacher import TeacherRole
from masters_ray.weight_sync.receiver import WeightReceiver
from masters_ray.weight_sync.student_weights import StudentWeights

_SECONDS_TO_TELL = 1.0

Expected = MaskReport | StudentWeights
"""What a process must hold: a teacher masked like this, or this version of the student."""


@dataclass(frozen=True, kw_only=True)
class ReplicaSpec:
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
    common: int | None = None
    """Tokens that teacher and student both have rows for; default: as many as this model has."""
    never: tuple[int, ...] = ()
    """Tokens that it must not write, beside its own placeholders."""
    sleeps: bool = False
    """Holds GPU memory only from when something is asked of it to when it is sent to sleep."""
    memory: float = 0.9
    """Fraction of a GPU's memory that its engine takes when the engine's settings do not say."""

    @property
    def utilization(self) -> float:
        """Fraction of a GPU's memory that its engine takes."""
        return self.memory if self.engine.gpu_memory_utilization is None else self.engine.gpu_memory_utilization


class ReplicaActor:
    """Loads the model once; answers calls of its roles, several at a time."""

    def __init__(self, spec: ReplicaSpec) -> None:
        show_own_devices()
        self._ending = threading.Event()
        self._model = model = ReplicaModel(
            weights.locate(spec.checkpoint),
            dataclasses.replace(spec.engine, gpu_memory_utilization=spec.utilization),
            tensor_parallel=spec.tensor_parallel,
            top_k=spec.top_k,
            mask=mask_to_begin_with(spec),
            sleeps=spec.sleeps,
            common=spec.common,
            never=spec.never,
        )
        self._receiver = WeightReceiver(model.engine.load, spec.tensor_parallel)
        players: dict[Role, Any] = {
            "teacher": TeacherRole(model, spec.top_k),
            "student": StudentRole(model),
            "reference": StudentRole(model),
            "judge": JudgeRole(model, spec.judge_max_tokens),
            "teacher_judge": JudgeRole(model, spec.judge_max_tokens),
        }
        self._players = {role: players[role] for role in spec.roles}

    def ready(self) -> bool:
        """True once the model is loaded, until the engine breaks."""
        return not self._ending.is_set()

    def busy_seconds(self) -> float:
        """How long the engine has worked since it was started."""
        return self._model.engine.loop.busy_seconds

    def call(self, role: Role, method: str, *arguments: Any, expected: Expected | None = None) -> Any:
        """``method`` of the role's player, with the weights that are ``expected``, if there is anything to expect: a
        process that came later than others, or took the place of another one, has those that it was started with.

        Raises CheckpointError or WeightSyncError when the weights are others. When the engine broke, the process ends
        after it has told so.
        """
        return self._guarded(expected, lambda: getattr(self._players[role], method)(*arguments))

    def hold(self, expected: StudentWeights) -> None:
        """Take in this version of the student; errors as in ``call``."""
        self._guarded(expected, lambda: None)

    def sleep(self) -> None:
        """Give up the GPUs' memory until something is asked of the model; nothing happens unless the spec says so.
        Raises ReplicaLostError when the engine broke."""
        self._guarded(None, self._model.engine.sleep)

    def _guarded(self, expected: Expected | None, action: Callable[[], Any]) -> Any:
        try:
            if isinstance(expected, MaskReport):
                self._mask_as(expected)
            elif expected is not None:
                self._receiver.hold(expected)
            return action()
        except ReplicaLostError:
            self._ending.set()
            threading.Timer(_SECONDS_TO_TELL, _end).start()
            raise

    def _mask_as(self, expected: MaskReport) -> None:
        report = self._model.engine.mask(expected.ratio)
        if report != expected:
            raise CheckpointError(
                f"a replica that came later holds other weights than the first ones: {report} instead of {expected}. "
                "Make the checkpoint the same on every node, and let nobody change it during a run."
            )


def remember_ratio(ratio: float) -> None:
    """A teacher of this job that is started or replaced from now on is masked at this ratio while it loads."""
    if internal_kv._internal_kv_initialized():
        internal_kv._internal_kv_put(_ratio_key(), str(ratio))


def mask_to_begin_with(spec: ReplicaSpec) -> Mask | None:
    """The spec's mask, at the ratio that is remembered."""
    said = internal_kv._internal_kv_get(_ratio_key()) if spec.mask is not None else None
    return spec.mask if said is None or spec.mask is None else dataclasses.replace(spec.mask, ratio=float(said))


def _ratio_key() -> str:
    return f"masters_ray/ratio/{ray.get_runtime_context().get_job_id()}"


def _end() -> None:
    """End this process and the engine's own ones, which would keep their GPUs' memory."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)
