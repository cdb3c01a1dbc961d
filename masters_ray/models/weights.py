"""The files of a checkpoint: locates and checks them, so that transformers, vLLM and the masked loader read the same
files; reads headers, tensors, digests, special tokens; copies what lies beside weights. Only tensors need torch."""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from masters_ray.data import NO_SPECIAL
from masters_ray.errors import CheckpointError
from masters_ray.families import PLACEHOLDER_IDS, Architecture

if TYPE_CHECKING:
    from torch import Tensor

BASE_CARD = "README_of_base_model.md"
_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_ALSO_READ = ("generation_config.json", "special_tokens_map.json", "chat_template.json")
_PLAIN_NUMBERS = frozenset({"F64", "F32", "F16", "BF16", "I64", "BOOL"})
"""safetensors types with one number per entry; I64 and BOOL are tables of positions and masks."""
_NAME_TOKENS = ("tokenizer_config.json", "special_tokens_map.json", *_PROCESSORS)
_AGAIN = "Download it again (in a clone: git lfs pull), or save the model with transformers' save_pretrained."
_NOT_COPIED = re.compile(r"(^|/)\.|\.(safetensors|bin|pth?|gguf|onnx|onnx_data|h5|msgpack|index\.json|py)$")
"""Hidden files, weights and code."""


class Entry(NamedTuple):
    dtype: str  # safetensors' name: "F32", "BF16", "I32", …
    shape: tuple[int, ...]


def locate(checkpoint: str) -> Path:
    """Returns a checkpoint's directory. checkpoint: a path, or a model id of the Hub, of which it downloads what the
    cache lacks. Raises CheckpointError when it is neither, or when the Hub does not deliver all files."""
    if (local := locate_locally(checkpoint)) is not None:
        return local
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(checkpoint))
    except Exception as error:  # the client raises many kinds of errors: network, permission, name
        found = f"no such directory, and the model hub did not deliver it ({type(error).__name__}: {error})"
        raise CheckpointError(f"{checkpoint}: {found}. Check the name, or give a directory.") from error
    check(folder)
    return folder


def locate_locally(checkpoint: str) -> Path | None:
    """``locate`` without downloading: returns None for a model id of the Hub that is not completely in the cache."""
    path = Path(checkpoint)
    if path.is_dir():
        return path
    if checkpoint.count("/") != 1 or path.parent.exists():
        raise CheckpointError(f"{checkpoint}: no such directory, and no model id such as org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(checkpoint, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return None if _lacking(folder) else folder  # other programs may have put only some of its files into the cache


def check(folder: Path) -> None:
    """Raises CheckpointError when a checkpoint's files are missing or cannot be read; reads headers, not weights."""
    if lacking := _lacking(folder):
        raise CheckpointError(f"{folder}: no {', '.join(lacking)}. {_AGAIN}")
    for name in (*_NEEDED, *_PROCESSORS, *_ALSO_READ):
        if (folder / name).is_file():
            read_json(folder / name)
    headers(folder)


def _lacking(folder: Path) -> list[str]:
    lacking = [name for name in (*_NEEDED, *_names(folder)) if not (folder / name).is_file()]
    found = any((folder / name).is_file() for name in _PROCESSORS)
    return lacking if found else [*lacking, " or ".join(_PROCESSORS)]


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a checkpoint, in the index's order. Raises CheckpointError when one is missing,
    or when transformers or vLLM might read other files of the directory instead."""
    names = _names(folder)
    present = {file.name for pattern in ("*.safetensors", "adapter_config.json") for file in folder.glob(pattern)}
    if others := sorted(present.difference(names)):
        found = f"{some(others)} beside {names[0]}: engine and learner might read other weights"
        raise CheckpointError(f"{folder}: {found}. Move it away; adapters can be merged (peft: merge_and_unload).")
    # vLLM looks for weights beside config.json, not below.
    if missing := [name for name in names if "/" in name or not (folder / name).is_file()]:
        raise CheckpointError(f"{folder}: no {some(missing)} beside config.json. {_AGAIN}")
    return [folder / name for name in names]


def headers(folder: Path) -> dict[str, Entry]:
    """Returns tensor name → header entry. Raises CheckpointError for a torn file, or a tensor in two files."""
    found: dict[str, Entry] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="numpy") as content:
                slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118 - it is no mapping
                entries = {name: Entry(one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: cannot be read as safetensors ({error}). {_AGAIN}") from error
        if twice := sorted(found.keys() & entries.keys()):
            raise CheckpointError(f"{file}: {some(twice)} in another file too: of different exports. {_AGAIN}")
        found |= entries
    return found


def tensors(folder: Path) -> Iterator[tuple[str, "Tensor"]]:
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


def architecture(folder: Path) -> Architecture:
    """Returns what is known of the checkpoint's family. Raises CheckpointError for an unreadable config.json."""
    return Architecture(read_json(folder / "config.json"))


def parameter_count(folder: Path) -> int:
    return sum(math.prod(entry.shape) for entry in headers(folder).values())


def vocabulary(folder: Path) -> int | None:
    """Returns the number of token ids with rows in head and embeddings, padding included; None without usual names."""
    usual = ("lm_head.weight", "embed_tokens.weight", "tok_embeddings.weight")
    return min((entry.shape[0] for name, entry in headers(folder).items() if name.endswith(usual)), default=None)


def quantisation(folder: Path) -> str | None:
    """Returns how a checkpoint is quantised, in words; None when it is not. Quantised matrices are those of AWQ and
    GPTQ (I32), bitsandbytes (U8, I8), FP8 (F8_E4M3), …"""
    config = read_json(folder / "config.json")
    for section in (config, config.get("text_config") or {}):
        if found := section.get("quantization_config") or section.get("compression_config"):
            return f"quantization_config in config.json ({found.get('quant_method', 'no method named')})"
    held = headers(folder).items()
    packed = sorted(name for name, entry in held if len(entry.shape) > 1 and entry.dtype not in _PLAIN_NUMBERS)
    return f"packed numbers in {some(packed)}" if packed else None


def tokenizer_identity(folder: Path) -> dict[str, Any]:
    """Returns what two tokenizers must share to give the same ids: model, added tokens, pre-tokenizer, normalizer."""
    content = read_json(folder / "tokenizer.json")
    model = content["model"]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model.get("merges") or []]
    return {
        "vocabulary": model.get("vocab"),
        "merges": merges,
        "added tokens": {token["content"]: token["id"] for token in _added(folder)},
        "pre-tokenizer": content.get("pre_tokenizer"),
        "normalizer": content.get("normalizer"),
    }


