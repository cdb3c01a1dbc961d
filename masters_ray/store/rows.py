"""Converts groups to rows of a table and back: one row per question with its judged and scored answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
from masters_ray.store.ragged import NO_ANSWERS, Ragged


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_field("element", kind))  # lists of nullable elements are read half as fast


_WRITTEN = pa.schema(
    [
        _field("source", pa.string()),
        _field("text", pa.string()),
        _field("finish", pa.string()),
        _field("token_ids", _list(pa.int32())),
        _field("accuracy", pa.int8()),
        _field("verdict", pa.string()),
        _field("reasoning", pa.int8()),  # −1: no judge was asked
    ]
)
_SCORES = pa.schema(
    [
        # The teacher's top k at each token as codec.encode returns it: gaps and roots flat, [tokens × k].
        _field("top_gaps", _list(pa.uint32())),
        _field("top_roots", _list(pa.uint16())),
        _field("left_out_roots", _list(pa.uint16())),
        _field("reference_logprobs", _list(pa.float32())),
        # [tokens] under the student that wrote in an online iteration; empty for answers written before training.
        _field("behaviour_logprobs", _list(pa.float32())),
    ]
)
_ANSWER = pa.struct([*_WRITTEN, *_SCORES])
# Either path, a reference, or data, the encoded bytes.
_PICTURE = pa.struct([pa.field("path", pa.string()), pa.field("data", pa.binary()), pa.field("digest", pa.string())])
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
        _field("pictures", _list(_PICTURE)),
        _field("prompt_tokens", pa.int32()),
        _field("answers", _list(_ANSWER)),
        _field("teacher_digest", pa.string()),
        _field("student_digest", pa.string()),
        _field("version", pa.int32()),  # −1: written before training
    ]
)
_ANSWERS = SCHEMA.get_field_index("answers")
_TOP = ("top_gaps", "top_roots", "left_out_roots")
_NONE = -1
"""Stored in place of None."""
OWN = "own_logprobs"
"""Name of the Ragged column with a student's log-probs."""
PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    # These numbers differ only in their low bytes: split into bytes, the high bytes compress to almost nothing.
    "column_encoding": {f"answers.list.element.{name}.list.element": "BYTE_STREAM_SPLIT" for name in _SCORES.names},
    "use_dictionary": [
        *("teacher_digest", "student_digest", "kind"),
        *("answers.list.element.source", "answers.list.element.finish"),
    ],
    "write_statistics": ["position"],
    "write_page_checksum": True,
}
"""Options of ``pyarrow.parquet.write_table`` for a table of SCHEMA."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A question with its judged answers, without the scores of their tokens, which ``table`` takes as columns."""

    position: int
    stage: int
    mask_ratio: float
    problem: Problem
    prompt_tokens: int
    answers: Sequence[JudgedAnswer]
    teacher_digest: str
    student_digest: str
    version: int | None = None
    """As ``RolloutGroup.version``."""


def top_scores(scores: Sequence[TokenScores]) -> Ragged:
    """Encodes the teacher's scores of several answers. Raises StoreError when k differs, or as ``codec.encode``."""
    if not scores:
        return NO_ANSWERS
    if len(widths := {one.top_ids.shape[-1] for one in scores}) > 1:
        raise StoreError(f"scores to store: expected one k, found {sorted(widths)}")
    names = ("top_ids", "top_logprobs", "left_out")
    together = TokenScores(**{name: np.concatenate([getattr(one, name) for one in scores]) for name in names})
    columns = dict(zip(_TOP, codec.encode(together), strict=True))
    return Ragged(lengths=_lengths([one.left_out for one in scores]), columns=columns)


def left_out(top: Ragged) -> float:
    """Returns the teacher's mass outside the top k, summed over the tokens of ``top_scores``."""
    return float(codec.decode(*(top.columns[name] for name in _TOP)).left_out.sum())


def own_logprobs(logprobs: Sequence[np.ndarray]) -> Ragged:
    """Joins a student's log-probs of several answers, float32 [tokens] each, for the store."""
    if not logprobs:
        return NO_ANSWERS
    return Ragged(lengths=_lengths(logprobs), columns={OWN: np.concatenate(logprobs)})


def table(rows: Sequence[Row], top: Ragged, reference: Ragged, behaviour: Ragged | None = None) -> pa.Table:
    """Returns rows of SCHEMA. top: ``top_scores``. reference, behaviour: ``own_logprobs`` under the student before
    training and under the student that wrote in an online iteration. All three: of all answers, row after row.

    Raises StoreError when their lengths are not those of the answers.
    """
    judged = [answer for row in rows for answer in row.answers]
    lengths = _lengths([one.answer.token_ids for one in judged])
    if not all(np.array_equal(lengths, one.lengths) for one in (top, reference, behaviour) if one is not None):
        raise StoreError(f"scores to store: expected those of {len(lengths)} answers, token by token")
    numbers = {**top.columns, "reference_logprobs": reference.columns.get(OWN)}
    numbers["behaviour_logprobs"] = behaviour.columns.get(OWN) if behaviour is not None else None
    texts = {name: [getattr(one.answer, name) for one in judged] for name in ("source", "text", "finish", "token_ids")}
    verdicts = {name: [getattr(one, name) for one in judged] for name in ("accuracy", "verdict")}
    reasoning = {"reasoning": [_to_stored(one.reasoning) for one in judged]}
    written = pa.RecordBatch.from_pydict(texts | verdicts | reasoning, schema=_WRITTEN)
    scores = [_lists(numbers.get(field.name), lengths, field.type) for field in _SCORES]
    questions = [
        vars(row)
        | vars(row.problem)
        | {"pictures": [vars(one) for one in row.problem.pictures], "version": _to_stored(row.version)}
        for row in rows
    ]
    answers = pa.ListArray.from_arrays(
        _offsets(_lengths([row.answers for row in rows])),
        pa.StructArray.from_arrays([*written.columns, *scores], fields=list(_ANSWER)),
        type=SCHEMA.field(_ANSWERS).type,
    )
    others = pa.Table.from_pylist(questions, schema=SCHEMA.remove(_ANSWERS))
    return others.add_column(_ANSWERS, SCHEMA.field(_ANSWERS), answers)


