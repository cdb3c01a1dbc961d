from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from masters_ray import cli, store
from masters_ray.errors import StoreError
from masters_ray.store import Folder, look
from tests.builders import group, written

KEY = {"a": 1}
GROUPS = [group(position=position) for position in range(2)]


def test_an_address_and_a_path_name_the_same_place(tmp_path: Path) -> None:
    by_address = Folder(f"file://{tmp_path}") / "a"
    by_address.write("x.json", b"{}")
    by_path = Folder(tmp_path / "a")
    assert by_path.read("x.json") == b"{}"
    assert (by_address.names(), by_path.names("x"), by_path.names("y")) == (["x.json"], ["x.json"], [])
    assert Folder(tmp_path).folders() == ["a"]
    assert str(by_address) == f"file://{tmp_path}/a"


def test_nothing_is_there_before_it_is_written(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "nowhere")
    assert not folder.has("x")
    assert (folder.names(), folder.folders()) == ([], [])
    with pytest.raises(StoreError, match="nowhere/x: cannot be read"):
        folder.read("x")


def test_a_place_of_no_known_kind_is_refused() -> None:
    with pytest.raises(StoreError, match="ftp2://x: expected a path, or an address such as s3://bucket/folder"):
        Folder("ftp2://x")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an object store on this machine that speaks S3's protocol."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT"))
    yield "s3://bucket"
    server.stop()


def test_a_store_at_an_s3_address_is_gone_on_with_looked_at_and_taken_from(bucket: str) -> None:
    folder = f"{bucket}/run/stage-0"
    written(folder, KEY, GROUPS[1:])
    writer = written(folder, KEY, GROUPS[:1])
    with pytest.raises(StoreError, match="made by something else"):
        store.Writer(folder, {"a": 2})
    [first, second] = store.read_accounts(folder).items()
    writer.retire(dict([second]))
    retired = [Folder(folder) / name for name in store.retired(folder)]
    assert len(store.Lookup(retired)) == 1
    writer.write(store.read_shard(retired[0], second[0]), second[1])
    writer.finish({})
    Folder(folder).write(first[0], b"torn")
    store.reopen(folder, store.survey(folder).broken)
    written(folder, KEY, GROUPS[:1]).finish({})
    assert [row.position for row in store.read(folder)] == [0, 1]
    assert store.shard_names(folder) == ["shard-00000000.parquet", "shard-00000001.parquet"]
    with pytest.raises(StoreError, match="never written over"):
        store.Writer(folder, KEY)
    assert Folder(f"{bucket}/run").folders() == ["stage-0"]
    assert Folder(folder).folders() == []
    assert next(look.verify(folder)) == f"{folder}: 2 shards, 2 rows, all read"
    assert cli.main(["store", "verify", folder]) == 0
    digest = GROUPS[1].problem.digest
    assert store.Lookup([folder]).rows([digest])[digest]["position"].to_pylist() == [1]


def test_a_bucket_that_is_not_there_is_named(bucket: str) -> None:
    with pytest.raises(StoreError, match="s3://other/tried: cannot be written"):
        Folder("s3://other").try_out()
    Folder(f"{bucket}/run").try_out()
    assert Folder(f"{bucket}/run").names() == []
    with pytest.raises(StoreError, match="s3://other/stage-0/key.json: cannot be written"):
        store.Writer("s3://other/stage-0", KEY)
