"""The weight files of a checkpoint: which ones transformers, vLLM and the masked loader read alike, and what their
headers say. Reads no weights and needs no torch."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masters_ray.errors import CheckpointError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLED = ("*.bin", "*.pt", "*.pth")
_PLAIN_NUMBERS = frozenset({"F64", "F32", "F16", "BF16", "I64", "BOOL"})
"""Types of tensors that hold one number an entry; I64 and BOOL are tables of positions and masks."""
_QUANTISED = ("quantization_config", "compression_config")
_LFS = b"version https://git-lfs"
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a header says of a tensor."""

    dtype: str
    """As safetensors has it: "F32", "BF16", "I32", …"""
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in the index's order.

    Raises CheckpointError when one is missing, and when further files lie there that transformers or vLLM would read
    in place of these.
    """
    index, single = folder / _INDEX, folder / _SINGLE
    names = list(dict.fromkeys(_weight_map(index).values())) if index.is_file() else [_SINGLE]
    if below := [name for name in names if "/" in name]:
        raise CheckpointError(
            f"{folder}: {_INDEX} places weights in a directory below ({below[0]}), where vLLM does not look. Move the "
            "files beside it, and name them so."
        )
    present = sorted(file.name for file in folder.glob("*.safetensors"))
    if wrong := _beside(folder, index.is_file(), names, present):
        raise CheckpointError(f"{folder}: {wrong}")
    files = [folder / name for name in names] if index.is_file() else [single]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{folder}: expected weights in safetensors, found {_instead(folder, missing)}")
    return files


def headers(folder: Path) -> dict[str, Entry]:
    """Every tensor of a checkpoint by its name.

    Raises CheckpointError when a file is not whole, when two files hold the same tensor, or when the index places a
    tensor elsewhere than it lies.
    """
    index, files = folder / _INDEX, weight_files(folder)
    lies_in = {file.name: _header(file) for file in files}
    counts = Counter(name for held in lies_in.values() for name in held)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise CheckpointError(f"{folder}: more than one of its files hold {_some(twice)}. Download or export it again.")
    if index.is_file():
        placed = _weight_map(index)
        wrong = sorted(name for name, file in placed.items() if name not in lies_in[file])
        wrong += sorted(name for name in counts if name not in placed)
        if wrong:
            raise CheckpointError(
                f"{folder}: {_INDEX} and the files do not agree on {_some(wrong)}: they are of different exports. "
                "Download or export it again."
            )
    return {name: entry for held in lies_in.values() for name, entry in held.items()}


def parameter_count(folder: Path) -> int:
    """Entries of all weights, read from the files' headers."""
    return sum(math.prod(entry.shape) for entry in headers(folder).values())


def vocabulary(folder: Path) -> int | None:
    """Tokens that a checkpoint has rows for, padding included; None: it names neither head nor embeddings as usual.
    Raises as ``headers``."""
    usual = ("lm_head.weight", "embed_tokens.weight", "tok_embeddings.weight")
    return min((entry.shape[0] for name, entry in headers(folder).items() if name.endswith(usual)), default=None)


def quantisation(folder: Path) -> str | None:
    """How a checkpoint's weights are packed, in words; None when every entry is a number of its own.

    Raises CheckpointError as ``headers`` does.
    """
    config = read_config(folder)
    for section in (config, config.get("text_config")):
        for key in _QUANTISED:
            found = section.get(key) if isinstance(section, dict) else None
            if found:
                method = found.get("quant_method") if isinstance(found, dict) else None
                return f"{key} in config.json ({method or 'no method named'})"
    packed = sorted(name for name, entry in headers(folder).items() if is_packed(entry.dtype, entry.shape))
    return f"packed numbers in {_some(packed)}" if packed else None


