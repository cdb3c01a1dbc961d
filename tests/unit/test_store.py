import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from masters_ray import store
from masters_ray.errors import StoreError
from masters_ray.records import Rejected, RolloutGroup, TokenScores
from masters_ray.store import codec, look
from tests.builders import group, problem, scored, scores


def without_scores(group: RolloutGroup) -> RolloutGroup:
    """The group with empty arrays, so that rows compare."""
    answers = tuple(
        dataclasses.replace(answer, teacher=None, reference_logprobs=answer.reference_logprobs.tolist())  # type: ignore[arg-type]
        for answer in group.answers
    )
    return dataclasses.replace(group, answers=answers)


KEY = {"ratio": 0.2}


def account(*groups: RolloutGroup) -> store.Account:
    return store.Account(asked={one.position: one.problem.digest for one in groups}, rejected={}, noted={})


def filled(folder: Path, groups: list[RolloutGroup]) -> store.Manifest:
    writer = store.Writer(folder, KEY)
    writer.write(store.table_of(groups[2:]), account(*groups[2:]))
    writer.write(store.table_of(groups[:2]), account(*groups[:2]))
    return writer.finish({"ratio": 0.2})


def test_groups_come_back_as_they_were_in_the_order_of_their_shards(tmp_path: Path) -> None:
    answers = (scored([5, 1], k=3), scored([7], k=3, source="student", accuracy=0, finish="length"))
    groups = [group(answers, position=i, of=problem(id=f"p{i}", pictures=2)) for i in range(3)]
    manifest = filled(tmp_path, groups)
    assert (manifest.rows, manifest.made_by) == (3, {"ratio": 0.2})
    found = list(store.read(tmp_path))
    assert [without_scores(one) for one in found] == [without_scores(one) for one in groups]
    for one, other in zip(found, groups, strict=True):
        for read, written in zip(one.answers, other.answers, strict=True):
            order = np.argsort(written.teacher.top_ids, axis=-1)
            assert np.array_equal(read.teacher.top_ids, np.take_along_axis(written.teacher.top_ids, order, -1))
            sorted_logprobs = np.take_along_axis(written.teacher.top_logprobs, order, -1)
            np.testing.assert_allclose(np.exp(read.teacher.top_logprobs), np.exp(sorted_logprobs), atol=2e-3)
            np.testing.assert_allclose(read.teacher.left_out, written.teacher.left_out, atol=2e-3)


def test_other_tools_read_a_shard_by_its_plain_columns(tmp_path: Path) -> None:
    """What docs/STORE.md says of the columns, without this package."""
    answer = scored([5, 1], k=3)
    filled(tmp_path, [group((answer, answer), position=i) for i in range(3)])
    row = pq.read_table(tmp_path / "shard-00000000.parquet")["answers"][0][0].as_py()
    ids = np.cumsum(np.reshape(row["top_gaps"], (2, 3)), axis=1)
    assert ids.tolist() == np.sort(answer.teacher.top_ids, axis=1).tolist()
    squares = np.square(np.reshape(row["top_roots"], (2, 3)))
    total = squares.sum(1) + np.square(row["left_out_roots"])
    np.testing.assert_allclose(squares.sum(1) / total, 1 - answer.teacher.left_out, atol=2e-3)


@pytest.mark.parametrize("tokens", [1, 5000])
def test_scores_come_back_as_distributions_within_the_error_that_is_stated(tokens: int) -> None:
    given = scores(tokens, k=50, seed=tokens, vocabulary=400)
    gaps, roots, left_out = codec.encode(given)
    found = codec.decode(gaps.ravel(), roots.ravel(), left_out)
    order = np.argsort(given.top_ids, axis=-1)
    assert np.array_equal(found.top_ids, np.take_along_axis(given.top_ids, order, -1))
    before = np.c_[np.exp(np.take_along_axis(given.top_logprobs, order, -1)), given.left_out]
    after = np.c_[np.exp(found.top_logprobs), found.left_out]
    np.testing.assert_allclose(after.sum(-1), 1, atol=1e-5)
    hellinger = np.sqrt(0.5 * np.square(np.sqrt(before) - np.sqrt(after)).sum(-1))
    assert hellinger.max() < 2 * np.sqrt(51 / 8) / codec.LEVELS


