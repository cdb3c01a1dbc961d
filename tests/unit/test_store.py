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
from tests.builders import account, group, problem, scored, scores, written

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
    fresh = [None] * 2 if version is None else [np.full(length, -0.5, np.float32) for length in (2, 1)]
    answers = [
        dataclasses.replace(one, behaviour_logprobs=logprobs)
        for one, logprobs in zip(
            (scored([5, 1], k=3), scored([7], k=3, source="student", accuracy=0, finish="length")), fresh, strict=True
        )
    ]
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


@pytest.mark.parametrize("tokens", [1, 5000])
def test_scores_come_back_as_distributions_within_the_error_that_is_stated(tokens: int) -> None:
    given = scores(tokens, k=50, seed=tokens, vocabulary=400)
    gaps, roots, left_out = codec.encode(given)
    found = codec.decode(gaps.ravel(), roots.ravel(), left_out)
    assert np.array_equal(found.top_ids, np.sort(given.top_ids, axis=-1))
    before, after = distributions(given), distributions(found)
    np.testing.assert_allclose(after.sum(-1), 1, atol=1e-5)
    hellinger = np.sqrt(0.5 * np.square(np.sqrt(before) - np.sqrt(after)).sum(-1))
    assert hellinger.max() < 2 * np.sqrt(51 / 8) / codec.LEVELS


@pytest.mark.parametrize(
    ("ids", "logprobs", "left_out", "message"),
    [
        ([3, 3], [-1.0, -1.0], 0.2, "different token ids"),
        ([-1, 3], [-1.0, -1.0], 0.2, "different token ids"),
        ([1, 3], [0.5, -1.0], 0.2, "between 0 and 1"),
        ([1, 3], [np.nan, -1.0], 0.2, "between 0 and 1"),
        ([1, 3], [-1.0, -1.0], -0.2, "between 0 and 1"),
    ],
)
def test_scores_that_are_no_distribution_are_refused(
    ids: list[int], logprobs: list[float], left_out: float, message: str
) -> None:
    arrays = np.array([ids], np.int32), np.array([logprobs], np.float32), np.array([left_out], np.float32)
    with pytest.raises(StoreError, match=message):
        codec.encode(TokenScores(top_ids=arrays[0], top_logprobs=arrays[1], left_out=arrays[2]))


def test_damaged_scores_are_noticed() -> None:
    with pytest.raises(StoreError, match="5 ids and 6 probabilities for 2 tokens"):
        codec.decode(np.ones(5, np.uint32), np.ones(6, np.uint16), np.ones(2, np.uint16))


def test_a_store_is_finished_once_and_takes_rows_of_its_key_alone(tmp_path: Path) -> None:
    writer = written(tmp_path, KEY, GROUPS[:1])
    assert store.read_manifest(tmp_path) is None
    with pytest.raises(StoreError, match="no finished store"):
        store.shard_names(tmp_path)
    with pytest.raises(StoreError, match="made by something else.*ratio: 0.2 there, 0.1 now"):
        store.Writer(tmp_path, {"ratio": 0.1})
    with pytest.raises(StoreError, match=r"asked \[1, 2\], stored \[1\]"):
        writer.write(store.table_of(GROUPS[1:2]), account(*GROUPS[1:]))
    assert [file.name for file in tmp_path.glob("shard-*")] == [FIRST]
    writer.finish({})
    with pytest.raises(StoreError, match="never written over"):
        store.Writer(tmp_path, KEY)


def test_a_writer_goes_on_where_another_one_was_stopped(tmp_path: Path) -> None:
    written(tmp_path, KEY, GROUPS[2:])
    (tmp_path / f"{FIRST}.tmp").write_text("half")
    writer = store.Writer(tmp_path, KEY)
    reason = Rejected(row="p1", reason="too long")
    writer.write(store.table_of(GROUPS[:1]), account(*GROUPS[:2], rejected={1: reason}))
    assert store.read_accounts(tmp_path)[FIRST].rejected == {1: reason}
    manifest = writer.finish({})
    assert ([shard["name"] for shard in manifest.shards], manifest.rows) == ([FIRST, "shard-00000002.parquet"], 2)
    assert [row.position for row in store.read(tmp_path)] == [0, 2]
    names = ["key.json", "manifest.json", FIRST, "shard-00000002.parquet"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_and_leaves_no_shard(tmp_path: Path) -> None:
    writer = store.Writer(tmp_path, KEY)
    (tmp_path / f"{FIRST}.tmp").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=rf"{FIRST}: cannot be written .*No space left.*call again"):
        writer.write(store.table_of(GROUPS[:1]), account(GROUPS[0]))
    assert store.read_accounts(tmp_path) == {}
    assert written(tmp_path, KEY, GROUPS[:1]).finish({}).rows == 1
    assert list(tmp_path.glob("*.tmp")) == []


