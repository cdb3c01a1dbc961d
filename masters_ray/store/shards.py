"""The rollout store: one parquet row per question with its judged and scored answers.

A directory holds shards (``shard-00000.parquet``, …) and ``manifest.json``. A shard is written under a temporary name
and renamed; the manifest comes last. Readers trust only the manifest: a directory without one is not a store.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from masters_ray.errors import StoreError
from masters_ray.records import RolloutGroup
from masters_ray.store.rows import PARQUET, SCHEMA, groups, table

if TYPE_CHECKING:
    import ray.data

MANIFEST = "manifest.json"
_FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished store says of itself."""

    rows: int
    shards: list[dict[str, Any]]
    """name, rows and sha256 of each, in the order of their rows"""
    made_by: dict[str, Any]
    """Whatever the writer noted: ratio, sparsity, digests, seconds, counts."""


class Writer:
    """Fills one store directory; shards may come in any order. Raises StoreError when the directory holds a store."""

    def __init__(self, folder: Path) -> None:
        if (folder / MANIFEST).exists():
            raise StoreError(
                f"{folder}: holds a finished store already; it is never written over. Choose another run.dir."
            )
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("shard-*"):
            leftover.unlink()
        self._folder = folder
        self._shards: dict[int, dict[str, Any]] = {}

    def write(self, number: int, groups: Iterable[RolloutGroup]) -> None:
        """Write shard ``number``; its groups keep their order."""
        rows = table(groups)
        file = self._folder / f"shard-{number:05d}.parquet"
        temporary = file.with_name(file.name + ".tmp")
        pq.write_table(rows, temporary, **PARQUET)
        _flush(temporary)
        content = hashlib.sha256(temporary.read_bytes()).hexdigest()
        temporary.replace(file)
        self._shards[number] = {"name": file.name, "rows": len(rows), "sha256": content}

    def finish(self, made_by: Mapping[str, Any]) -> Manifest:
        """Write the manifest: from now on the directory is a store."""
        shards = [self._shards[number] for number in sorted(self._shards)]
        manifest = Manifest(rows=sum(shard["rows"] for shard in shards), shards=shards, made_by=dict(made_by))
        content = {"format": _FORMAT, "rows": manifest.rows, "shards": shards, "made_by": manifest.made_by}
        temporary = self._folder / (MANIFEST + ".tmp")
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        _flush(temporary)
        temporary.replace(self._folder / MANIFEST)
        return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished store, or None. Raises StoreError when it is damaged or a shard is gone."""
    file = folder / MANIFEST
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content["format"]
        manifest = Manifest(rows=content["rows"], shards=content["shards"], made_by=content["made_by"])
    except (ValueError, KeyError) as error:
        raise StoreError(
            f"{file}: expected a manifest, found {error!r}. Delete {folder} to make its rows again."
        ) from error
    if version != _FORMAT:
        raise StoreError(f"{file}: expected format {_FORMAT}, found {version}. Delete {folder} to make its rows again.")
    for shard in manifest.shards:
        if not (folder / shard["name"]).is_file():
            raise StoreError(
                f"{folder}: {shard['name']} is in the manifest but gone. Delete {folder} to make it again."
            )
    return manifest


def shard_files(folder: Path) -> list[str]:
    """The shards of a finished store, in the order of their rows. Raises StoreError when it is not finished."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise StoreError(f"{folder}: no {MANIFEST}, so no finished store. Run the stage that makes it again.")
    return [str((folder / shard["name"]).resolve()) for shard in manifest.shards if shard["rows"]]


def open_dataset(folders: Iterable[Path]) -> ray.data.Dataset:
    """Finished stores as one Ray Dataset: rows of SCHEMA, store after store, in the order of their positions."""
    import ray.data

    # The newer reader starts eight actors to look at the files' footers, which costs a small machine a quarter of a
    # minute; the manifest has named the files already.
    ray.data.DataContext.get_current().use_datasource_v2 = False
    return ray.data.read_parquet([file for folder in folders for file in shard_files(folder)], schema=SCHEMA)


def read(folder: Path) -> Iterable[RolloutGroup]:
    """The groups of a finished store, without Ray."""
    for file in shard_files(folder):
        yield from groups(pq.read_table(file))


def _flush(file: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())
