"""Public checkpoints as files that have their sizes and no content: config.json and headers that were written down."""

import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FACTS = sorted((Path(__file__).parent / "families" / "facts").glob("*.json"))


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(next(file for file in FACTS if file.stem == name).read_text())
    return content


def names(pattern: str) -> Iterator[str]:
    """``layers.{2}.up`` → ``layers.0.up``, ``layers.1.up``; ``{1,3}`` → these."""
    pieces = re.split(r"\{([\d,]+)\}", pattern)
    places = [piece.split(",") if "," in piece else list(map(str, range(int(piece)))) for piece in pieces[1::2]]
    for chosen in itertools.product(*places):
        yield "".join(itertools.chain.from_iterable(itertools.zip_longest(pieces[::2], chosen, fillvalue="")))


def shapes(facts: dict[str, Any]) -> dict[str, list[int]]:
    return {name: shape for pattern, shape in facts["tensors"].items() for name in names(pattern)}


SHARD = 4 * 2**30
"""Bytes from which a shard is full."""


def checkpoint(name: str, folder: Path, like: Path) -> Path:
    """Writes a checkpoint whose weights are holes of their size. like: a small model of the family, which has its
    tokenizer and processor."""
    facts = read(name)
    shards: list[dict[str, list[int]]] = [{}]
    size = 0
    for tensor, shape in shapes(facts).items():
        if size > SHARD:
            shards.append({})
            size = 0
        shards[-1][tensor] = shape
        size += 2 * math.prod(shape)
    target = folder / name
    shutil.copytree(like, target, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    own = json.loads((like / "config.json").read_text())
    tokens = {key: value for key, value in own.items() if key.endswith(("_token_id", "_token_index"))}
    (target / "config.json").write_text(json.dumps(facts["config"] | tokens))
    patch = facts["config"].get("vision_config", {}).get("patch_size")
    for file in target.glob("*processor_config.json"):
        content = json.loads(file.read_text())
        for part in (content, *(one for one in content.values() if isinstance(one, dict))):
            if "patch_size" in part and patch is not None:
                part["patch_size"] = patch
        file.write_text(json.dumps(content))
    names_of = {number: f"model-{number:05}.safetensors" for number in range(len(shards))}
    index = {tensor: names_of[number] for number, shard in enumerate(shards) for tensor in shard}
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for number, shard in enumerate(shards):
        _hole(target / names_of[number], shard)
    return target


def _hole(file: Path, tensors: dict[str, list[int]]) -> None:
    header, end = {}, 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    content = json.dumps(header).encode()
    with file.open("wb") as opened:
        opened.write(len(content).to_bytes(8, "little") + content)
        opened.truncate(8 + len(content) + end)