def table_of(groups: Iterable[RolloutGroup]) -> pa.Table:
    """Returns groups, all or none of online iterations, as rows of SCHEMA. Raises StoreError as ``table``."""
    given = list(groups)
    scored = [answer for group in given for answer in group.answers]
    rows = [Row(**vars(group) | {"answers": [answer.judged for answer in group.answers]}) for group in given]
    behaviour = [one.behaviour_logprobs for one in scored if one.behaviour_logprobs is not None]
    return table(
        rows,
        top_scores([one.teacher for one in scored]),
        own_logprobs([one.reference_logprobs for one in scored]),
        own_logprobs(behaviour) if behaviour else None,
    )


def groups(table: pa.Table) -> list[RolloutGroup]:
    """Returns the groups in rows of SCHEMA. Raises StoreError when scores and answers differ in tokens."""
    lists = table["answers"].combine_chunks()
    answers = iter(_scored_answers(lists.flatten()))
    found = []
    for row, count in zip(
        table.drop_columns(["answers"]).to_pylist(), pc.list_value_length(lists).to_pylist(), strict=True
    ):
        problem = Problem(
            id=row.pop("id"),
            question=row.pop("question"),
            label=row.pop("label"),
            kind=row.pop("kind"),
            choices=tuple(row.pop("choices")),
            pictures=tuple(Picture(**picture) for picture in row.pop("pictures")),
        )
        row["version"] = _from_stored(row["version"])
        found.append(RolloutGroup(**row, problem=problem, answers=tuple(islice(answers, count))))
    return found


def scores(answers: pa.StructArray) -> TokenScores:
    """Returns the teacher's scores of all tokens of stored answers, answer after answer."""
    return codec.decode(*(_numbers(answers, name) for name in _TOP))


def _numbers(answers: pa.StructArray, name: str) -> np.ndarray:
    return answers.field(name).flatten().to_numpy()


def sequence_tokens(table: pa.Table) -> list[int]:
    """Returns the tokens that each row occupies in a packed sequence, without reading the scores."""
    answers = table["answers"].combine_chunks()
    read = pc.subtract(pc.list_value_length(answers.flatten().field("token_ids")), 1).to_numpy()
    per_row = np.bincount(pc.list_parent_indices(answers).to_numpy(), read, len(table)).astype(np.int64)
    return (per_row + table["prompt_tokens"].to_numpy()).tolist()


def answer_tokens(table: pa.Table) -> int:
    """Returns the number of tokens in all answers of all rows."""
    token_ids = table["answers"].combine_chunks().flatten().field("token_ids")
    return pc.sum(pc.list_value_length(token_ids)).as_py() or 0


def moved(row: pa.Table, position: int, stage: int) -> pa.Table:
    """Returns a table's only row with another position and stage."""
    for name, value in (("position", position), ("stage", stage)):
        field = SCHEMA.field(name)
        row = row.set_column(SCHEMA.get_field_index(name), field, pa.array([value], field.type))
    return row


def _scored_answers(answers: pa.StructArray) -> list[ScoredAnswer]:
    teacher, reference = scores(answers), _numbers(answers, "reference_logprobs")
    behaviour, behaviour_at = _numbers(answers, "behaviour_logprobs"), 0
    fresh = pc.list_value_length(answers.field("behaviour_logprobs")).to_pylist()
    columns = pa.RecordBatch.from_struct_array(answers).select(_WRITTEN.names)
    found, start = [], 0
    for one, fresh_tokens in zip(columns.to_pylist(), fresh, strict=True):
        token_ids, reasoning = tuple(one.pop("token_ids")), _from_stored(one.pop("reasoning"))
        part = slice(start, start := start + len(token_ids))
        of_writer = slice(behaviour_at, behaviour_at := behaviour_at + fresh_tokens)
        answer = Answer(source=one.pop("source"), text=one.pop("text"), token_ids=token_ids, finish=one.pop("finish"))
        found.append(
            ScoredAnswer(
                judged=JudgedAnswer(**one, answer=answer, reasoning=reasoning),
                teacher=TokenScores(**{name: numbers[part] for name, numbers in vars(teacher).items()}),
                reference_logprobs=reference[part],
                behaviour_logprobs=behaviour[of_writer] if fresh_tokens else None,
            )
        )
    if start != len(teacher.left_out) or start != len(reference):
        raise StoreError(f"stored answers: {start} tokens, but scores of {len(teacher.left_out)}")
    return found


def _to_stored(value: int | None) -> int:
    return _NONE if value is None else value


def _from_stored(stored: int) -> int | None:
    return None if stored == _NONE else stored


def _lists(values: np.ndarray | None, lengths: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Splits values, [tokens of all answers] or [all tokens, k], into a list per answer; None: empty lists."""
    if values is None:
        return pa.array([[]] * len(lengths), kind)
    per_token = values.shape[1] if values.ndim > 1 else 1
    return pa.ListArray.from_arrays(_offsets(lengths * per_token), pa.array(values.ravel()), type=kind)


def _lengths(sequences: Sequence[Any]) -> np.ndarray:
    return np.array([len(one) for one in sequences], np.int64)


def _offsets(lengths: np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
