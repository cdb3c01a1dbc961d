"""The machine or the cluster: room for processes, on disks and in memory; GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.filesize import decimal

from masters_ray import cluster, weights
from masters_ray.checks.context import CheckContext, Findings, NotChecked, from_error
from masters_ray.config import Cluster, Config
from masters_ray.errors import Complaint, ConfigError, StoreError
from masters_ray.records import Picture, Problem
from masters_ray.replicas import placement, processes
from masters_ray.schedule import ratios
from masters_ray.store import Folder

_SHARED_MEMORY = Path("/dev/shm")
_OBJECT_STORE_SHARE = 0.3
"""Of the memory that Ray's object store takes, if /dev/shm has the room."""
_LARGEST_OBJECT_STORE = 200e9
_SAMPLED = 64
"""Questions whose pictures stand for all."""
_PER_LOGPROB = 2
_PER_TOKEN = 12
"""Bytes of a stored answer token: for each kept log-probability (measured: 97 in all with 50), and beside them."""
_OPTIMIZER = 12
"""Bytes of a trained parameter in a checkpoint beside the weight: a float32 copy and two moments."""
_SECONDS = 180.0
_KERNEL = """
import torch, triton, triton.language as tl

@triton.jit
def add_one(pointer, size: tl.constexpr):
    places = pointer + tl.arange(0, size)
    tl.store(places, tl.load(places) + 1)

numbers = torch.zeros(16, device="cuda")
add_one[(1,)](numbers, 16)
assert float(numbers.sum()) == 16, numbers
"""


def placed(context: CheckContext) -> Findings:
    """The cluster at RAY_ADDRESS, or the Ray that run would start here, holds what is asked for at one time."""
    config = context.config
    try:
        if os.environ.get("RAY_ADDRESS"):
            with cluster.connected(config.cluster):
                cluster.place(config)
            return
        here = _resources(config.cluster)
        if not here["GPU"] and any(model.gpus for model in (*config.models.values(), config.learner)):
            yield NotChecked("placement was not looked at, since there is no GPU here and RAY_ADDRESS is not set")
        else:
            placement.place(config, [here])
    except ImportError as error:
        missing = str(error.name).partition(".")[0]
        yield NotChecked(f"placement was not looked at, since {missing} is not installed here")
    except ConfigError as error:
        yield from error.complaints


def room(context: CheckContext) -> Findings:
    """run.dir and rollout.store can be written, and have room for what a run makes in any case."""
    config = context.config
    store = Folder(config.rollout.store) if config.rollout.store else None
    complaints = list(writable("run.dir", Path(config.run.dir)))
    if store is not None and store.on_disk:
        complaints += writable("rollout.store", Path(store.path("")))
    elif store is not None:
        try:
            store.try_out()
        except StoreError as error:
            complaints.append(from_error("rollout.store", "a place to write", error))
    yield from complaints or _enough(context, store)


def memory(context: CheckContext) -> Findings:
    """What may be short in this machine's memory."""
    try:
        import psutil
    except ImportError:
        return
    if os.environ.get("RAY_ADDRESS"):
        return
    here, loaded = psutil.virtual_memory(), 0
    for one in processes.making(context.config, learned=False):
        folder, engine = context.models.get(one.key), context.config.models[one.key].engine
        if folder is not None and one.gpus == 0:  # weights, whatever their format in memory, and KV cache
            cache = engine.kv_cache_memory_bytes or weights.cache_bytes(folder, engine)
            loaded += one.count * (sum(file.stat().st_size for file in weights.weight_files(folder)) + cache)
    if loaded > here.available:
        of = f"of this machine's {decimal(here.total)} {decimal(here.available)} are free"
        yield f"memory: the replicas' weights and KV caches are {decimal(loaded)}, {of}"
    wanted = int(min(_OBJECT_STORE_SHARE * here.total, _LARGEST_OBJECT_STORE))
    shared = shutil.disk_usage(_SHARED_MEMORY).total if _SHARED_MEMORY.is_dir() else wanted
    if shared < wanted:
        slow = f"Ray's object store wants {decimal(wanted)} and would go to a slower disk (docker run --shm-size)"
        yield f"memory: {_SHARED_MEMORY} has {decimal(shared)}; {slow}"


def gpus(context: CheckContext) -> Findings:
    """The driver runs torch, and Triton compiles a kernel, where conf asks for GPUs of this machine."""
    if not any(model.gpus for model in (*context.config.models.values(), context.config.learner)):
        return
    lacks = "torch is not installed here" if find_spec("torch") is None else ""
    if os.environ.get("RAY_ADDRESS") or shutil.which("nvidia-smi") is None:
        lacks = "there is none here that the run would use"
    if lacks:
        yield f"GPUs: driver and compiler are not looked at, since {lacks}"
    elif said := failure(_KERNEL):
        remedy = (
            "torch needs a new enough NVIDIA driver and a build for CUDA (make setup STACK=gpu); Triton needs gcc or "
            "clang, and Python.h of this Python (python3.11-dev)."
        )
        yield Complaint("GPUs", "torch and Triton to run a kernel", said, remedy)


