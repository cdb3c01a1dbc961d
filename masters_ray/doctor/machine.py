"""Checks of this machine: memory, disk, /dev/shm, ports, driver, compiler, places. They start nothing."""

import shutil
import socket
import sysconfig
from collections.abc import Callable
from pathlib import Path

from masters_ray.checks import places
from masters_ray.checks.context import CheckContext
from masters_ray.doctor.files import of_context
from masters_ray.learner.work import available_memory
from masters_ray.models import weights
from masters_ray.plan import gib
from masters_ray.plan.forecast import uses_gpus
from masters_ray.plan.memory import BYTES, learner_bytes
from masters_ray.preflight.findings import Finding, judged, passed

_DRIVER = 580  # oldest major version of the driver for CUDA 13, which torch's and vLLM's packages are built for
_SHM = 2**30


def memory(context: CheckContext) -> Finding:
    """Compares what one worker and all engines of this machine hold with its memory; on GPUs, a worker with its GPU."""
    config, folders = context.config, context.folders
    learner = learner_bytes(config.learner, folders["student"])
    if config.learner.gpus:
        import torch

        if not torch.cuda.is_available():
            return Finding(name="memory", verdict="not done", figure="this machine has no GPU")
        room = torch.cuda.get_device_properties(0).total_memory
        figure = f"a learner worker holds {gib(learner.device)} of its GPU's {gib(room)}"
        remedy = "Raise learner.zero_stage, workers or offload, set lora.rank, or lower tokens_per_micro_batch."
        return judged("memory", learner.device < room, figure, remedy)
    engines = sum(
        model.replicas * BYTES[model.engine.dtype] * weights.parameter_count(folders[name])
        + model.replicas * (model.engine.kv_cache_memory_bytes or 2**30)
        for name, model in config.models.items()
        if name in folders
    )
    needed, room = max(engines, learner.device * config.learner.workers), available_memory()
    figure = f"engines hold {gib(engines)}, the learner {gib(learner.device)}, {gib(room)} are available"
    return judged("memory", needed < room, figure, "Fewer replicas, smaller models, or another machine.")


def disk(context: CheckContext) -> Finding:
    return of_context("disk", context, "enough for the learner's checkpoints and the student", places.room)


def credentials(context: CheckContext) -> Finding:
    return of_context("credentials", context, "run.dir and rollout.store can be written", places.written)


def shm(_: CheckContext) -> Finding:
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    return judged("shm", free >= _SHM, f"{gib(free)} free, {gib(_SHM)} wanted")


def ports(_: CheckContext) -> Finding:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_connection(one.getsockname(), timeout=5):
        return passed("ports", f"listened on and reached port {one.getsockname()[1]}")


def driver(context: CheckContext) -> Finding:
    if not uses_gpus(context.config):
        return Finding(name="driver", verdict="not done", figure="no GPU is asked for")
    version = Path("/proc/driver/nvidia/version")
    text = version.read_text(encoding="utf-8") if version.is_file() else ""
    major = next((int(word.split(".")[0]) for word in text.split() if word[:3].isdigit() and "." in word), 0)
    figure = f"version {major}" if major else "no NVIDIA driver"
    return judged("driver", major >= _DRIVER, f"{figure}, {_DRIVER} or newer is wanted")


def compiler(context: CheckContext) -> Finding:
    if not uses_gpus(context.config):
        return Finding(name="compiler", verdict="not done", figure="no GPU is asked for")
    found = shutil.which("gcc") or shutil.which("clang")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    figure = f"{found or 'no gcc or clang'}, {header if header.is_file() else f'no {header}'}"
    return judged("compiler", bool(found) and header.is_file(), figure)


MACHINE: dict[str, Callable[[CheckContext], Finding]] = {
    "memory": memory,
    "disk": disk,
    "shm": shm,
    "ports": ports,
    "driver": driver,
    "compiler": compiler,
    "credentials": credentials,
}
