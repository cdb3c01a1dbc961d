"""The process of a replica: one model, and the roles that it plays."""

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
"""Variable of a process: the GPUs that it uses when Ray reserves none for it."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_SECONDS_TO_TELL = 1.0
_NO_HELP = "For further information visit"
_LONGEST_CAUSE = 700

Expected = MaskReport | StudentWeights
"""What a process must hold: a teacher masked like this, or this version of the student."""


class ReplicaActor:
    """Every method raises ReplicaError when the model could not be loaded. When the engine breaks, the caller is told
    with ReplicaLostError, and the process ends: Ray starts another one."""

    def __init__(self, spec: ReplicaSpec) -> None:
        self._failure: ReplicaError | None = None
        self._ending = False
        try:
            self._load(spec)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - told to whoever asks
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
        """Return once the model holds what is expected; errors as of ``call``."""
        self._guarded(lambda: None, expected)

    def call(self, role: Role, method: str, *arguments: Any, expected: Expected | None = None) -> Any:
        """``method`` of the role, with the weights that are ``expected``: a process that came later than others or in
        the place of another one has those that it was started with. Raises CheckpointError or WeightSyncError when
        the weights are others."""
        return self._guarded(lambda: getattr(self._roles[role], method)(*arguments), expected)

    def mask(self, ratio: float) -> MaskReport:
        """The checkpoint's weights, masked at ``ratio``, in place of whatever the replica held."""
        return self._guarded(lambda: self._model.engine.mask(ratio))

    def sleep(self) -> None:
        """Give up the GPUs' memory, if the spec says so, until something is asked of the model."""
        self._guarded(lambda: self._model.engine.sleep())

    def busy_seconds(self) -> float:
        """How long the engine has worked since it was started."""
        return self._model.engine.loop.busy_seconds

    def _guarded(self, action: Callable[[], Any], expected: Expected | None = None) -> Any:
        if self._ending:
            threading.Event().wait()  # for the end, of which Ray tells, or asks the next process
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
    """Why a model is not there; options of vLLM by the keys of the configuration."""
    told = str(error) if isinstance(error, MastersError) else f"{type(error).__name__}: {error}"
    told = " ".join(line.strip() for line in told.splitlines() if _NO_HELP not in line)
    for field in dataclasses.fields(Engine):
        told = told.replace("--" + field.name.replace("_", "-"), f"engine.{field.name}")
    return ReplicaError(cut(told, _LONGEST_CAUSE))


def show_own_devices() -> None:
    """Before anything looks for GPUs: those that were assigned to this process are all that it sees. They are counted
    among those that the node's Ray shows."""
    if own := os.environ.get(DEVICES):
        shown = os.environ.get(_VISIBLE)
        names = shown.split(",") if shown else None
        os.environ[_VISIBLE] = ",".join(names[int(number)] if names else number for number in own.split(","))


def remember_ratio(ratio: float) -> None:
    """A teacher of this job that is started or replaced from now on is masked at this ratio while it loads."""
    if internal_kv._internal_kv_initialized():
        internal_kv._internal_kv_put(_ratio_key(), str(ratio))


def mask_to_begin_with(spec: ReplicaSpec) -> Mask | None:
    """The spec's mask, at the ratio that is remembered."""
    if spec.mask is None or (ratio := internal_kv._internal_kv_get(_ratio_key())) is None:
        return spec.mask
    return dataclasses.replace(spec.mask, ratio=float(ratio))


def _ratio_key() -> str:
    return f"masters_ray/ratio/{ray.get_runtime_context().get_job_id()}"


def _end() -> None:
    """End this process and the engine's own ones, which would keep their GPUs' memory."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)