def is_packed(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor holds a matrix in a quantised form: AWQ, GPTQ (I32), bitsandbytes (U8, I8), FP8 (F8_E4M3), …"""
    return len(shape) >= 2 and dtype not in _PLAIN_NUMBERS


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises CheckpointError when it is no mapping."""
    content = read_json(folder / "config.json")
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder}: config.json is not JSON with a mapping. Download or export it again.")
    return content


def read_json(file: Path) -> Any:
    """Raises CheckpointError when it cannot be read, is no JSON, or stands for a file of git-lfs."""
    try:
        content = file.read_bytes()
        if content.startswith(_LFS):
            raise CheckpointError(f"{file.name} is {_POINTER}")
        return json.loads(content)
    except OSError as error:
        raise CheckpointError(f"{file.name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{file.name} is not JSON ({error})") from error


_POINTER = "a pointer of git-lfs and not the file itself: run git lfs pull where it was cloned"


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    placed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise CheckpointError(f"{index.name}: expected a weight_map of tensors to files, found none")
    return placed


def _beside(folder: Path, indexed: bool, names: list[str], present: list[str]) -> str | None:
    """What lies beside the weights that somebody would read in their place; None: nothing."""
    adapters = [name for name in ("adapter_config.json", "adapter_model.safetensors") if (folder / name).exists()]
    if adapters:
        return (
            f"{' and '.join(adapters)}: low-rank adapters, which transformers would add to the model or which lack "
            "theirs. Merge them (peft: merge_and_unload, save_pretrained) into a directory of its own, or move them."
        )
    if indexed and _SINGLE in present and names != [_SINGLE]:
        return (
            f"{_SINGLE} beside {_INDEX}: transformers reads the one, vLLM the files of the other. Delete what is left "
            "over from an earlier export."
        )
    others = [name for name in present if name not in names]
    if indexed:
        others = [name for name in others if name.startswith("consolidated")]  # the rest is read by nobody
    if others and (indexed or _SINGLE in present):
        return (
            f"{_some(others)} beside {_INDEX if indexed else _SINGLE}: transformers and vLLM would not read the same "
            f"files. Move it away."
        )
    return None


def _instead(folder: Path, missing: list[Path]) -> str:
    """What there is in place of the weights that are missing, with the remedy."""
    names = _some([file.name for file in missing])
    if any(file.is_symlink() for file in missing):
        return f"{names} as a link to a file that is not there. Download it again (hf download completes a snapshot)."
    other = next((file.name for file in sorted(folder.glob("*.safetensors"))), None)
    if other and missing[0].name == _SINGLE:
        return f"{other} without {_INDEX}. Download the index too, or rename a single file to {_SINGLE}."
    if any(folder.glob("*.gguf")):
        return "GGUF, whose weights are quantised. Take the checkpoint that it was made of."
    pickled = next((file.name for pattern in _PICKLED for file in folder.glob(pattern)), None)
    if pickled:
        return f"{pickled}, which runs code when it is read. Save the model again with transformers' save_pretrained."
    return f"no {names}. Download or export it again."


def _some(names: list[str]) -> str:
    """Example: ``a.weight, b.weight, c.weight and 12 more``."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _header(file: Path) -> dict[str, Entry]:
    """The header of a safetensors file. Raises CheckpointError when the file is not whole."""
    size = file.stat().st_size
    with file.open("rb") as content:
        head = content.read(8)
        if head and _LFS.startswith(head):
            raise CheckpointError(f"{file.name} is {_POINTER}")
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > size - 8:
            raise CheckpointError(f"{file.name} is {'cut off or no safetensors file' if size else 'empty'}")
        try:
            header: dict[str, Any] = json.loads(content.read(length))
        except ValueError as error:
            raise CheckpointError(f"{file.name} has an unreadable header ({error})") from error
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + length + end:
        raise CheckpointError(f"{file.name} has {size} bytes where its header says {8 + length + end}")
    return {name: Entry(dtype=entry["dtype"], shape=tuple(entry["shape"])) for name, entry in header.items()}
