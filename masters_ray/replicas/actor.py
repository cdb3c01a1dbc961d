"""The Ray actor of a replica: a model and the roles that it plays."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.experimental import internal_kv

from masters_ray.config import Engine
from masters_ray.data.texts import cut
from masters_ray.errors import CheckpointError, MastersError, ReplicaError, ReplicaLostError
from masters_ray.method.masks import MaskReport
from masters_ray.models.vllm_engine import Mask
from masters_ray.replicas.judge import JudgeRole
from masters_ray.replicas.model import ReplicaModel
from masters_ray.replicas.processes import Role
from masters_ray.replicas.rollout import RolloutRole
from masters_ray.replicas.spec import ReplicaSpec
from masters_ray.weight_sync.receiver import WeightReceiver
from masters_ray.weight_sync.student_weights import StudentWeights

DEVICES = "MASTERS_RAY_DEVICES"
"""Environment variable of a process: the node's GPUs that it uses when Ray reserves none for it, such as "0,1"."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_SECONDS_TO_TELL = 1.0
_NO_HELP = "For further information visit"
_LONGEST_CAUSE = 700

Expected = MaskReport | StudentWeights
"""Weights that a replica must hold for a call: a teacher with this mask, or a version of the student."""


class ReplicaActor:
    """Hosts the model. Every method raises ReplicaError when the model could not be loaded. When the engine breaks, the
    call raises ReplicaLostError and the process ends, so that Ray starts another one."""

    def __init__(self, spec: ReplicaSpec) -> None:
        self._failure: ReplicaError | None = None
        self._ending = False
        try:
            self._load(spec)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - every later call raises it
            self._failure = not_loaded(error)

    def _load(self, spec: ReplicaSpec) -> None:
        show_own_devices()
        self._model = model = ReplicaModel(dataclasses.replace(spec, mask=mask_to_begin_with(spec)))
        self._receiver = WeightReceiver(model.engine.load, spec.tensor_parallel)
        teacher, student = RolloutRole(model, "teacher", spec.top_k), RolloutRole(model, "student", 0)
        judge = JudgeRole(model, spec.judge_max_tokens)
        played: dict[Role, Any] = {"teacher": teacher, "judge": judge, "teacher_judge": judge}
        self._roles = {role: played.get(role, student) for role in spec.roles}

    def ready(self, expected: Expected | None = None) -> None:
        """Returns once the model holds the expected weights. Raises as ``call`` does."""
        self._guarded(lambda: None, expected)

    def call(self, role: Role, method: str, *arguments: Any, expected: Expected | None = None) -> Any:
        """Calls ``method`` of the role with the ``expected`` weights. A process that was started late or again loads
        them first. Raises CheckpointError (a teacher) or WeightSyncError (a student) when the weights then differ."""
        return self._guarded(lambda: getattr(self._roles[role], method)(*arguments), expected)

    def mask(self, ratio: float) -> MaskReport:
        """Loads the checkpoint masked at ``ratio`` in place of the current weights; returns the mask's report."""
        return self._guarded(lambda: self._model.engine.mask(ratio))

    def sleep(self) -> None:
        """Frees the GPUs' memory, if ``spec.sleeps``, until the next call to the model."""
        self._guarded(lambda: self._model.engine.sleep())

    def busy_seconds(self) -> float:
        """Seconds that the engine has worked since its start."""
        return self._model.engine.loop.busy_seconds

    def _guarded(self, action: Callable[[], Any], expected: Expected | None = None) -> Any:
        if self._ending:
            threading.Event().wait()  # until the process ends: Ray then reports it or repeats the call elsewhere
        if self._failure is not None:
            raise self._failure
        try:
            if isinstance(expected, MaskReport):
                self._mask_as(expected)
            elif expected is not None:
                self._receiver.hold(expected)
            return action()
        except ReplicaLostError:
            self._ending = True
            threading.Timer(_SECONDS_TO_TELL, _end).start()
            raise

    def _mask_as(self, expected: MaskReport) -> None:
        report = self._model.engine.mask(expected.ratio)
        if report != expected:
            raise CheckpointError(
                f"a replica that came later holds other weights than the first ones: {report} instead of {expected}. "
                "Make the checkpoint the same on every node, and let nobody change it during a run."
            )


def not_loaded(error: BaseException) -> ReplicaError:
    """Returns the error for a model that failed to load, with vLLM's options replaced by configuration keys."""
    told = str(error) if isinstance(error, MastersError) else f"{type(error).__name__}: {error}"
    told = " ".join(line.strip() for line in told.splitlines() if _NO_HELP not in line)
    for field in dataclasses.fields(Engine):
        told = told.replace("--" + field.name.replace("_", "-"), f"engine.{field.name}")
    return ReplicaError(cut(told, _LONGEST_CAUSE))


def show_own_devices() -> None:
    """Sets CUDA_VISIBLE_DEVICES to the GPUs of ``DEVICES``, which are indices into the GPUs that the node's Ray shows.
    Call before any library looks for GPUs."""
    if own := os.environ.get(DEVICES):
        shown = os.environ.get(_VISIBLE)
        names = shown.split(",") if shown else None
        os.environ[_VISIBLE] = ",".join(names[int(number)] if names else number for number in own.split(","))


def remember_ratio(ratio: float) -> None:
    """Has teachers of this job that start or restart from now on load their weights masked at this ratio."""
    if internal_kv._internal_kv_initialized():
        internal_kv._internal_kv_put(_ratio_key(), str(ratio))


def mask_to_begin_with(spec: ReplicaSpec) -> Mask | None:
    """Returns the spec's mask at the ratio of ``remember_ratio``, if there is one; None without a mask."""
    if spec.mask is None or (ratio := internal_kv._internal_kv_get(_ratio_key())) is None:
        return spec.mask
    return dataclasses.replace(spec.mask, ratio=float(ratio))


def _ratio_key() -> str:
    return f"masters_ray/ratio/{ray.get_runtime_context().get_job_id()}"


def _end() -> None:
    """Ends this process and the engine's child processes, which would otherwise keep their GPUs' memory."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)
