import json
from pathlib import Path

import pytest

from masters_ray import store
from masters_ray.cli import main
from masters_ray.errors import StoreError
from masters_ray.records import Rejected
from masters_ray.store import look
from tests.builders import group, scored


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards: positions 0 and 1, of which 1 is set aside, and 2."""
    answers = (scored([5, 1], k=3), scored([7], k=3, source="student", accuracy=0))
    cut = (answers[0], scored([7], k=3, source="student", accuracy=0, finish="length"))
    rows = [group(answers if position else cut, position=position) for position in range(3)]
    asked = {one.position: one.problem.digest for one in rows}
    writer = store.Writer(tmp_path, {"mask_ratio": 0.2})
    first = store.Account(asked={0: asked[0], 1: asked[1]}, rejected={1: Rejected(row="p1", reason="dark")}, noted={})
    writer.write(store.table_of(rows[:1]), first)
    writer.write(store.table_of(rows[2:]), store.Account(asked={2: asked[2]}, rejected={}, noted={}))
    writer.finish({})
    return tmp_path


def test_inspect_tells_the_account_and_the_key(folder: Path) -> None:
    told = list(look.inspect(folder))
    assert told[0] == f"{folder}: finished"
    assert told[1] == "3 questions = 2 rows + 1 set aside, in 2 shards"
    assert "  mask_ratio: 0.2" in told
    (folder / "manifest.json").unlink()
    assert next(look.inspect(folder)) == f"{folder}: not finished"


def test_stats_count_answers_tokens_and_reasons(folder: Path) -> None:
    told = list(look.stats(folder))
    assert told[0] == "2 rows, 4 answers, 6 answer tokens"
    assert "  teacher: 2 answers, 100.0% right, 0.0% cut" in told
    assert "  student: 2 answers, 0.0% right, 50.0% cut" in told
    assert "set aside, 1: dark" in told
    assert any(line.startswith("  top_gaps: ") for line in told)


def test_verify_reads_everything_and_names_what_is_damaged(folder: Path) -> None:
    assert list(look.verify(folder)) == [f"{folder}: 2 shards, 2 rows, all read"]
    shard = folder / "shard-00000002.parquet"
    content = bytearray(shard.read_bytes())
    content[20] ^= 255
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="shard-00000002.parquet: other bytes than the manifest says"):
        list(look.verify(folder))
    (folder / "shard-00000000.parquet").rename(folder / "shard-00000007.parquet")
    with pytest.raises(
        StoreError,
        match=r"(?s)shard-00000007.parquet: not in the manifest\n.*shard-00000000.parquet: in the manifest, but gone",
    ):
        list(look.verify(folder))


def test_the_program_looks_at_several_stores_and_fails_on_a_damaged_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["store", "verify", str(folder), str(folder)]) == 0
    assert capsys.readouterr().out.count("2 rows, all read") == 2
    for word in ("inspect", "verify", "stats"):
        assert main(["store", word, str(folder / "none")]) == 1
        assert "no key.json, so no store" in capsys.readouterr().err
    content = json.loads((folder / "manifest.json").read_text())
    content["shards"][0]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(content))
    assert main(["store", "verify", str(folder)]) == 1
    assert "The command that made the store makes what is damaged again." in capsys.readouterr().err
    for content, told in (("[]", "it is no JSON object"), ("{}", "changed after it was written")):
        (folder / "manifest.json").write_text(content)
        assert main(["store", "verify", str(folder)]) == 1
        assert told in capsys.readouterr().err
    (folder / "key.json").unlink()
    assert main(["store", "verify", str(folder)]) == 1
    assert "no key.json beside manifest.json: the command that made the store mends it" in capsys.readouterr().err