def placeholder_ids(folder: Path) -> set[int]:
    """Returns the ids of picture, video and audio placeholders that config.json names."""
    content = read_json(folder / "config.json")
    return {value for key, value in content.items() if PLACEHOLDER_IDS.fullmatch(key) and isinstance(value, int)}


def end_ids(folder: Path) -> set[int]:
    """Returns the ids of tokens at which vLLM ends an answer: the tokenizer's end token, and those in
    generation_config.json, or in config.json without that file. Raises CheckpointError when an id is malformed."""
    file = folder / "generation_config.json"
    file = file if file.is_file() else folder / "config.json"
    content = read_json(file)
    named = content.get("eos_token_id", content.get("text_config", {}).get("eos_token_id"))
    ids = [one for one in (named if isinstance(named, list) else [named]) if one is not None]
    if not all(type(one) is int and one >= 0 for one in ids):
        found = f"found {json.dumps(named)}. Write the numbers that tokenizer.json has for these tokens."
        raise CheckpointError(f"{file}: eos_token_id: expected a token's id or a list of them, {found}")
    own = _texts(read_json(folder / "tokenizer_config.json").get("eos_token"))
    return {*ids, *(one["id"] for one in _added(folder) if one["content"] in own)}


def special_tokens(folders: Iterable[Path]) -> str:
    """Returns a regular expression that matches every special token of these checkpoints, the longest first, such as
    ``<|im_end|>``. Leaves out one that is a word or a single character (a padding token "!"): texts may contain it."""
    found: list[Any] = []
    for folder in folders:
        marks = placeholder_ids(folder)
        found += [one for one in _added(folder) if one.get("special") or one["id"] in marks]
        for content in (read_json(folder / name) for name in _NAME_TOKENS if (folder / name).is_file()):
            found += [value for key, value in content.items() if key.endswith(("_token", "_special_tokens"))]
            found += [one for one in content.get("added_tokens_decoder", {}).values() if one.get("special")]
    texts = {text for text in _texts(found) if len(text) > 1 and not text.isalnum()}
    return "|".join(map(re.escape, sorted(texts, key=lambda text: (-len(text), text)))) or NO_SPECIAL


def _added(folder: Path) -> list[dict[str, Any]]:
    """Returns the tokens that the tokenizer has beside its model's: ``{"id": …, "content": …, "special": …}``."""
    return read_json(folder / "tokenizer.json").get("added_tokens") or []


def _texts(value: Any) -> list[str]:
    """Returns the texts of a token, or of all tokens in a list or mapping of them, as these files write them."""
    match value:
        case str():
            return [value]
        case {"content": str(text)}:
            return [text]
        case list() | dict():
            return [text for one in (value.values() if isinstance(value, dict) else value) for text in _texts(one)]
    return []


def read_json(file: Path) -> dict[str, Any]:
    """Returns a checkpoint's JSON file. Raises CheckpointError when it cannot be read, or holds no object."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error}). {_AGAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found a {type(content).__name__}. {_AGAIN}")
    return content


def some(names: list[str]) -> str:
    """Joins the first names in words. Example: ``a.weight, b.weight, c.weight and 12 more``."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _names(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    placed = read_json(index).get("weight_map") if index.is_file() else {"": "model.safetensors"}
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{index}: expected a weight_map of tensors to files, found none. {_AGAIN}")
    return list(dict.fromkeys(map(str, placed.values())))


def copy_beside(source: Path, target: Path, dtype: str) -> None:
    """Copies all files of a checkpoint but weights and code, byte for byte, to the directory of new weights. Sets
    ``dtype`` in config.json; the model card, whose figures are the source's, gets another name."""
    (target / "generation_config.json").unlink(missing_ok=True)  # transformers writes one that the source may not have
    for file in source.rglob("*"):
        name = str(file.relative_to(source))
        earlier = name == BASE_CARD and (source / "README.md").is_file()  # the base model's own base
        if file.is_file() and not _NOT_COPIED.search(name) and not earlier:
            copied = target / (BASE_CARD if name == "README.md" else name)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copied)
    text = (target / "config.json").read_text(encoding="utf-8")
    content = json.loads(text)
    content.setdefault("torch_dtype" if "torch_dtype" in content else "dtype", dtype)
    for part in (content, *(part for part in content.values() if isinstance(part, dict))):
        part.update({key: dtype for key in ("dtype", "torch_dtype") if part.get(key) is not None})
    if content != json.loads(text):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (target / "config.json").write_text(text, encoding="utf-8")
