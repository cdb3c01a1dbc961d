"""The files of a checkpoint: locates and checks them, so that transformers, vLLM and the masked loader read the same
files; reads headers, tensors and digests. Needs torch only to read tensors."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from masters_ray.config import Engine
from masters_ray.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_ALSO_READ = ("generation_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json")
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors")
_PLAIN_NUMBERS = frozenset({"F64", "F32", "F16", "BF16", "I64", "BOOL"})
"""safetensors types with one number per entry; I64 and BOOL are tables of positions and masks."""
_QUANTISED = ("quantization_config", "compression_config")
_LFS = b"version https://git-lfs"
_POINTER = "a pointer of git-lfs and not the file itself: run git lfs pull where it was cloned"
_INSTEAD = {
    "*.safetensors": f"without {_INDEX}. Download the index too, or rename a single file to {_SINGLE}.",
    "*.gguf": "whose weights are quantised. Take the checkpoint that it was made of.",
    "*.bin": "which runs code when it is read. Save the model again with transformers' save_pretrained.",
}
"""Pattern of files found in place of the expected weights → rest of the error message, with the remedy."""
_AGAIN = "Download or export it again."
_SHOWN = 3
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_CACHED_SEQUENCES = 2


class Entry(NamedTuple):
    """A tensor's entry in a safetensors header."""

    dtype: str
    """safetensors' name: "F32", "BF16", "I32", …"""
    shape: tuple[int, ...]


def locate(checkpoint: str) -> Path:
    """Returns a checkpoint's directory. checkpoint: a path, or a model id of the Hub, of which it downloads what the
    cache lacks.

    Raises CheckpointError when ``checkpoint`` is neither, or when the Hub does not deliver all files.
    """
    if (local := locate_locally(checkpoint)) is not None:
        return local
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(checkpoint))
    except Exception as error:  # the client raises many kinds of errors: network, permission, name
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
    """``locate`` without downloading: returns None for a model id of the Hub that is not completely in the cache."""
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
    """Returns the missing files of a checkpoint; other programs may have put only some of its files into the cache."""
    return _lacking_beside_weights(folder) + [name for name in _names(folder) if not (folder / name).is_file()]


def _lacking_beside_weights(folder: Path) -> list[str]:
    lacking = [name for name in _NEEDED if not (folder / name).is_file()]
    found = any((folder / name).is_file() for name in _PROCESSORS)
    return lacking if found else [*lacking, " or ".join(_PROCESSORS)]


def check(folder: Path) -> list[str]:
    """Returns the faults of a checkpoint's files, a phrase for each; reads headers, not weights."""
    wrong = [f"no {name}" for name in _lacking_beside_weights(folder)]
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
    except CheckpointError as error:
        wrong.append(str(error).removeprefix(f"{folder}: "))
    return [one.rstrip(".") for one in wrong]


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a checkpoint, in the index's order. Raises CheckpointError when a file is
    missing, or when transformers or vLLM would read other files of the directory instead."""
    names = _names(folder)
    if fault := _fault(folder, names):
        raise CheckpointError(f"{folder}: {fault}")
    return [folder / name for name in names]


def headers(folder: Path) -> dict[str, Entry]:
    """Returns tensor name → header entry for all tensors of a checkpoint. Raises CheckpointError when a file is
    incomplete, or when index and files disagree about where a tensor is."""
    held = {file.name: _header(file) for file in weight_files(folder)}
    lie = {(name, file) for file, entries in held.items() for name in entries}
    placed = set((_weight_map(folder) or dict.fromkeys(held[_SINGLE], _SINGLE)).items())
    if wrong := sorted({name for name, _ in lie ^ placed}):
        mixed = f"{_INDEX} and the files do not agree on {some(wrong)}: they are of different exports"
        raise CheckpointError(f"{folder}: {mixed}. {_AGAIN}")
    return {name: entry for entries in held.values() for name, entry in entries.items()}


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields every (name, tensor) of a checkpoint, file by file, names sorted within a file."""
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as content:
            for name in sorted(content.keys()):
                yield name, content.get_tensor(name)


def digest(folder: Path) -> str:
    """Returns the SHA-256 of the weight files' SHA-256 digests, in their order; identifies a checkpoint's weights."""
    total = hashlib.sha256()
    for file in weight_files(folder):
        with file.open("rb") as content:
            total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()


def prompt_digest(folder: Path) -> str:
    """Returns the SHA-256 over the files that turn a question into a prompt: tokenizer, chat template, processors."""
    total = hashlib.sha256()
    for name in (*_NEEDED[1:], *_PROCESSORS, "chat_template.jinja", "chat_template.json"):
        file = folder / name
        total.update(f"{name} {file.is_file()}".encode())
        if file.is_file():
            total.update(file.read_bytes())
    return total.hexdigest()


def parameter_count(folder: Path) -> int:
    """Returns the number of entries of all weights, from the files' headers."""
    return sum(math.prod(entry.shape) for entry in headers(folder).values())


def vocabulary(folder: Path) -> int | None:
    """Returns the number of token ids with rows in head and embeddings, padding included; None without usual names."""
    usual = ("lm_head.weight", "embed_tokens.weight", "tok_embeddings.weight")
    return min((entry.shape[0] for name, entry in headers(folder).items() if name.endswith(usual)), default=None)


