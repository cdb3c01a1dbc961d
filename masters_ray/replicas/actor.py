"""The Ray actor of a replica."""

import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any

from masters_ray.config import Engine
from masters_ray.data.texts import cut
from masters_ray.errors import CheckpointError, MastersError, ReplicaError, ReplicaLostError
from masters_ray.method.masks import MaskReport
from masters_ray.replicas.model import ReplicaModel
from masters_ray.replicas.spec import ReplicaSpec
from masters_ray.weight_sync.receiver import WeightReceiver
from masters_ray.weight_sync.student_weights import StudentWeights

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_LONGEST_CAUSE = 700

Expected = MaskReport | StudentWeights
"""Weights that a replica must hold for a call: a teacher with this mask, or a version of the student."""


class ReplicaActor:
    """Hosts a model. The first call loads it: a process that replaces one asleep leaves the memory to the learner.
    Every method raises ReplicaError when the model could not be loaded. When the engine breaks, the call raises
    ReplicaLostError and the process ends, so that Ray starts another one."""

    def __init__(self, spec: ReplicaSpec) -> None:
        self._spec = spec
        self._loading = threading.Lock()
        self._loaded = self._ending = False
        self._failure: ReplicaError | None = None

    def ready(self) -> None:
        self._guarded(lambda: None)

    def call(self, method: str, *arguments: Any, expected: Expected | None = None) -> Any:
        """Calls ``method`` of the ReplicaModel with the ``expected`` weights, which a restarted process loads first.
        Raises CheckpointError (a teacher) or WeightSyncError (a student) when the weights then differ."""

        def act() -> Any:
            if isinstance(expected, StudentWeights):
                self._receiver.hold(expected)
            elif expected is not None and (report := self._model.engine.mask(expected.ratio)) != expected:
                raise CheckpointError(
                    f"a replica that was restarted holds other weights than before: {report} instead of {expected}. "
                    "Make the checkpoint the same on every node, and let nobody change it during a run."
                )
            return getattr(self._model, method)(*arguments)

        return self._guarded(act, expected.ratio if isinstance(expected, MaskReport) else None)

    def mask(self, ratio: float) -> MaskReport:
        """Loads the checkpoint masked at ``ratio`` in place of the current weights; returns the mask's report."""
        return self._guarded(lambda: self._model.engine.mask(ratio), ratio)

    def hold(self, weights: StudentWeights) -> None:
        """Loads a version of the student in place of the current weights. Raises as ``WeightReceiver.hold``."""
        self._guarded(lambda: self._receiver.hold(weights))

    def sleep(self) -> None:
        """Frees the GPUs' memory, if ``spec.sleeps``, until the next call to the model."""
        if self._loaded:
            self._guarded(lambda: self._model.engine.sleep())

    def _guarded(self, action: Callable[[], Any], ratio: float | None = None) -> Any:
        """ratio: mask ratio that the action needs; a process without a model loads it so, instead of masking twice."""
        if self._ending:
            threading.Event().wait()  # until the process ends: Ray then reports it or repeats the call elsewhere
        with self._loading:
            if not self._loaded:
                try:
                    self._load(self._spec if ratio is None else dataclasses.replace(self._spec, ratio=ratio))
                except (Exception, SystemExit) as error:  # noqa: BLE001 - this call and every later one raises it
                    self._failure = not_loaded(error)
                self._loaded = True
        if self._failure is not None:
            raise self._failure
        try:
            return action()
        except ReplicaLostError:
            self._ending = True
            threading.Timer(1.0, _end).start()  # once the caller is told
            raise

    def _load(self, spec: ReplicaSpec) -> None:
        if spec.devices is not None:
            show_devices(*spec.devices)
        self._model = ReplicaModel(spec)
        self._receiver = WeightReceiver(self._model.engine.load, spec.tensor_parallel)


def not_loaded(error: BaseException) -> ReplicaError:
    """Returns the error for a model that failed to load, with vLLM's options replaced by configuration keys."""
    told = str(error) if isinstance(error, MastersError) else f"{type(error).__name__}: {error}"
    for field in dataclasses.fields(Engine):
        told = told.replace("--" + field.name.replace("_", "-"), f"engine.{field.name}")
    return ReplicaError(cut(" ".join(told.split()), _LONGEST_CAUSE))


def show_devices(own: str) -> None:
    """Sets CUDA_VISIBLE_DEVICES to the process's own GPUs, such as "0,1": indices into those that the node's Ray shows.
    Call before any library looks for GPUs."""
    if own:
        shown = os.environ.get(_VISIBLE)
        names = shown.split(",") if shown else None
        os.environ[_VISIBLE] = ",".join(names[int(number)] if names else number for number in own.split(","))


def _end() -> None:
    """Ends this process and the engine's child processes, which would otherwise keep their GPUs' memory."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)
