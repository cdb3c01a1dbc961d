"""A look at the machine: directories, room on disks and in memory, resources."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from masters_ray import checkpoints, weights
from masters_ray.config import Cluster, Config, Engine
from masters_ray.errors import Complaint, StoreError
from masters_ray.preflight.rows import Seen
from masters_ray.progress import say
from masters_ray.records import Picture
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


def look(config: Config, seen: Sequence[Seen], models: Mapping[str, Path]) -> list[Complaint]:
    """Complains of directories that cannot be written, of too little room for what a run makes in any case, and of a
    loopback that does not work; says what else may be short."""
    complaints = writable("run.dir", Path(config.run.dir))
    store = Folder(config.rollout.store) if config.rollout.store else None
    if store is not None and store.on_disk:
        complaints += writable("rollout.store", Path(store.path("")))
    elif store is not None:
        try:
            store.try_out()
        except StoreError as error:
            complaints.append(
                Complaint(where="rollout.store", expected="a place to write", found=str(error).rstrip("."), remedy="")
            )
    if not complaints:
        complaints += _room(config, store, seen, models)
    if not os.environ.get("RAY_ADDRESS"):
        _memory(config, models)
        complaints += _loopback()
    return complaints


def nearest(path: Path) -> Path:
    """The directory itself, or the one above it that is there."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if _is_there(one))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # what may not be looked at, or has too long a name, cannot be made either


def _leads_nowhere(path: Path) -> bool:
    try:
        return path.is_symlink() and not path.exists()
    except OSError:
        return path.is_symlink()  # to itself, by and by


def writable(key: str, path: Path) -> list[Complaint]:
    """Whether files can be written in a directory, or it can be made; leaves nothing behind."""
    broken = next((one for one in (path.absolute(), *path.absolute().parents) if _leads_nowhere(one)), None)
    if broken is not None:
        found = f"{broken}, a link to {broken.readlink()}, which is not there"
        expected = "a directory that can be written"
        return [Complaint(where=key, expected=expected, found=found, remedy="Mend the link, or choose another one.")]
    near = nearest(path)
    try:
        if not near.is_dir():
            raise NotADirectoryError(20, "it is a file", str(near))
        with tempfile.TemporaryFile(dir=near) as file:
            file.write(b"0")
            file.flush()
    except OSError as error:
        return [
            Complaint(
                where=key,
                expected="a directory that can be written",
                found=f"{path}: {near} cannot be ({error.strerror})",
                remedy="Choose another directory, mend its permissions, or make room.",
            )
        ]
    return []


def resources(cluster: Cluster) -> dict[str, float]:
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


def _room(config: Config, store: Folder | None, seen: Sequence[Seen], models: Mapping[str, Path]) -> list[Complaint]:
    """What a run writes, against what is free."""
    learner = learner_bytes(config, weights.parameter_count(models["student"])) if "student" in models else 0
    rollouts = rollout_bytes(config, seen)
    home = nearest(Path(config.run.dir))
    needed = {home: learner}
    if store is None:
        needed[home] += rollouts or 0
    elif store.on_disk:
        place = nearest(Path(store.path("")))
        here = home if place.stat().st_dev == home.stat().st_dev else place
        needed[here] = needed.get(here, 0) + (rollouts or 0)
    for place, most in needed.items():
        free = shutil.disk_usage(place).free
        unknown = "the rollouts, of a size that the questions decide" if rollouts is None else ""
        told = " and ".join(part for part in (f"up to {_size(most)}" if most else "", unknown) if part)
        say(f"room: the run writes {told or 'little'} in {place}, where {_size(free)} are free")
        if most > free:
            say("  that may not be enough, though few answers are as long as rollout.sampling.max_tokens")
    if learner <= shutil.disk_usage(home).free:
        return []
    return [
        Complaint(
            where="run.dir",
            expected=f"{_size(learner)} for the learner's checkpoints and the trained student",
            found=f"{_size(shutil.disk_usage(home).free)} in {home}",
            remedy="Make room, choose another run.dir, or lower learner.checkpoints_kept.",
        )
    ]


def learner_bytes(config: Config, parameters: int) -> int:
    """Of checkpoints (those kept, and one that is being written) and the exported student. Adapters' own
    checkpoints are small and not counted."""
    weight = 2 if config.learner.dtype == "bfloat16" else 4
    if config.learner.lora.rank:
        return weight * parameters
    return parameters * (weight + (config.learner.checkpoints_kept + 1) * (weight + _OPTIMIZER))


def rollout_bytes(config: Config, seen: Sequence[Seen]) -> int | None:
    """Of the stages' stores at most: every answer as long as it may be. None when it is not known how many questions
    there are."""
    train = next((one for one in seen if one.name == "train"), None)
    if train is None or train.questions is None:
        return None
    pictures = 0
    if config.rollout.pictures == "embed":
        sample = train.problems[:_SAMPLED]
        pictures = sum(_bytes(picture) for problem in sample for picture in problem.pictures) // len(sample)
    total = 0.0
    for number, plan in enumerate(config.schedules):
        per_token = _PER_LOGPROB * config.of_teacher(number).teacher.top_k + _PER_TOKEN
        row = pictures + config.group_size * config.rollout.sampling.max_tokens * per_token
        passes = len(ratios(plan)) if plan.stage_data == "all" else 1 / len(config.schedules)
        total += train.questions * passes * row
    return int(total)


def _bytes(picture: Picture) -> int:
    return len(picture.data) if picture.data is not None else Path(picture.path or "").stat().st_size


def _memory(config: Config, models: Mapping[str, Path]) -> None:
    """Say what may be short on this machine."""
    try:
        import psutil
    except ImportError:
        return
    memory = psutil.virtual_memory()
    on_cpus = {name: model for name, model in config.models.items() if name in models and model.gpus == 0}
    loaded = sum(model.replicas * _held(models[name], model.engine) for name, model in on_cpus.items())
    if loaded > memory.available:
        say(
            f"memory: the replicas' weights and KV caches are {_size(loaded)}, of this machine's {_size(memory.total)} "
            f"{_size(memory.available)} are free"
        )
    wanted = _OBJECT_STORE_SHARE * memory.total
    if _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).total < min(wanted, _LARGEST_OBJECT_STORE):
        say(
            f"memory: {_SHARED_MEMORY} has {_size(shutil.disk_usage(_SHARED_MEMORY).total)}; Ray's object store wants "
            f"{_size(min(wanted, _LARGEST_OBJECT_STORE))} and would go to a slower disk (docker run --shm-size)"
        )


def _held(folder: Path, engine: Engine) -> int:
    """Bytes of a replica on a CPU: its weights, whatever their format there, and its KV cache."""
    cache = engine.kv_cache_memory_bytes or checkpoints.cache_bytes(folder, engine)
    return sum(file.stat().st_size for file in weights.weight_files(folder)) + cache


def _loopback() -> list[Complaint]:
    """The processes on this machine talk over ports that the system gives them."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        return [
            Complaint(
                where="127.0.0.1",
                expected="ports over which processes of this machine can talk",
                found=str(error),
                remedy="Bring the loopback up (ip link set lo up), or allow it in the sandbox or firewall.",
            )
        ]
    return []


def _size(number: float) -> str:
    """Example: ``1.3 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.4g} TB"
