import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from masters_ray import store
from masters_ray.errors import StoreError
from masters_ray.records import RolloutGroup
from tests.builders import group, problem, scored


def plain(value: object) -> object:
    """The same with numpy arrays as lists, so that rows compare."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def filled(folder: Path, groups: list[RolloutGroup]) -> store.Manifest:
    writer = store.Writer(folder)
    writer.write(1, groups[2:])
    writer.write(0, groups[:2])
    return writer.finish({"ratio": 0.2})


def test_groups_come_back_as_they_were_in_the_order_of_their_shards(tmp_path: Path) -> None:
    answers = (scored([5, 1], k=3), scored([7], k=3, source="student", accuracy=0))
    groups = [group(answers, position=i, of=problem(id=f"p{i}", pictures=2)) for i in range(3)]
    manifest = filled(tmp_path, groups)
    assert (manifest.rows, manifest.made_by) == (3, {"ratio": 0.2})
    assert [plain(one) for one in store.read(tmp_path)] == [plain(one) for one in groups]


def test_a_directory_without_a_manifest_is_no_store(tmp_path: Path) -> None:
    store.Writer(tmp_path).write(0, [group()])
    assert store.read_manifest(tmp_path) is None
    with pytest.raises(StoreError, match="no finished store"):
        store.shard_files(tmp_path)


def test_a_finished_store_is_never_written_over(tmp_path: Path) -> None:
    filled(tmp_path, [group(position=i) for i in range(3)])
    with pytest.raises(StoreError, match="never written over"):
        store.Writer(tmp_path)


def test_what_an_interrupted_writer_left_is_made_again(tmp_path: Path) -> None:
    store.Writer(tmp_path).write(7, [group()])
    (tmp_path / "shard-00008.parquet.tmp").write_text("half")
    manifest = filled(tmp_path, [group(position=i) for i in range(3)])
    assert [shard["name"] for shard in manifest.shards] == ["shard-00000.parquet", "shard-00001.parquet"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "manifest.json",
        "shard-00000.parquet",
        "shard-00001.parquet",
    ]


def test_a_damaged_manifest_and_a_missing_shard_are_named(tmp_path: Path) -> None:
    filled(tmp_path, [group(position=i) for i in range(3)])
    (tmp_path / "shard-00001.parquet").unlink()
    with pytest.raises(StoreError, match="shard-00001.parquet is in the manifest but gone"):
        store.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="expected a manifest"):
        store.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 99, "rows": 0, "shards": [], "made_by": {}}))
    with pytest.raises(StoreError, match="expected format 2, found 99"):
        store.read_manifest(tmp_path)
