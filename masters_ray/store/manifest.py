"""What a store says of itself: ``key.json`` and ``manifest.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from masters_ray.errors import DamagedError, StoreError
from masters_ray.store.folder import Folder, Where

MANIFEST = "manifest.json"
KEY = "key.json"
FORMAT = 7


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished store says of itself."""

    rows: int
    shards: list[dict[str, Any]]
    """name, rows and sha256 of each, in the order of their rows"""
    made_by: dict[str, Any]
    """Whatever the writer noted: ratio, sparsity, digests, seconds, counts."""
    key: str
    """Digest of the store's key."""

    @property
    def digest(self) -> str:
        """Of all rows, and of what made them."""
        return digest_of([self.key, [shard["sha256"] for shard in self.shards]])


def as_key(key: Mapping[str, Any]) -> dict[str, Any]:
    """A writer's key as ``read_key`` gives it."""
    found: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **key}))
    return found


def digest_of(content: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Where) -> Manifest | None:
    """The manifest of a finished store, or None. Raises DamagedError when it is not as it was written, StoreError when
    another version wrote it."""
    opened = Folder(folder)
    if not opened.has(MANIFEST):
        return None
    content, where = read_json_of(opened, MANIFEST), opened / MANIFEST
    try:
        version = content["format"]
        if version == FORMAT:
            digest = content.pop("digest")
            manifest = Manifest(**{name: content[name] for name in ("rows", "shards", "made_by", "key")})
    except (KeyError, TypeError) as error:
        told = f"it lacks {error}" if isinstance(error, KeyError) else "it is no JSON object"
        raise DamagedError(f"{where}: not as it was written: {told}") from error
    if version != FORMAT:
        raise StoreError(
            f"{where}: expected format {FORMAT}, found {version}: another version of this program wrote it. Use that, "
            "or choose another run.dir."
        )
    if digest != digest_of(content):
        raise DamagedError(f"{where}: changed after it was written")
    return manifest


def read_key(folder: Where) -> dict[str, Any]:
    """What the rows of a store are made of. Raises StoreError when the directory holds no store."""
    opened = Folder(folder)
    if not opened.has(KEY):
        there = MANIFEST if opened.has(MANIFEST) else ""
        told = (
            f"no {KEY} beside {there}: the command that made the store mends it" if there else f"no {KEY}, so no store"
        )
        raise StoreError(f"{folder}: {told}. A run's stores are in its rollouts/stage-N.")
    key: dict[str, Any] = read_json_of(opened, KEY)
    return key


def read_json_of(folder: Folder, name: str) -> Any:
    try:
        return json.loads(folder.read(name))
    except ValueError as error:
        raise DamagedError(f"{folder / name}: not JSON ({error})") from error
