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

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from masters_ray.data import with_embedded_pictures
from masters_ray.errors import StoreError
from masters_ray.records import (
    Answer,
    JudgedAnswer,
    Picture,
    Problem,
    RolloutGroup,
    ScoredAnswer,
    TokenScores,
)

if TYPE_CHECKING:
    import ray.data

MANIFEST = "manifest.json"
_FORMAT = 2

_ANSWER = pa.struct(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("accuracy", pa.int8(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        # tokens × k, row by row
        pa.field("top_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("top_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("left_out", pa.list_(pa.float32()), nullable=False),
        pa.field("reference_logprobs", pa.list_(pa.float32()), nullable=False),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("position", pa.int64(), nullable=False),
        pa.field("stage", pa.int32(), nullable=False),
        pa.field("mask_ratio", pa.float64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("choices", pa.list_(pa.string()), nullable=False),
        pa.field("pictures", pa.list_(pa.binary()), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("answers", pa.list_(_ANSWER), nullable=False),
        pa.field("teacher_digest", pa.string(), nullable=False),
        pa.field("student_digest", pa.string(), nullable=False),
    ]
)


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
        pq.write_table(rows, temporary, compression="zstd")
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


def table(groups: Iterable[RolloutGroup]) -> pa.Table:
    """Groups as rows of SCHEMA; pictures are read and embedded."""
    return pa.Table.from_pylist([_from_group(group) for group in groups], schema=SCHEMA)


def groups(table: pa.Table) -> list[RolloutGroup]:
    """Rows of SCHEMA → the groups that they hold."""
    answers = table["answers"].combine_chunks()
    plain = table.drop_columns(["answers"]).to_pylist()
    return [_to_group(row, answers[index].values) for index, row in enumerate(plain)]


def sequence_tokens(table: pa.Table) -> list[int]:
    """What ``packing.sequence_tokens`` says of each row, without reading the scores."""
    answers = table["answers"].combine_chunks()
    read = pc.subtract(pc.list_value_length(answers.flatten().field("token_ids")), 1).to_numpy()
    per_row = np.zeros(len(table), np.int64)
    np.add.at(per_row, pc.list_parent_indices(answers).to_numpy(), read)
    return (per_row + table["prompt_tokens"].to_numpy()).tolist()


def _to_group(row: Mapping[str, Any], answers: pa.StructArray) -> RolloutGroup:
    return RolloutGroup(
        position=row["position"],
        stage=row["stage"],
        mask_ratio=row["mask_ratio"],
        problem=Problem(
            id=row["id"],
            question=row["question"],
            label=row["label"],
            kind=row["kind"],
            choices=tuple(row["choices"]),
            pictures=tuple(Picture(data=data) for data in row["pictures"]),
        ),
        prompt_tokens=row["prompt_tokens"],
        answers=tuple(_to_answer(answers, index) for index in range(len(answers))),
        teacher_digest=row["teacher_digest"],
        student_digest=row["student_digest"],
    )


def _to_answer(answers: pa.StructArray, index: int) -> ScoredAnswer:
    def numbers(name: str) -> np.ndarray:
        return answers.field(name)[index].values.to_numpy()

    def value(name: str) -> Any:
        return answers.field(name)[index].as_py()

    token_ids = value("token_ids")
    tokens = len(token_ids)
    return ScoredAnswer(
        judged=JudgedAnswer(
            answer=Answer(source=value("source"), text=value("text"), token_ids=tuple(token_ids)),
            accuracy=value("accuracy"),
            verdict=value("verdict"),
        ),
        teacher=TokenScores(
            top_ids=numbers("top_ids").reshape(tokens, -1),
            top_logprobs=numbers("top_logprobs").reshape(tokens, -1),
            left_out=numbers("left_out"),
        ),
        reference_logprobs=numbers("reference_logprobs"),
    )


def _from_group(group: RolloutGroup) -> dict[str, Any]:
    problem = with_embedded_pictures(group.problem)
    return {
        "position": group.position,
        "stage": group.stage,
        "mask_ratio": group.mask_ratio,
        "id": problem.id,
        "question": problem.question,
        "label": problem.label,
        "kind": problem.kind,
        "choices": list(problem.choices),
        "pictures": [picture.data for picture in problem.pictures],
        "prompt_tokens": group.prompt_tokens,
        "answers": [_from_answer(answer) for answer in group.answers],
        "teacher_digest": group.teacher_digest,
        "student_digest": group.student_digest,
    }


def _from_answer(scored: ScoredAnswer) -> dict[str, Any]:
    answer = scored.judged.answer
    return {
        "source": answer.source,
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "accuracy": scored.judged.accuracy,
        "verdict": scored.judged.verdict,
        "top_ids": scored.teacher.top_ids.ravel(),
        "top_logprobs": scored.teacher.top_logprobs.ravel(),
        "left_out": scored.teacher.left_out,
        "reference_logprobs": scored.reference_logprobs,
    }


def _flush(file: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())
