"""A file through which an engine's own processes get weights that arrived; it lasts as long as they read it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from masters_ray.errors import ReplicaError

PREFIX = "masters-ray-weights-"
"""How the names of the directories begin; after it comes the process, then where its number is valid."""
_SHARED_MEMORY = Path("/dev/shm")
"""The fastest place, where there is one. A container's is often as small as 64 MB."""
_ROOM = 1.1
"""Free bytes of it that are wanted for each byte of tensors."""


@contextmanager
def handed_over(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[Path]:
    """A directory with the tensors as a checkpoint has them, there during the block.

    It lies in shared memory if that has room, among the temporary files otherwise. What processes that died left in
    either place is removed first. Raises ReplicaError when the tensors cannot be written.
    """
    held = dict(tensors)
    size = sum(tensor.nbytes for tensor in held.values())
    place, folder = None, None
    try:
        try:
            for candidate in (_SHARED_MEMORY, Path(tempfile.gettempdir())):
                _remove_leftovers(candidate)
            place = _place(size)
            folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-{_where()}-", dir=place))
            save_file(held, folder / "model.safetensors")
        except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
            raise ReplicaError(
                f"{folder or place or 'temporary files'}: expected room for the learner's weights, {size} bytes, but "
                f"they cannot be written ({error}). Set TMPDIR to a directory that has the room, or make "
                f"{_SHARED_MEMORY} larger (docker run --shm-size)."
            ) from error
        yield folder
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _place(size: int) -> Path:
    """Where ``size`` bytes go."""
    usable = _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK)
    if usable and shutil.disk_usage(_SHARED_MEMORY).free > _ROOM * size:
        return _SHARED_MEMORY
    return Path(tempfile.gettempdir())


def _where() -> str:
    """Host and process namespace: TMPDIR may be shared by nodes and /dev/shm by containers, and a process of another
    one is not seen from here."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a name, not a path
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def _remove_leftovers(place: Path) -> None:
    """Delete the directories that processes of this host left in ``place`` when they died."""
    for folder in place.glob(f"{PREFIX}*"):
        named = re.match(rf"{PREFIX}(\d{{1,9}})-{_where()}-", folder.name)
        if named and not folder.is_symlink() and not _is_alive(int(named[1])):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True
