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
from masters_ray.plan.memory import learner_bytes
from masters_ray.preflight.findings import Finding, judged, passed

_DRIVER = 580
"""Oldest major version of the driver for CUDA 13, which torch's and vLLM's packages are built for."""
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
        figure = f"a learner worker holds {_gib(learner.device)} of its GPU's {_gib(room)}"
        remedy = "Raise learner.zero_stage, workers or offload, set lora.rank, or lower tokens_per_micro_batch."
        return judged("memory", learner.device < room, figure, remedy)
    engines = sum(
        model.replicas * (4 if model.engine.dtype == "float32" else 2) * weights.parameter_count(folders[name])
        + model.replicas * (model.engine.kv_cache_memory_bytes or 2**30)
        for name, model in config.models.items()
        if name in folders
    )
    needed, room = max(engines, learner.device * config.learner.workers), available_memory()
    figure = f"engines hold {_gib(engines)}, the learner {_gib(learner.device)}, {_gib(room)} are available"
    return judged("memory", needed < room, figure, "Fewer replicas, smaller models, or another machine.")


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def disk(context: CheckContext) -> Finding:
    return of_context("disk", context, "enough for the learner's checkpoints and the student", places.room)


def credentials(context: CheckContext) -> Finding:
    return of_context("credentials", context, "run.dir and rollout.store can be written", places.written)


def shm(_: CheckContext) -> Finding:
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    return judged("shm", free >= _SHM, f"{_gib(free)} free, {_gib(_SHM)} wanted")


def ports(_: CheckContext) -> Finding:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_connection(one.getsockname(), timeout=5):
        return passed("ports", f"listened on and reached port {one.getsockname()[1]}")


def driver(context: CheckContext) -> Finding:
    if not _wants_gpus(context):
        return Finding(name="driver", verdict="not done", figure="no GPU is asked for")
    version = Path("/proc/driver/nvidia/version")
    text = version.read_text(encoding="utf-8") if version.is_file() else ""
    major = next((int(word.split(".")[0]) for word in text.split() if word[:3].isdigit() and "." in word), 0)
    figure = f"version {major}" if major else "no NVIDIA driver"
    return judged("driver", major >= _DRIVER, f"{figure}, {_DRIVER} or newer is wanted")


def compiler(context: CheckContext) -> Finding:
    if not _wants_gpus(context):
        return Finding(name="compiler", verdict="not done", figure="no GPU is asked for")
    found = shutil.which("gcc") or shutil.which("clang")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    figure = f"{found or 'no gcc or clang'}, {header if header.is_file() else f'no {header}'}"
    return judged("compiler", bool(found) and header.is_file(), figure)


def _wants_gpus(context: CheckContext) -> bool:
    config = context.config
    return any([config.learner.gpus, *(model.gpus for model in config.models.values())])


MACHINE: dict[str, Callable[[CheckContext], Finding]] = {
    "memory": memory,
    "disk": disk,
    "shm": shm,
    "ports": ports,
    "driver": driver,
    "compiler": compiler,
    "credentials": credentials,
}