@pytest.mark.parametrize(
    ("ids", "logprobs", "left_out", "message"),
    [
        ([[3, 3]], [[-1.0, -1.0]], [0.2], "different token ids"),
        ([[-1, 3]], [[-1.0, -1.0]], [0.2], "different token ids"),
        ([[1, 3]], [[0.5, -1.0]], [0.2], "between 0 and 1"),
        ([[1, 3]], [[np.nan, -1.0]], [0.2], "between 0 and 1"),
        ([[1, 3]], [[-1.0, -1.0]], [-0.2], "between 0 and 1"),
    ],
)
def test_scores_that_are_no_distribution_are_refused(
    ids: list[list[int]], logprobs: list[list[float]], left_out: list[float], message: str
) -> None:
    given = TokenScores(
        top_ids=np.array(ids, np.int32),
        top_logprobs=np.array(logprobs, np.float32),
        left_out=np.array(left_out, np.float32),
    )
    with pytest.raises(StoreError, match=message):
        codec.encode(given)


def test_damaged_scores_are_noticed() -> None:
    with pytest.raises(StoreError, match="5 ids and 6 probabilities for 2 tokens"):
        codec.decode(np.ones(5, np.uint32), np.ones(6, np.uint16), np.ones(2, np.uint16))


def test_a_directory_without_a_manifest_is_no_store(tmp_path: Path) -> None:
    store.Writer(tmp_path, KEY).write(store.table_of([group()]), account(group()))
    assert store.read_manifest(tmp_path) is None
    with pytest.raises(StoreError, match="no finished store"):
        store.shard_names(tmp_path)


def test_a_finished_store_is_never_written_over(tmp_path: Path) -> None:
    filled(tmp_path, [group(position=i) for i in range(3)])
    with pytest.raises(StoreError, match="never written over"):
        store.Writer(tmp_path, KEY)


def test_a_writer_goes_on_where_another_one_was_stopped(tmp_path: Path) -> None:
    groups = [group(position=i) for i in range(3)]
    store.Writer(tmp_path, KEY).write(store.table_of(groups[2:]), account(*groups[2:]))
    (tmp_path / "shard-00000000.parquet.tmp").write_text("half")
    writer = store.Writer(tmp_path, KEY)
    reason = Rejected(row="p1", reason="too long")
    writer.write(store.table_of(groups[:1]), dataclasses.replace(account(*groups[:2]), rejected={1: reason}))
    assert store.read_accounts(tmp_path)["shard-00000000.parquet"].rejected == {1: reason}
    manifest = writer.finish({})
    assert [shard["name"] for shard in manifest.shards] == ["shard-00000000.parquet", "shard-00000002.parquet"]
    assert manifest.rows == 2
    assert [row.position for row in store.read(tmp_path)] == [0, 2]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "key.json",
        "manifest.json",
        "shard-00000000.parquet",
        "shard-00000002.parquet",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_and_leaves_no_shard(tmp_path: Path) -> None:
    writer = store.Writer(tmp_path, KEY)
    (tmp_path / "shard-00000000.parquet.tmp").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"shard-00000000.parquet: cannot be written .*No space left.*call again"):
        writer.write(store.table_of([group()]), account(group()))
    assert store.read_accounts(tmp_path) == {}
    again = store.Writer(tmp_path, KEY)
    again.write(store.table_of([group()]), account(group()))
    assert again.finish({}).rows == 1
    assert list(tmp_path.glob("*.tmp")) == []


def test_rows_of_another_key_are_not_added(tmp_path: Path) -> None:
    store.Writer(tmp_path, KEY)
    with pytest.raises(StoreError, match="made by something else.*ratio: 0.2 there, 0.1 now"):
        store.Writer(tmp_path, {"ratio": 0.1})


def test_every_question_of_a_shard_has_a_row_or_a_reason(tmp_path: Path) -> None:
    writer = store.Writer(tmp_path, KEY)
    with pytest.raises(StoreError, match=r"asked \[0, 1\], stored \[0\]"):
        writer.write(store.table_of([group(position=0)]), account(group(position=0), group(position=1)))
    assert list(tmp_path.glob("shard-*")) == []