def changed_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    footer = 8 + int.from_bytes(content[-8:-4], "little")
    content[(len(content) - footer) // 2] ^= 1
    file.write_bytes(content)


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def of_another_store(file: Path) -> None:
    written(file.parent / "other", {"ratio": 0.1}, GROUPS[:1])
    shutil.move(file.parent / "other" / file.name, file)
    shutil.rmtree(file.parent / "other")


def under_another_name(file: Path) -> None:
    shutil.copy(file.with_name("shard-00000001.parquet"), file)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("damage", [changed_byte, torn, Path.unlink, of_another_store, under_another_name])
def test_a_shard_that_is_not_as_it_was_written_costs_itself(
    damage: Callable[[Path], None], finished: bool, tmp_path: Path
) -> None:
    writer = written(tmp_path, KEY, *([one] for one in GROUPS))
    if finished:
        writer.finish({})
    shard = tmp_path / FIRST
    whole = {file.name: file.read_bytes() for file in tmp_path.glob("*.parquet")}
    damage(shard)
    broken = store.survey(tmp_path).broken
    if damage is not Path.unlink or finished:
        assert list(broken) == [FIRST] and str(shard) in broken[FIRST]
        with pytest.raises(StoreError, match=FIRST):
            list(look.verify(tmp_path))
    assert store.Lookup([tmp_path]).rows([GROUPS[0].problem.digest]) == {} or damage is of_another_store
    if finished:
        store.reopen(tmp_path, broken)
    writer = store.Writer(tmp_path, KEY)
    assert store.read_accounts(tmp_path).keys() == whole.keys() - {FIRST}
    writer.write(store.table_of(GROUPS[:1]), account(GROUPS[0]))
    assert writer.finish({}).rows == 3
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*.parquet")} == whole
    assert [line for line in look.verify(tmp_path) if "3 rows, all read" in line]


def test_of_two_shards_with_the_same_question_the_second_is_set_aside(tmp_path: Path) -> None:
    written(tmp_path / "other", KEY, GROUPS[1:2])
    written(tmp_path, KEY, GROUPS[:2])
    shutil.move(tmp_path / "other" / "shard-00000001.parquet", tmp_path)
    writer = store.Writer(tmp_path, KEY)
    assert (tmp_path / "shard-00000001.parquet.damaged").exists()
    with pytest.raises(StoreError, match="questions that another shard holds too, position 1 first"):
        writer.write(store.table_of(GROUPS[1:2]), account(GROUPS[1]))
    assert writer.finish({}).rows == 2


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("content", ['{"format": 7, "ratio": 0.3}', "{", "[]", None])
def test_a_key_that_was_changed_or_lost_is_told_and_written_again_from_what_the_shards_carry(
    content: str | None, finished: bool, tmp_path: Path
) -> None:
    writer = written(tmp_path, KEY, GROUPS[:1])
    if finished:
        writer.finish({})
    file = tmp_path / "key.json"
    before = file.read_bytes()
    file.write_text(content) if content else file.unlink()
    with pytest.raises(StoreError, match="key"):
        list(look.verify(tmp_path))
    if finished:
        store.reopen(tmp_path, store.survey(tmp_path).broken)
    with pytest.raises(StoreError, match="made by something else"):
        store.Writer(tmp_path, {"ratio": 0.4})
    assert store.Writer(tmp_path, KEY).finish({}).rows == 1
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "changed", [{"rows": 5}, {"made_by": {"ratio": 0.1}}, {"key": "0" * 64}, {"shards": []}, {"digest": ""}]
)
def test_a_manifest_that_was_changed_is_told_and_written_again(changed: dict[str, object], tmp_path: Path) -> None:
    written(tmp_path, KEY, GROUPS).finish(KEY)
    file = tmp_path / "manifest.json"
    before = file.read_bytes()
    file.write_text(json.dumps(json.loads(before) | changed))
    with pytest.raises(StoreError, match="manifest.json: changed after it was written"):
        list(look.verify(tmp_path))
    store.reopen(tmp_path, store.survey(tmp_path).broken)
    store.Writer(tmp_path, KEY).finish(KEY)
    assert file.read_bytes() == before


def test_a_manifest_of_another_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    content = json.dumps({"format": 99, "rows": 0, "shards": [], "made_by": {}})
    (tmp_path / "manifest.json").write_text(content)
    for ask in (store.read_manifest, store.survey):
        with pytest.raises(StoreError, match="expected format 7, found 99: another version"):
            ask(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == content


def test_rows_of_retired_shards_are_found_until_the_store_is_finished(tmp_path: Path) -> None:
    shards = [[one] for one in GROUPS]
    writer = written(tmp_path, KEY, *shards)
    for name, one in store.read_accounts(tmp_path).items():
        writer.retire({name: one})
    found = store.Lookup([store.Folder(tmp_path) / name for name in store.retired(tmp_path)])
    rows = found.rows([one.problem.digest for one in GROUPS])
    assert [store.moved(row, 7, 2)["position"].to_pylist() for row in rows.values()] == [[7]] * 3
    written(tmp_path, KEY, *shards).finish({})
    assert store.retired(tmp_path) == []
