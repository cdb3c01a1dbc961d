"""A store of scored rollouts: what is written is read, at a path or an address, and what is damaged is told."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.exceptions import RayTaskError

from masters_ray import store
from masters_ray.cli import main
from masters_ray.errors import StoreError
from masters_ray.records import Rejected, RolloutGroup, TokenScores
from masters_ray.store import Folder, codec, look
from tests.builders import account, group, problem, scored, scores, table_of, written

KEY = {"ratio": 0.2}
GROUPS = [group(position=position) for position in range(3)]
FIRST = "shard-00000000.parquet"


def without_scores(row: RolloutGroup) -> list[object]:
    """The group, and of each answer what compares beside the teacher's scores."""
    answers = [
        (one.judged, one.reference_logprobs.tolist(), np.array(one.behaviour_logprobs).tolist()) for one in row.answers
    ]
    return [dataclasses.replace(row, answers=()), answers]


def distributions(given: TokenScores) -> np.ndarray:
    """Probabilities by ascending id, and the left-out mass: [tokens, k + 1]."""
    order = np.argsort(given.top_ids, axis=-1)
    return np.c_[np.exp(np.take_along_axis(given.top_logprobs, order, -1)), given.left_out]


@pytest.mark.parametrize("version", [None, 4])
def test_groups_come_back_as_they_were_in_the_order_of_their_shards(version: int | None, tmp_path: Path) -> None:
    answers = [scored([5, 1], k=3), scored([7], k=3, source="student", accuracy=0, finish="length")]
    if version is not None:
        fresh = (np.full(length, -0.5, np.float32) for length in (2, 1))
        answers = [dataclasses.replace(one, behaviour_logprobs=own) for one, own in zip(answers, fresh, strict=True)]
    asked = [dataclasses.replace(problem(id=f"p{i}", pictures=i), choices=("a", "b")[:i]) for i in range(3)]
    groups = [dataclasses.replace(group(answers, position=i, of=one), version=version) for i, one in enumerate(asked)]
    manifest = written(tmp_path, KEY, groups[2:], groups[:2]).finish({"ratio": 0.2})
    assert (manifest.rows, manifest.made_by) == (3, {"ratio": 0.2})
    found = list(store.read(tmp_path))
    assert [without_scores(one) for one in found] == [without_scores(one) for one in groups]
    for one, other in zip(found, groups, strict=True):
        for read, given in zip(one.answers, other.answers, strict=True):
            assert np.array_equal(read.teacher.top_ids, np.sort(given.teacher.top_ids, axis=-1))
            np.testing.assert_allclose(distributions(read.teacher), distributions(given.teacher), atol=2e-3)


def test_other_tools_read_a_shard_by_its_plain_columns(tmp_path: Path) -> None:
    """What docs/STORE.md says of the columns, without this package."""
    answer = scored([5, 1], k=3)
    written(tmp_path, KEY, [group((answer, answer))])
    row = pq.read_table(tmp_path / FIRST)["answers"][0][0].as_py()
    ids = np.cumsum(np.reshape(row["top_gaps"], (2, 3)), axis=1)
    assert ids.tolist() == np.sort(answer.teacher.top_ids, axis=1).tolist()
    squares = np.square(np.reshape(row["top_roots"], (2, 3)))
    total = squares.sum(1) + np.square(row["left_out_roots"])
    np.testing.assert_allclose(squares.sum(1) / total, 1 - answer.teacher.left_out, atol=2e-3)


def test_scores_come_back_as_distributions_within_the_error_that_is_stated() -> None:
    given = scores(5000, k=50, vocabulary=400)
    gaps, roots, left_out = codec.encode(given)
    found = codec.decode(gaps.ravel(), roots.ravel(), left_out)
    assert np.array_equal(found.top_ids, np.sort(given.top_ids, axis=-1))
    before, after = distributions(given), distributions(found)
    np.testing.assert_allclose(after.sum(-1), 1, atol=1e-5)
    hellinger = np.sqrt(0.5 * np.square(np.sqrt(before) - np.sqrt(after)).sum(-1))
    assert hellinger.max() < 2 * np.sqrt(51 / 8) / codec.LEVELS


@pytest.mark.parametrize(
    ("id", "logprob", "left_out", "message"),
    [(3, -1, 0.2, "different token ids"), (-1, -1, 0.2, "different"), (1, 0.5, 0.2, "0 and 1"), (1, -1, -0.2, "0 and")],
)
def test_scores_that_are_no_distribution_are_refused(id: int, logprob: float, left_out: float, message: str) -> None:
    ids, logprobs = np.array([[id, 3]], np.int32), np.array([[logprob, -1.0]], np.float32)
    with pytest.raises(StoreError, match=message):
        codec.encode(TokenScores(top_ids=ids, top_logprobs=logprobs, left_out=np.array([left_out], np.float32)))
    with pytest.raises(StoreError, match="5 ids and 6 probabilities for 2 tokens"):
        codec.decode(np.ones(5, np.uint32), np.ones(6, np.uint16), np.ones(2, np.uint16))