def changed_byte(file: Path, part: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    footer = 8 + int.from_bytes(content[-8:-4], "little")
    content[int(part * (len(content) - footer))] ^= 1
    file.write_bytes(content)


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def of_another_store(file: Path) -> None:
    one = group(position=0)
    store.Writer(file.parent / "other", {"ratio": 0.1}).write(store.table_of([one]), account(one))
    shutil.move(file.parent / "other" / file.name, file)
    shutil.rmtree(file.parent / "other")


def under_another_name(file: Path) -> None:
    shutil.copy(file.with_name("shard-00000001.parquet"), file)


DAMAGES = [changed_byte, torn, Path.unlink, of_another_store, under_another_name]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_is_not_as_it_was_written_costs_itself(damage: Callable[[Path], None], tmp_path: Path) -> None:
    groups = [group(position=position) for position in range(3)]
    for finished in (False, True):
        folder = tmp_path / str(finished)
        writer = store.Writer(folder, KEY)
        for one in groups:
            writer.write(store.table_of([one]), account(one))
        if finished:
            writer.finish({})
        shard = folder / "shard-00000000.parquet"
        whole = {file.name: file.read_bytes() for file in folder.glob("*.parquet")}
        damage(shard)
        broken = store.survey(folder).broken
        if damage is not Path.unlink or finished:
            assert list(broken) == [shard.name]
            assert str(shard) in broken[shard.name]
            with pytest.raises(StoreError, match=shard.name):
                list(look.verify(folder))
        assert store.Lookup([folder]).rows([groups[0].problem.digest]) == {} or damage is of_another_store
        if finished:
            store.reopen(folder, broken)
        writer = store.Writer(folder, KEY)
        assert store.read_accounts(folder).keys() == whole.keys() - {shard.name}
        writer.write(store.table_of(groups[:1]), account(groups[0]))
        assert writer.finish({}).rows == 3
        assert {file.name: file.read_bytes() for file in folder.glob("*.parquet")} == whole
        assert [line for line in look.verify(folder) if "3 rows, all read" in line]


def test_of_two_shards_with_the_same_question_the_second_is_set_aside(tmp_path: Path) -> None:
    writer = store.Writer(tmp_path, KEY)
    both = [group(position=0), group(position=1)]
    writer.write(store.table_of(both[1:]), account(both[1]))
    shutil.move(tmp_path / "shard-00000001.parquet", tmp_path / "kept")
    store.Writer(tmp_path, KEY).write(store.table_of(both), account(*both))
    shutil.move(tmp_path / "kept", tmp_path / "shard-00000001.parquet")
    writer = store.Writer(tmp_path, KEY)
    assert (tmp_path / "shard-00000001.parquet.damaged").exists()
    assert writer.finish({}).rows == 2


@pytest.mark.parametrize("finished", [False, True])
def test_a_key_that_was_changed_or_lost_is_told_and_written_again_from_what_the_shards_carry(
    finished: bool, tmp_path: Path
) -> None:
    for content in ('{"format": 7, "ratio": 0.3}', "{", None):
        folder = tmp_path / str(content)
        writer = store.Writer(folder, KEY)
        writer.write(store.table_of([group()]), account(group()))
        if finished:
            writer.finish({})
        written = (folder / "key.json").read_bytes()
        (folder / "key.json").write_text(content) if content else (folder / "key.json").unlink()
        with pytest.raises(StoreError, match="key"):
            list(look.verify(folder))
        if finished:
            store.reopen(folder, store.survey(folder).broken)
        with pytest.raises(StoreError, match="made by something else|another recipe"):
            store.Writer(folder, {"ratio": 0.4})
        assert store.Writer(folder, KEY).finish({}).rows == 1
        assert (folder / "key.json").read_bytes() == written


@pytest.mark.parametrize(
    ("field", "value"), [("rows", 5), ("made_by", {"ratio": 0.1}), ("key", "0" * 64), ("shards", [])]
)
def test_a_manifest_that_was_changed_is_told_and_written_again(field: str, value: object, tmp_path: Path) -> None:
    filled(tmp_path, [group(position=i) for i in range(3)])
    file = tmp_path / "manifest.json"
    written = file.read_bytes()
    file.write_text(json.dumps(json.loads(written) | {field: value}))
    with pytest.raises(StoreError, match="manifest.json: changed after it was written"):
        list(look.verify(tmp_path))
    store.reopen(tmp_path, store.survey(tmp_path).broken)
    store.Writer(tmp_path, KEY).finish({"ratio": 0.2})
    assert file.read_bytes() == written


def test_a_manifest_of_another_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    content = json.dumps({"format": 99, "rows": 0, "shards": [], "made_by": {}})
    (tmp_path / "manifest.json").write_text(content)
    for ask in (store.read_manifest, store.survey):
        with pytest.raises(StoreError, match="expected format 7, found 99: another version"):
            ask(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == content


def test_rows_of_retired_shards_are_found_until_the_store_is_finished(tmp_path: Path) -> None:
    groups = [group(position=i) for i in range(2)]
    writer = store.Writer(tmp_path, KEY)
    for one in groups:
        writer.write(store.table_of([one]), account(one))
    for names in (["shard-00000000.parquet"], ["shard-00000001.parquet"]):
        writer.retire({name: store.read_accounts(tmp_path)[name] for name in names})
    found = store.Lookup([store.Folder(tmp_path) / name for name in store.retired(tmp_path)])
    assert len(found.rows([one.problem.digest for one in groups])) == 2
    for one in groups:
        writer.write(store.table_of([one]), account(one))
    writer.finish({})
    assert store.retired(tmp_path) == []