def quantisation(folder: Path) -> str | None:
    """Returns how a checkpoint is quantised, in words; None when it is not. Quantised matrices are those of AWQ and
    GPTQ (I32), bitsandbytes (U8, I8), FP8 (F8_E4M3), …"""
    config = read_config(folder)
    for section in (config, config.get("text_config") or {}):
        for key in _QUANTISED:
            if found := section.get(key):
                method = found.get("quant_method") if isinstance(found, dict) else None
                return f"{key} in config.json ({method or 'no method named'})"
    matrices = {name: entry.dtype for name, entry in headers(folder).items() if len(entry.shape) >= 2}
    packed = sorted(name for name, dtype in matrices.items() if dtype not in _PLAIN_NUMBERS)
    return f"packed numbers in {some(packed)}" if packed else None


def cache_bytes(folder: Path, engine: Engine) -> int:
    """Returns the default KV cache size of an engine on a CPU, in bytes: two sequences of ``max_model_len`` tokens, at
    least 64 MiB; 1 GiB if config.json does not tell a token's size."""
    whole = read_config(folder)
    text = whole.get("text_config") or whole
    try:
        heads = text.get("num_key_value_heads") or text["num_attention_heads"]
        width = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        per_token = 2 * text["num_hidden_layers"] * heads * width * _BYTES[engine.dtype]
    except (KeyError, TypeError):
        return 2**30
    return max(2**26, _CACHED_SEQUENCES * engine.max_model_len * per_token)


def tokenizer_identity(folder: Path) -> dict[str, Any]:
    """Returns what two tokenizers must share to give the same ids: model, added tokens, pre-tokenizer, normalizer."""
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


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the content of config.json. Raises CheckpointError when it is not a mapping, or as ``read_json``."""
    content = read_json(folder / "config.json")
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder}: config.json is not JSON with a mapping. {_AGAIN}")
    return content


def read_json(file: Path) -> Any:
    """Returns the file's content. Raises CheckpointError when it cannot be read, or is no JSON or a git-lfs pointer."""
    try:
        content = file.read_bytes()
        if content.startswith(_LFS):
            raise CheckpointError(f"{file.name} is {_POINTER}")
        return json.loads(content)
    except (OSError, ValueError) as error:
        told = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else f"is not JSON ({error})"
        raise CheckpointError(f"{file.name} {told}") from error


def some(names: list[str]) -> str:
    """Joins the first names in words. Example: ``a.weight, b.weight, c.weight and 12 more``."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _names(folder: Path) -> list[str]:
    """Returns the names of the expected weight files, in the index's order."""
    return list(dict.fromkeys((_weight_map(folder) or {"": _SINGLE}).values()))


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Returns the index's tensor name → file name; None without an index. Raises CheckpointError if malformed."""
    if not (folder / _INDEX).is_file():
        return None
    content = read_json(folder / _INDEX)
    placed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise CheckpointError(f"{_INDEX}: expected a weight_map of tensors to files, found none")
    return placed


def _fault(folder: Path, names: list[str]) -> str | None:
    """Returns why the weights cannot be read, or which other files transformers or vLLM would read; None if neither."""
    if below := [name for name in names if "/" in name]:
        return f"{_INDEX} places weights below ({below[0]}), where vLLM does not look. Move the files beside it."
    if adapters := [name for name in _ADAPTERS if (folder / name).exists()]:
        remedy = "Merge them (peft: merge_and_unload, save_pretrained) into a directory of its own, or move them."
        return f"{' and '.join(adapters)}: low-rank adapters, which transformers would add to the model. {remedy}"
    if missing := [folder / name for name in names if not (folder / name).is_file()]:
        return f"expected weights in safetensors, found {_instead(folder, missing)}"
    others = [file.name for file in sorted(folder.glob("*.safetensors")) if file.name not in names]
    beside = _INDEX if (folder / _INDEX).is_file() else _SINGLE
    if beside == _INDEX:  # with an index other file names are not read
        others = [name for name in others if name == _SINGLE or name.startswith("consolidated")]
    if others:
        return f"{some(others)} beside {beside}: transformers and vLLM would not read the same files. Move it away."
    return None


def _instead(folder: Path, missing: list[Path]) -> str:
    """Returns what was found in place of missing weights, with the remedy."""
    if any(file.is_symlink() for file in missing):
        return f"{missing[0].name} as a link to a file that is not there. Download it again."
    for kind, remedy in _INSTEAD.items() if missing[0].name == _SINGLE else ():
        for file in sorted(folder.glob(kind)):
            return f"{file.name}, {remedy}"
    return f"no {some([file.name for file in missing])}. {_AGAIN}"


def _header(file: Path) -> dict[str, Entry]:
    """Returns the header's entries by tensor name. Raises CheckpointError when the file is incomplete."""
    try:
        with safe_open(file, framework="numpy") as content:
            slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118 - it is no mapping
            return {name: Entry(one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        with file.open("rb") as content:
            pointer = content.read(len(_LFS)) == _LFS
        found = _POINTER if pointer else f"cut off where its header says more, or no safetensors file ({error})"
        raise CheckpointError(f"{file.name} is {found}") from error
