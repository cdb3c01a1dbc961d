"""The weight files of a checkpoint: which ones transformers, vLLM and the masked loader read alike, and what their
headers say. Reads no weights and needs no torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from masters_ray.errors import CheckpointError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors")
_PLAIN_NUMBERS = frozenset({"F64", "F32", "F16", "BF16", "I64", "BOOL"})
"""Types of tensors that hold one number an entry; I64 and BOOL are tables of positions and masks."""
_QUANTISED = ("quantization_config", "compression_config")
_LFS = b"version https://git-lfs"
_POINTER = "a pointer of git-lfs and not the file itself: run git lfs pull where it was cloned"
_RUNS_CODE = "which runs code when it is read. Save the model again with transformers' save_pretrained."
_INSTEAD = {
    "*.safetensors": f"without {_INDEX}. Download the index too, or rename a single file to {_SINGLE}.",
    "*.gguf": "whose weights are quantised. Take the checkpoint that it was made of.",
    "*.bin": _RUNS_CODE,
    "*.pt": _RUNS_CODE,
    "*.pth": _RUNS_CODE,
}
"""What may lie there in place of safetensors → what to do."""
_SHOWN = 3


class Entry(NamedTuple):
    """What a header says of a tensor."""

    dtype: str
    """As safetensors has it: "F32", "BF16", "I32", …"""
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in the index's order. Raises CheckpointError when one is missing, and when
    further files lie there that transformers or vLLM would read in place of these."""
    index = folder / _INDEX
    names = list(dict.fromkeys(_weight_map(index).values())) if index.is_file() else [_SINGLE]
    for fault in _faults(folder, names):
        raise CheckpointError(f"{folder}: {fault}")
    return [folder / name for name in names]


def headers(folder: Path) -> dict[str, Entry]:
    """Every tensor of a checkpoint by its name. Raises CheckpointError when a file is not whole, when two files hold
    the same tensor, or when the index places a tensor elsewhere than it lies."""
    index = folder / _INDEX
    held = {file.name: _header(file) for file in weight_files(folder)}
    counts = Counter(name for entries in held.values() for name in entries)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise CheckpointError(f"{folder}: more than one of its files hold {some(twice)}. Download or export it again.")
    placed = _weight_map(index) if index.is_file() else dict.fromkeys(counts, _SINGLE)
    wrong = sorted(name for name, file in placed.items() if name not in held[file])
    if wrong := [*wrong, *sorted(counts.keys() - placed)]:
        mixed = f"{_INDEX} and the files do not agree on {some(wrong)}: they are of different exports"
        raise CheckpointError(f"{folder}: {mixed}. Download or export it again.")
    return {name: entry for entries in held.values() for name, entry in entries.items()}


def parameter_count(folder: Path) -> int:
    """Entries of all weights, read from the files' headers."""
    return sum(math.prod(entry.shape) for entry in headers(folder).values())


def vocabulary(folder: Path) -> int | None:
    """Tokens that a checkpoint has rows for, padding included; None: it names neither head nor embeddings as usual."""
    usual = ("lm_head.weight", "embed_tokens.weight", "tok_embeddings.weight")
    return min((entry.shape[0] for name, entry in headers(folder).items() if name.endswith(usual)), default=None)


def quantisation(folder: Path) -> str | None:
    """How a checkpoint's weights are packed, in words; None when every entry is a number of its own. Packed are
    matrices of AWQ and GPTQ (I32), bitsandbytes (U8, I8), FP8 (F8_E4M3), …"""
    config = read_config(folder)
    for section in (config, config.get("text_config") or {}):
        for key in _QUANTISED:
            if found := section.get(key):
                method = found.get("quant_method") if isinstance(found, dict) else None
                return f"{key} in config.json ({method or 'no method named'})"
    matrices = {name: entry.dtype for name, entry in headers(folder).items() if len(entry.shape) >= 2}
    packed = sorted(name for name, dtype in matrices.items() if dtype not in _PLAIN_NUMBERS)
    return f"packed numbers in {some(packed)}" if packed else None


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


def some(names: list[str]) -> str:
    """Example: ``a.weight, b.weight, c.weight and 12 more``."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    placed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise CheckpointError(f"{index.name}: expected a weight_map of tensors to files, found none")
    return placed


def _faults(folder: Path, names: list[str]) -> Iterator[str]:
    """Why the weights cannot be read, and what lies beside them that transformers or vLLM would read instead."""
    if below := [name for name in names if "/" in name]:
        yield f"{_INDEX} places weights below ({below[0]}), where vLLM does not look. Move the files beside it."
    if adapters := [name for name in _ADAPTERS if (folder / name).exists()]:
        remedy = "Merge them (peft: merge_and_unload, save_pretrained) into a directory of its own, or move them."
        yield f"{' and '.join(adapters)}: low-rank adapters, which transformers would add to the model. {remedy}"
    if missing := [folder / name for name in names if not (folder / name).is_file()]:
        yield f"expected weights in safetensors, found {_instead(folder, missing)}"
    others = [file.name for file in sorted(folder.glob("*.safetensors")) if file.name not in names]
    indexed = (folder / _INDEX).is_file()
    if indexed:  # nobody reads the other files then
        others = [name for name in others if name == _SINGLE or name.startswith("consolidated")]
    if others:
        beside = _INDEX if indexed else _SINGLE
        yield f"{some(others)} beside {beside}: transformers and vLLM would not read the same files. Move it away."


def _instead(folder: Path, missing: list[Path]) -> str:
    """What there is in place of the weights that are missing, with the remedy."""
    if any(file.is_symlink() for file in missing):
        return f"{missing[0].name} as a link to a file that is not there. Download it again."
    for kind, remedy in _INSTEAD.items() if missing[0].name == _SINGLE else ():
        for file in sorted(folder.glob(kind)):
            return f"{file.name}, {remedy}"
    return f"no {some([file.name for file in missing])}. Download or export it again."


def _header(file: Path) -> dict[str, Entry]:
    """Raises CheckpointError when the file is not whole."""
    try:
        with safe_open(file, framework="numpy") as content:
            tensors = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118 - it is no mapping
            return {name: Entry(one.get_dtype(), tuple(one.get_shape())) for name, one in tensors.items()}
    except (SafetensorError, OSError) as error:
        with file.open("rb") as content:
            pointer = content.read(len(_LFS)) == _LFS
        found = _POINTER if pointer else f"cut off where its header says more, or no safetensors file ({error})"
        raise CheckpointError(f"{file.name} is {found}") from error