def test_a_store_is_finished_once_and_takes_rows_of_its_key_alone(tmp_path: Path) -> None:
    writer = written(tmp_path, KEY, GROUPS[:1])
    assert store.read_manifest(tmp_path) is None
    with pytest.raises(StoreError, match="no finished store"):
        store.shard_names(tmp_path)
    with pytest.raises(StoreError, match="made by something else.*ratio: 0.2 there, 0.1 now"):
        store.Writer(tmp_path, {"ratio": 0.1})
    with pytest.raises(StoreError, match=r"for each of \[1, 2\], found rows of \[1\] and"):
        writer.write(table_of(GROUPS[1:2]), account(*GROUPS[1:]))
    assert [file.name for file in tmp_path.glob("shard-*")] == [FIRST]
    writer.finish({})
    with pytest.raises(StoreError, match="never written over"):
        store.Writer(tmp_path, KEY)


def test_a_writer_goes_on_where_another_one_was_stopped(tmp_path: Path) -> None:
    written(tmp_path, KEY, GROUPS[2:])
    writer = store.Writer(tmp_path, KEY)
    reason = Rejected(row="p1", reason="too long")
    writer.write(table_of(GROUPS[:1]), account(*GROUPS[:2], rejected={1: reason}))
    assert store.read_accounts(tmp_path)[FIRST].rejected == {1: reason}
    manifest = writer.finish({})
    assert ([shard["name"] for shard in manifest.shards], manifest.rows) == ([FIRST, "shard-00000002.parquet"], 2)
    assert [row.position for row in store.read(tmp_path)] == [0, 2]
    names = ["key.json", "manifest.json", FIRST, "shard-00000002.parquet"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.tmp").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"x: cannot be written .*No space left.*call again"):
        Folder(tmp_path).write("x", b"content")
    assert Folder(tmp_path).names() == []


def changed_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    footer = 8 + int.from_bytes(content[-8:-4], "little")
    content[(len(content) - footer) // 2] ^= 1
    file.write_bytes(content)


def of_another_store(file: Path) -> None:
    written(file.parents[1] / "other", {"ratio": 0.1}, GROUPS[:1])
    shutil.copy(file.parents[1] / "other" / file.name, file)


def with_other_values(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rows": 5, "ratio": 0.3}))


def no_object(file: Path) -> None:
    file.write_text("[]")


@pytest.mark.parametrize(
    ("name", "damage", "finished"),
    [
        *((FIRST, damage, finished) for damage in (changed_byte, of_another_store) for finished in (False, True)),
        (FIRST, lambda file: file.write_bytes(file.read_bytes()[:-50]), False),
        (FIRST, lambda file: shutil.copy(file.with_name("shard-00000001.parquet"), file), True),
        (FIRST, Path.unlink, True),
        *(("key.json", damage, finished) for damage in (with_other_values, Path.unlink) for finished in (False, True)),
        *((name, no_object, True) for name in ("key.json", "manifest.json")),
        ("manifest.json", with_other_values, True),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_named_and_alone_made_again(
    name: str, damage: Callable[[Path], object], finished: bool, tmp_path: Path
) -> None:
    written(tmp_path / "whole", KEY, *([one] for one in GROUPS)).finish({})
    folder = tmp_path / "damaged"
    shutil.copytree(tmp_path / "whole", folder)
    if not finished:
        (folder / "manifest.json").unlink()
    damage(folder / name)
    with pytest.raises(StoreError, match=name):
        list(look.verify(folder))
    if finished:
        broken = store.survey(folder).broken
        assert list(broken) == [name] and str(folder / name) in broken[name]
    with pytest.raises(StoreError, match="made by something else"):
        store.Writer(folder, {"ratio": 0.4})
    writer = store.Writer(folder, KEY)
    if name == FIRST:
        assert store.Lookup([folder]).rows([GROUPS[0].problem.digest]) == {}
        writer.write(table_of(GROUPS[:1]), account(GROUPS[0]))
    writer.finish({})
    made = {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith(".damaged")}
    assert made == {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}


def test_a_question_stands_once(tmp_path: Path) -> None:
    """A second shard of it is not written, and set aside when it is found."""
    written(tmp_path / "other", KEY, GROUPS[1:2])
    writer = written(tmp_path, KEY, GROUPS[:2])
    before = (tmp_path / FIRST).read_bytes()
    for one in GROUPS[:2]:
        with pytest.raises(StoreError, match=f"position {one.position} of .* is in another shard already"):
            writer.write(table_of([one]), account(one))
    assert [(file.name, file.read_bytes()) for file in tmp_path.glob("*.parquet")] == [(FIRST, before)]
    shutil.move(tmp_path / "other" / "shard-00000001.parquet", tmp_path)
    writer = store.Writer(tmp_path, KEY)
    assert (tmp_path / "shard-00000001.parquet.damaged").exists()
    writer.discard(store.read_accounts(tmp_path))
    writer.write(table_of(GROUPS[:1]), account(GROUPS[0]))
    assert writer.finish({}).rows == 1


def test_a_manifest_of_another_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content := '{"format": 99}')
    for ask in (store.read_manifest, store.survey):
        with pytest.raises(StoreError, match=r"expected format \d+, found 99: another version"):
            ask(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards: positions 0 and 1, of which 1 is set aside, and 2."""
    right = scored([5, 1], k=3)
    wrong, cut = (scored([7], k=3, source="student", accuracy=0, finish=one) for one in ("stop", "length"))
    first, second, third = group((right, cut)), group(position=1), group((right, wrong), position=2)
    writer = store.Writer(tmp_path, {"mask_ratio": 0.2})
    writer.write(table_of([first]), account(first, second, rejected={1: Rejected(row="p1", reason="dark")}))
    writer.write(table_of([third]), account(third))
    writer.finish({})
    return tmp_path


def test_inspect_tells_the_account_and_verify_counts_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "verify", str(folder), str(folder)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[:3] == [
        f"{folder}: 2 shards, 2 rows, all read",
        "  student: 2 answers, 0.0% right, 50.0% cut",
        "  teacher: 2 answers, 100.0% right, 0.0% cut",
    ]
    assert told[3].startswith("  6 answer tokens, mass outside the teacher's top k ") and told[4:] == told[:4]
    found = list(look.inspect(folder))
    assert found[:2] == [f"{folder}: finished", "3 questions = 2 rows + 1 set aside, in 2 shards"]
    assert {"  mask_ratio: 0.2", "set aside, 1: dark"} <= set(found)
    (folder / "manifest.json").unlink()
    assert next(look.inspect(folder)) == f"{folder}: not finished"


def test_all_that_is_damaged_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed_byte(folder / "shard-00000002.parquet")
    (folder / FIRST).rename(folder / "shard-00000007.parquet")
    assert main(["store", "verify", str(folder)]) == 1
    told = capsys.readouterr().err
    for name, wrong in (("2", "not a file that the"), ("7", "not a file that the"), ("0", "in the manifest, but gone")):
        assert f"shard-0000000{name}.parquet: {wrong}" in told
    assert "The command that made the store makes what is damaged again." in told
    for word in ("inspect", "verify"):
        assert main(["store", word, str(folder / "none")]) == 1
        assert "no key.json, so no store" in capsys.readouterr().err


def test_an_address_and_a_path_name_the_same_place_whatever_signs_are_in_it(tmp_path: Path) -> None:
    by_address, by_path = Folder(f"file://{tmp_path}") / "a?b=c#d", Folder(tmp_path / "a?b=c#d")
    assert (by_path.has("x.json"), by_path.names(), by_path.folders()) == (False, [], [])
    by_address.write("x.json", b"{}")
    assert (by_path.read("x.json"), str(by_address)) == (b"{}", f"file://{tmp_path}/a?b=c#d")
    assert [by_address.names(), by_path.names("y"), Folder(tmp_path).folders()] == [["x.json"], [], ["a?b=c#d"]]
    with pytest.raises(StoreError, match="d/y: cannot be read"):
        by_path.read("y")
    with pytest.raises(StoreError, match="ftp2://x: expected a path, or an address such as s3://bucket/folder"):
        Folder("ftp2://x")


def test_a_store_at_an_s3_address_is_gone_on_with_looked_at_and_taken_from(bucket: str) -> None:
    folder = f"{bucket}/run/stage-0"
    written(folder, KEY, GROUPS[1:2])
    written(folder, KEY, GROUPS[:1]).finish({})
    Folder(folder).write(FIRST, b"torn")
    written(folder, KEY, GROUPS[:1]).finish({})
    assert [row.position for row in store.read(folder)] == [0, 1]
    assert (Folder(f"{bucket}/run").folders(), Folder(folder).folders()) == (["stage-0"], [])
    assert next(look.verify(folder)) == f"{folder}: 2 shards, 2 rows, all read"
    digest = GROUPS[1].problem.digest
    assert store.Lookup([folder]).rows([digest])[digest]["position"].to_pylist() == [1]
    Folder(f"{bucket}/run").try_writing()
    assert Folder(f"{bucket}/run").names() == []
    with pytest.raises(StoreError, match="s3://other/tried: cannot be written"):
        Folder("s3://other").try_writing()


@pytest.mark.e2e
def test_a_changed_page_that_parquet_would_read_does_not_reach_the_learner(local_ray: None, tmp_path: Path) -> None:
    written(tmp_path, KEY, GROUPS).finish({})
    assert [row["position"] for row in store.open_dataset([tmp_path]).take_all()] == [0, 1, 2]
    shard = tmp_path / FIRST
    whole = shard.read_bytes()
    for at in range(200, len(whole)):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with suppress(pa.ArrowException, OSError):
            if pq.read_table(shard) != pq.read_table(pa.BufferReader(whole)):
                break
    with pytest.raises(RayTaskError, match="CRC checksum verification failed"):
        store.open_dataset([tmp_path]).take_all()
