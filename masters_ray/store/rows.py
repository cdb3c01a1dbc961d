"""Groups as rows of a table, and back: one row per question with its judged and scored answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
from masters_ray.store import codec


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_field("element", kind))  # a list whose elements may be missing is read half as fast


_ANSWER = pa.struct(
    [
        _field("source", pa.string()),
        _field("text", pa.string()),
        _field("token_ids", _list(pa.int32())),
        _field("accuracy", pa.int8()),
        _field("verdict", pa.string()),
        # The teacher's top k at each token, as codec.encode makes them; tokens × k, token by token.
        _field("top_gaps", _list(pa.uint32())),
        _field("top_roots", _list(pa.uint16())),
        _field("left_out_roots", _list(pa.uint16())),
        _field("reference_logprobs", _list(pa.float32())),
    ]
)
SCHEMA = pa.schema(
    [
        _field("position", pa.int64()),
        _field("stage", pa.int32()),
        _field("mask_ratio", pa.float64()),
        _field("id", pa.string()),
        _field("question", pa.string()),
        _field("label", pa.string()),
        _field("kind", pa.string()),
        _field("choices", _list(pa.string())),
        _field("pictures", _list(pa.binary())),
        _field("prompt_tokens", pa.int32()),
        _field("answers", _list(_ANSWER)),
        _field("teacher_digest", pa.string()),
        _field("student_digest", pa.string()),
    ]
)
_BY_BYTES = ("top_gaps", "top_roots", "left_out_roots", "reference_logprobs")
PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    # Numbers that differ in their low bytes only: byte by byte the high ones compress to nothing.
    "column_encoding": {f"answers.list.element.{name}.list.element": "BYTE_STREAM_SPLIT" for name in _BY_BYTES},
    "use_dictionary": ["teacher_digest", "student_digest", "kind", "answers.list.element.source"],
    "write_statistics": ["position"],
}
"""How a table of SCHEMA is written: options of ``pyarrow.parquet.write_table``."""


def table(groups: Iterable[RolloutGroup]) -> pa.Table:
    """Groups as rows of SCHEMA; pictures are read and embedded. Raises StoreError when scores cannot be stored."""
    rows = list(groups)
    columns = pa.Table.from_pylist([_plain(group) for group in rows], schema=SCHEMA.remove(_ANSWERS))
    answers = pa.ListArray.from_arrays(
        _offsets(len(group.answers) for group in rows),
        _answers([answer for group in rows for answer in group.answers]),
        type=SCHEMA.field("answers").type,
    )
    return columns.add_column(_ANSWERS, SCHEMA.field("answers"), answers)


_ANSWERS = SCHEMA.get_field_index("answers")


def groups(table: pa.Table) -> list[RolloutGroup]:
    """Rows of SCHEMA → the groups that they hold."""
    lists = table["answers"].combine_chunks()
    answers = iter(_scored_answers(lists.flatten()))
    counts = pc.list_value_length(lists).to_pylist()
    plain = table.drop_columns(["answers"]).to_pylist()
    return [_group(row, tuple(next(answers) for _ in range(count))) for row, count in zip(plain, counts, strict=True)]


def scores(answers: pa.StructArray) -> TokenScores:
    """The teacher's scores of all tokens of some stored answers, one answer after the other."""
    return codec.decode(
        _numbers(answers, "top_gaps"), _numbers(answers, "top_roots"), _numbers(answers, "left_out_roots")
    )


def sequence_tokens(table: pa.Table) -> list[int]:
    """What ``packing.sequence_tokens`` says of each row, without reading the scores."""
    answers = table["answers"].combine_chunks()
    read = pc.subtract(pc.list_value_length(answers.flatten().field("token_ids")), 1).to_numpy()
    per_row = np.zeros(len(table), np.int64)
    np.add.at(per_row, pc.list_parent_indices(answers).to_numpy(), read)
    return (per_row + table["prompt_tokens"].to_numpy()).tolist()


