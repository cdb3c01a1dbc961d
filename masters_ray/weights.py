"""Checkpoints on disk, and versions of the student on their way to an engine: what is in them, what identifies them.

Imports torch only to handle tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masters_ray.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def locate(checkpoint: str) -> Path:
    """The directory of a checkpoint: a path, or a model id of the Hub (downloaded once, then taken from the cache).

    Raises CheckpointError when it is neither.
    """
    local = locate_locally(checkpoint)
    if local is not None:
        return local
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(checkpoint))
    except Exception as error:  # the client raises network, permission and name errors of many kinds
        raise CheckpointError(
            f"{checkpoint}: no such directory, and the model hub did not deliver it ({type(error).__name__}: {error}). "
            "Check the name, download it beforehand, or give a directory."
        ) from error


def locate_locally(checkpoint: str) -> Path | None:
    """Like ``locate`` without downloading: None for a model id of the Hub that is not in the cache."""
    path = Path(checkpoint)
    if path.is_dir():
        return path
    pieces = checkpoint.split("/")
    if len(pieces) != 2 or not all(pieces) or checkpoint.startswith(".") or Path(pieces[0]).exists():
        raise CheckpointError(f"{checkpoint}: expected a directory with a checkpoint or a model id such as org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(checkpoint, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in the index's order. Raises CheckpointError when one is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = dict.fromkeys(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        found = f"no {', '.join(missing)}" if missing else "no *.safetensors file"
        raise CheckpointError(f"{folder}: expected weights in safetensors, found {found}. Download or export it again.")
    return files


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of a checkpoint, one file after the other, names sorted within a file."""
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, framework="pt") as content:
            for name in sorted(content.keys()):
                yield name, content.get_tensor(name)


def digest(folder: Path) -> str:
    """SHA-256 over the bytes of the weight files: identifies a checkpoint's weights."""
    total = hashlib.sha256()
    for file in weight_files(folder):
        with file.open("rb") as content:
            total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()


def prompt_digest(folder: Path) -> str:
    """SHA-256 over the files that make a prompt of a question: tokenizer, chat template, processors."""
    total = hashlib.sha256()
    for name in (*_NEEDED[1:], *_PROCESSORS, "chat_template.jinja", "chat_template.json"):
        file = folder / name
        total.update(f"{name} {file.is_file()}".encode())
        if file.is_file():
            total.update(file.read_bytes())
    return total.hexdigest()


def parameter_count(folder: Path) -> int:
    """Entries of all weights, read from the files' headers."""
    return sum(
        math.prod(entry["shape"])
        for file in weight_files(folder)
        for name, entry in _header(file).items()
        if name != "__metadata__"
    )


def check(folder: Path) -> list[str]:
    """What is wrong with a checkpoint's files, a phrase each; reads headers, not weights."""
    wrong = [f"no {name}" for name in _NEEDED if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in _PROCESSORS):
        wrong.append(f"no {' or '.join(_PROCESSORS)}")
    for name in ("config.json", "tokenizer.json"):
        if (folder / name).is_file():
            try:
                json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError as error:
                wrong.append(f"{name} is not JSON ({error})")
    try:
        for file in weight_files(folder):
            _header(file)
    except (CheckpointError, ValueError, KeyError) as error:
        wrong.append(str(error))
    return wrong


def tokenizer_identity(folder: Path) -> dict[str, Any]:
    """What two tokenizers must share for their ids to mean the same: model, added tokens, pre-tokenizer, normalizer."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = content["model"]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model.get("merges") or []]
    return {
        "vocabulary": model.get("vocab"),
        "merges": merges,
        "added tokens": {token["content"]: token["id"] for token in content.get("added_tokens") or []},
        "pre-tokenizer": content.get("pre_tokenizer"),
        "normalizer": content.get("normalizer"),
    }


@dataclass(frozen=True, kw_only=True)
class WireTensor:
    """A tensor as it travels between processes: bytes that need not be copied out of shared memory to be read."""

    name: str
    """As in the checkpoint."""
    dtype: str
    """"bfloat16", "float32", …"""
    shape: tuple[int, ...]
    data: np.ndarray
    """uint8 [bytes]"""

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> WireTensor:
        import torch

        whole = tensor.detach().cpu().contiguous()
        content = whole.reshape(-1).view(torch.uint8).numpy()
        return cls(name=name, dtype=str(whole.dtype).removeprefix("torch."), shape=tuple(whole.shape), data=content)

    def tensor(self) -> Tensor:
        """A copy, on the CPU."""
        import torch

        content = torch.from_numpy(self.data.copy())
        return content.view(getattr(torch, self.dtype)).reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class StudentWeights:
    """A version of the student that engines can be told to hold."""

    version: int
    """Optimizer steps that it has seen."""
    digests: Mapping[str, str]
    """Tensor's name in the checkpoint → ``tensor_digest``, as the learner computed it."""
    pieces: tuple[Any, ...]
    """References to lists of WireTensors, which together are all tensors; none when the learner is asked for them."""
    seconds: float
    """What the learner spent on publishing them."""
    exchange: Any = None
    """The Exchange actor through which the learner is asked."""

    @property
    def digest(self) -> str:
        """SHA-256 of all digests, in the order of the names."""
        return joint_digest(self.digests)


def tensor_digest(name: str, tensor: Tensor) -> str:
    """SHA-256 of a tensor's name, dtype, shape and bytes."""
    from masters_ray.masks import update_digest

    total = hashlib.sha256()
    update_digest(total, name, tensor)
    return total.hexdigest()


def joint_digest(digests: Mapping[str, str]) -> str:
    """SHA-256 of tensors' digests, in the order of their names."""
    return hashlib.sha256("".join(f"{name}={digests[name]};" for name in sorted(digests)).encode()).hexdigest()


def _header(file: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file. Raises CheckpointError when the file is not whole."""
    size = file.stat().st_size
    with file.open("rb") as content:
        head = content.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > size - 8:
            raise CheckpointError(f"{file.name} is cut off or no safetensors file")
        try:
            header: dict[str, Any] = json.loads(content.read(length))
        except ValueError as error:
            raise CheckpointError(f"{file.name} has an unreadable header ({error})") from error
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if size != 8 + length + end:
        raise CheckpointError(f"{file.name} has {size} bytes where its header says {8 + length + end}")
    return header
