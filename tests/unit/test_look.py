from pathlib import Path

import pytest

from masters_ray import store
from masters_ray.cli import main
from masters_ray.records import Rejected
from masters_ray.store import look
from tests.builders import account, group, scored


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards: positions 0 and 1, of which 1 is set aside, and 2."""
    right = scored([5, 1], k=3)
    wrong, cut = (scored([7], k=3, source="student", accuracy=0, finish=one) for one in ("stop", "length"))
    first, second, third = group((right, cut)), group(position=1), group((right, wrong), position=2)
    writer = store.Writer(tmp_path, {"mask_ratio": 0.2})
    writer.write(store.table_of([first]), account(first, second, rejected={1: Rejected(row="p1", reason="dark")}))
    writer.write(store.table_of([third]), account(third))
    writer.finish({})
    return tmp_path


def test_inspect_tells_the_account_and_the_key_and_reasons(folder: Path) -> None:
    told = list(look.inspect(folder))
    assert told[:2] == [f"{folder}: finished", "3 questions = 2 rows + 1 set aside, in 2 shards"]
    assert "  mask_ratio: 0.2" in told and "set aside, 1: dark" in told
    (folder / "manifest.json").unlink()
    assert next(look.inspect(folder)) == f"{folder}: not finished"


def test_verify_counts_answers_and_tokens(folder: Path) -> None:
    told = list(look.verify(folder))
    assert told[0] == f"{folder}: 2 shards, 2 rows, all read"
    assert "  teacher: 2 answers, 100.0% right, 0.0% cut" in told
    assert "  student: 2 answers, 0.0% right, 50.0% cut" in told
    assert told[-1].startswith("  6 answer tokens, mass outside the teacher's top k ")


def test_the_program_looks_at_several_stores_and_names_what_is_damaged(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint(*words: object) -> str:
        assert main(["store", *map(str, words)]) == 1
        return capsys.readouterr().err

    assert main(["store", "verify", str(folder), str(folder)]) == 0
    assert capsys.readouterr().out.count(f"{folder}: 2 shards, 2 rows, all read") == 2
    for word in ("inspect", "verify"):
        assert "no key.json, so no store" in complaint(word, folder / "none")
    shard = folder / "shard-00000002.parquet"
    content = bytearray(shard.read_bytes())
    content[20] ^= 255
    shard.write_bytes(content)
    (folder / "shard-00000000.parquet").rename(folder / "shard-00000007.parquet")
    told = complaint("verify", folder)
    assert "shard-00000002.parquet: other bytes than the manifest says" in told
    assert "shard-00000007.parquet: not in the manifest" in told
    assert "shard-00000000.parquet: in the manifest, but gone" in told
    assert "The command that made the store makes what is damaged again." in told
    for text, wrong in (("[]", "it is no JSON object"), ("{}", "changed after it was written")):
        (folder / "manifest.json").write_text(text)
        assert wrong in complaint("verify", folder)
    (folder / "key.json").unlink()
    assert "no key.json beside manifest.json: the command that made the store mends it" in complaint("verify", folder)