def _scored_answers(answers: pa.StructArray) -> list[ScoredAnswer]:
    everything, reference = scores(answers), _numbers(answers, "reference_logprobs")
    texts = answers.flatten()
    names = [field.name for field in answers.type]
    plain = {name: texts[names.index(name)].to_pylist() for name in ("source", "text", "accuracy", "verdict")}
    token_ids = texts[names.index("token_ids")].to_pylist()
    found, start = [], 0
    for index, ids in enumerate(token_ids):
        part = slice(start, start := start + len(ids))
        found.append(
            ScoredAnswer(
                judged=JudgedAnswer(
                    answer=Answer(source=plain["source"][index], text=plain["text"][index], token_ids=tuple(ids)),
                    accuracy=plain["accuracy"][index],
                    verdict=plain["verdict"][index],
                ),
                teacher=TokenScores(
                    top_ids=everything.top_ids[part],
                    top_logprobs=everything.top_logprobs[part],
                    left_out=everything.left_out[part],
                ),
                reference_logprobs=reference[part],
            )
        )
    if start != len(everything.left_out) or start != len(reference):
        raise StoreError(f"stored answers: {start} tokens, but scores of {len(everything.left_out)}")
    return found


def _numbers(answers: pa.StructArray, name: str) -> np.ndarray:
    return answers.field(name).flatten().to_numpy()


def _group(row: Mapping[str, Any], answers: tuple[ScoredAnswer, ...]) -> RolloutGroup:
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
        answers=answers,
        teacher_digest=row["teacher_digest"],
        student_digest=row["student_digest"],
    )


def _plain(group: RolloutGroup) -> dict[str, Any]:
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
        "teacher_digest": group.teacher_digest,
        "student_digest": group.student_digest,
    }


def _answers(scored: Sequence[ScoredAnswer]) -> pa.StructArray:
    judged = [one.judged for one in scored]
    lengths = [len(one.answer.token_ids) for one in judged]
    widths = {one.teacher.top_ids.shape[-1] for one in scored}
    if len(widths) > 1:
        raise StoreError(f"scores to store: expected one k, found {sorted(widths)}")
    k = widths.pop() if widths else 0
    gaps, roots, left_out_roots = codec.encode(
        TokenScores(
            top_ids=_joined([one.teacher.top_ids for one in scored], (0, k), np.int32),
            top_logprobs=_joined([one.teacher.top_logprobs for one in scored], (0, k), np.float32),
            left_out=_joined([one.teacher.left_out for one in scored], (0,), np.float32),
        )
    )
    reference = _joined([one.reference_logprobs for one in scored], (0,), np.float32)
    token_ids = np.array([token for one in judged for token in one.answer.token_ids], np.int32)
    columns = {
        "source": [one.answer.source for one in judged],
        "text": [one.answer.text for one in judged],
        "token_ids": _lists(token_ids, lengths),
        "accuracy": [one.accuracy for one in judged],
        "verdict": [one.verdict for one in judged],
        "top_gaps": _lists(gaps.ravel(), [k * length for length in lengths]),
        "top_roots": _lists(roots.ravel(), [k * length for length in lengths]),
        "left_out_roots": _lists(left_out_roots, lengths),
        "reference_logprobs": _lists(reference, lengths),
    }
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, _ANSWER.field(name).type)
        for name, column in columns.items()
    ]
    return pa.StructArray.from_arrays(arrays, fields=list(_ANSWER))


def _joined(arrays: Sequence[np.ndarray], empty: tuple[int, ...], kind: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(empty, kind)


def _lists(values: np.ndarray, lengths: Iterable[int]) -> pa.ListArray:
    content = pa.array(values)
    return pa.ListArray.from_arrays(_offsets(lengths), content, type=_list(content.type))


def _offsets(lengths: Iterable[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(list(lengths))]), pa.int32())