def failure(program: str) -> str:
    """The line of a program's errors that names what is missing, or the last one; "" when it ends well. It runs in a
    process of its own, without Triton's cache."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.py"  # Triton reads a kernel's source from its file
        file.write_text(program)
        try:
            subprocess.run(
                [sys.executable, str(file)],
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                env=os.environ | {"TRITON_CACHE_DIR": folder},
                check=True,
            )
        except subprocess.TimeoutExpired:
            return f"no end after {_SECONDS:.0f} seconds"
        except subprocess.CalledProcessError as error:
            lines = [line.strip() for line in error.stderr.splitlines() if line.strip()]
            last = lines[-1] if lines else f"exit code {error.returncode}"
            return next((line for line in lines if "fatal error" in line), last)
    return ""


def nearest(path: Path) -> Path:
    """The directory itself, or the one above it that is there, were it a link that leads nowhere."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if os.path.lexists(one))


def writable(key: str, path: Path) -> Iterator[Complaint]:
    """Nothing when files can be written in a directory, or it can be made; leaves nothing behind."""
    near = nearest(path)
    try:
        path.exists()  # raises for what may not be looked at, or has too long a name
        if near.is_symlink() and not near.exists():
            raise FileNotFoundError(2, f"a link to {near.readlink()}, which is not there")
        if not near.is_dir():
            raise NotADirectoryError(20, "it is a file")
        with tempfile.TemporaryFile(dir=near) as file:
            file.write(b"0")
            file.flush()
    except OSError as error:
        remedy = "Choose another directory, mend its link or permissions, or make room."
        found = f"{path}: {near} cannot be ({error.strerror})"
        yield Complaint(key, "a directory that can be written", found, remedy)


def learner_bytes(config: Config, parameters: int) -> int:
    """Of checkpoints (those kept, and one that is being written) and the exported student. Adapters' own
    checkpoints are small and not counted."""
    weight = 2 if config.learner.dtype == "bfloat16" else 4
    if config.learner.lora.rank:
        return weight * parameters
    return parameters * (weight + (config.learner.checkpoints_kept + 1) * (weight + _OPTIMIZER))


def rollout_bytes(config: Config, problems: Sequence[Problem], questions: int) -> int:
    """Of the stages' stores at most: every answer as long as it may be. problems: those whose pictures are weighed."""
    pictures = 0
    if config.rollout.pictures == "embed":
        sample = problems[:_SAMPLED]
        pictures = sum(_bytes(picture) for problem in sample for picture in problem.pictures) // len(sample)
    total = 0.0
    for number, plan in enumerate(config.schedules):
        per_token = _PER_LOGPROB * config.of_teacher(number).teacher.top_k + _PER_TOKEN
        row = pictures + config.group_size * config.rollout.sampling.max_tokens * per_token
        passes = len(ratios(plan)) if plan.stage_data == "all" else 1 / len(config.schedules)
        total += questions * passes * row
    return int(total)


def _enough(context: CheckContext, store: Folder | None) -> Findings:
    """What a run writes, against what is free."""
    home = nearest(Path(context.config.run.dir))
    if "student" in context.models:
        learner = learner_bytes(context.config, weights.parameter_count(context.models["student"]))
        free = shutil.disk_usage(home).free
        yield f"room: the learner writes up to {decimal(learner)} in {home}, where {decimal(free)} are free"
        if learner > free:
            expected = f"{decimal(learner)} for the learner's checkpoints and the trained student"
            remedy = "Make room, choose another run.dir, or lower learner.checkpoints_kept."
            yield Complaint("run.dir", expected, f"{decimal(free)} in {home}", remedy)
    if context.questions is not None and (store is None or store.on_disk):
        rollouts = rollout_bytes(context.config, context.loaded["train"].problems, context.questions)
        place = home if store is None else nearest(Path(store.path("")))
        free = shutil.disk_usage(place).free
        most = f"{decimal(rollouts)} in {place}, where {decimal(free)} are free"
        yield f"room: rollouts are up to {most}; few answers are as long as they may be"


def _bytes(picture: Picture) -> int:
    return len(picture.data) if picture.data is not None else Path(picture.path or "").stat().st_size


def _resources(cluster: Cluster) -> dict[str, float]:
    """What the Ray that run starts on this machine would have."""
    from ray._private.accelerators import get_accelerator_manager_for_resource
    from ray._private.utils import get_num_cpus

    manager = get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    found = manager.get_current_node_num_accelerators()
    return {
        "CPU": float(cluster.local_cpus or get_num_cpus()),
        "GPU": float(found if visible is None else min(found, len(visible))),
    }
