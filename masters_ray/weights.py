"""Checkpoints on disk: what is in them, what identifies them. Imports torch only to handle tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masters_ray.config import Engine
from masters_ray.errors import CheckpointError
from masters_ray.weight_files import headers, parameter_count, read_config, read_json, weight_files

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "cache_bytes",
    "check",
    "digest",
    "headers",
    "locate",
    "locate_locally",
    "parameter_count",
    "prompt_digest",
    "tensors",
    "tokenizer_identity",
    "weight_files",
]

_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
_ALSO_READ = ("generation_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json")
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_CACHED_SEQUENCES = 2
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def locate(checkpoint: str) -> Path:
    """The directory of a checkpoint: a path, or a model id of the Hub (downloaded once, then taken from the cache; what
    the cache lacks of it is downloaded).

    Raises CheckpointError when it is neither, and when the Hub does not deliver all of it.
    """
    local = locate_locally(checkpoint)
    if local is not None:
        return local
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(checkpoint))
    except Exception as error:  # the client raises network, permission and name errors of many kinds
        raise CheckpointError(
            f"{checkpoint}: no such directory, and the model hub did not deliver it ({type(error).__name__}: {error}). "
            "Check the name, download it beforehand, or give a directory."
        ) from error
    if lacking := _lacking(folder):
        raise CheckpointError(
            f"{checkpoint}: expected a whole checkpoint in safetensors from the model hub, found {folder} without "
            f"{', '.join(lacking)}. Download it where the hub can be reached (hf download {checkpoint})."
        )
    return folder


def locate_locally(checkpoint: str) -> Path | None:
    """Like ``locate`` without downloading: None for a model id of the Hub that is not in the cache as a whole."""
    path = Path(checkpoint)
    if path.is_dir():
        return path
    pieces = checkpoint.split("/")
    if len(pieces) != 2 or not all(pieces) or checkpoint.startswith(".") or Path(pieces[0]).exists():
        raise CheckpointError(f"{checkpoint}: no such directory, and no model id such as org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(checkpoint, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return None if _lacking(folder) else folder


def _lacking(folder: Path) -> list[str]:
    """The files that a checkpoint needs and that are not there; other programs download a few of a model's alone."""
    index = folder / "model.safetensors.index.json"
    weights = (
        sorted(set((read_json(index).get("weight_map") or {}).values())) if index.is_file() else ["model.safetensors"]
    )
    found = [name for name in (*_NEEDED, *weights) if not (folder / name).is_file()]
    return found if any((folder / name).is_file() for name in _PROCESSORS) else [*found, " or ".join(_PROCESSORS)]


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


def cache_bytes(folder: Path, engine: Engine) -> int:
    """KV cache of an engine on a CPU when the configuration does not say: two sequences of ``max_model_len`` tokens, at
    least 64 MiB; 1 GiB for a model whose config.json does not say how much a token takes."""
    whole = read_config(folder)
    text = whole.get("text_config") or whole
    try:
        heads = text.get("num_key_value_heads") or text["num_attention_heads"]
        width = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        per_token = 2 * text["num_hidden_layers"] * heads * width * _BYTES[engine.dtype]
    except (KeyError, TypeError):
        return 2**30
    return max(2**26, _CACHED_SEQUENCES * engine.max_model_len * per_token)


def prompt_digest(folder: Path) -> str:
    """SHA-256 over the files that make a prompt of a question: tokenizer, chat template, processors."""
    total = hashlib.sha256()
    for name in (*_NEEDED[1:], *_PROCESSORS, "chat_template.jinja", "chat_template.json"):
        file = folder / name
        total.update(f"{name} {file.is_file()}".encode())
        if file.is_file():
            total.update(file.read_bytes())
    return total.hexdigest()


def check(folder: Path) -> list[str]:
    """What is wrong with a checkpoint's files, a phrase each; reads headers, not weights."""
    wrong = [f"no {name}" for name in _NEEDED if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in _PROCESSORS):
        wrong.append(f"no {' or '.join(_PROCESSORS)}")
    for name in (*_NEEDED, *_PROCESSORS, *_ALSO_READ):
        if (folder / name).is_file():
            try:
                content = read_json(folder / name)
                if name == "config.json" and not (isinstance(content, dict) and content.get("model_type")):
                    wrong.append("config.json names no model_type")
            except CheckpointError as error:
                wrong.append(str(error))
    try:
        headers(folder)
    except (CheckpointError, ValueError, KeyError, OSError) as error:
        wrong.append(str(error).removeprefix(f"{folder}: "))
    return [one.rstrip(".") for one in wrong]


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
