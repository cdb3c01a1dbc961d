"""Groups as rows of a table, and back: one row per question with its judged and scored answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from masters_ray.errors import DamagedError, StoreError
from masters_ray.records import (
    Answer,
    JudgedAnswer,
    JudgedText,
    Picture,
    Problem,
    RolloutGroup,
    ScoredAnswer,
    TokenScores,
)
from masters_ray.store import codec
from masters_ray.store.ragged import Ragged


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_field("element", kind))  # a list whose elements may be missing is read half as fast


_ANSWER = pa.struct(
    [
        _field("source", pa.string()),
        _field("text", pa.string()),
        _field("finish", pa.string()),
        _field("token_ids", _list(pa.int32())),
        _field("accuracy", pa.int8()),
        _field("verdict", pa.string()),
        _field("reasoning", pa.int8()),  # −1: nobody was asked
        # The teacher's top k at each token, as codec.encode makes them; tokens × k, token by token.
        _field("top_gaps", _list(pa.uint32())),
        _field("top_roots", _list(pa.uint16())),
        _field("left_out_roots", _list(pa.uint16())),
        _field("reference_logprobs", _list(pa.float32())),
        # Of the student that wrote in an online iteration; empty for answers that were written before training.
        _field("behaviour_logprobs", _list(pa.float32())),
    ]
)
_PLAIN = ("source", "text", "finish", "accuracy", "verdict", "reasoning")
OWN = "own_logprobs"
"""Column of a Ragged with a student's log-probabilities."""
_NOT_ASKED = -1
_BEFORE_TRAINING = -1
# One of path and data: by reference, or the encoded bytes.
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
_BY_BYTES = ("top_gaps", "top_roots", "left_out_roots", "reference_logprobs", "behaviour_logprobs")
PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    # Numbers that differ in their low bytes only: byte by byte the high ones compress to nothing.
    "column_encoding": {f"answers.list.element.{name}.list.element": "BYTE_STREAM_SPLIT" for name in _BY_BYTES},
    "use_dictionary": [
        *("teacher_digest", "student_digest", "kind"),
        *("answers.list.element.source", "answers.list.element.finish"),
    ],
    "write_statistics": ["position"],
    "write_page_checksum": True,
}
"""How a table of SCHEMA is written: options of ``pyarrow.parquet.write_table``."""


def table_in(
    content: bytes | pa.Buffer | pa.NativeFile, file: object, columns: Sequence[str] | None = None
) -> pa.Table:
    """The table that a file written with PARQUET holds, or these columns of it. Raises DamagedError, which names the
    file, when a byte of the table is not as it was written."""
    source = content if isinstance(content, pa.NativeFile) else pa.BufferReader(content)
    try:
        # Without Arrow's threads: a process that ends while they do is aborted now and then, and a shard is small.
        return pq.ParquetFile(source, page_checksum_verification=True).read(columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        told = " ".join(str(error).split())
        raise DamagedError(f"{file}: a damaged shard ({told})") from error


@dataclass(frozen=True, kw_only=True)
class Row:
    """A question with its judged answers; what the models said of their tokens stands beside, in columns."""

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
    """The teacher's top k at the tokens of some answers, as it is stored. Raises StoreError when it cannot be."""
    widths = {one.top_ids.shape[-1] for one in scores}
    if len(widths) > 1:
        raise StoreError(f"scores to store: expected one k, found {sorted(widths)}")
    k = widths.pop() if widths else 0
    gaps, roots, left_out_roots = codec.encode(
        TokenScores(
            top_ids=_joined([one.top_ids for one in scores], (0, k), np.int32),
            top_logprobs=_joined([one.top_logprobs for one in scores], (0, k), np.float32),
            left_out=_joined([one.left_out for one in scores], (0,), np.float32),
        )
    )
    columns = {"top_gaps": gaps, "top_roots": roots, "left_out_roots": left_out_roots}
    return Ragged(lengths=np.array([len(one.left_out) for one in scores], np.int64), columns=columns)


def left_out(top: Ragged) -> float:
    """The teacher's mass outside the top k, summed over the tokens of ``top_scores``."""
    return float(codec.left_out(top.columns["top_roots"], top.columns["left_out_roots"]).sum())


def own_logprobs(logprobs: Sequence[np.ndarray]) -> Ragged:
    """A student's log-probabilities of some answers' tokens, float32 [tokens] each, as they are stored."""
    lengths = np.array([len(one) for one in logprobs], np.int64)
    return Ragged(lengths=lengths, columns={OWN: _joined(logprobs, (0,), np.float32)})


def table(rows: Sequence[Row], top: Ragged, reference: Ragged, behaviour: Ragged | None = None) -> pa.Table:
    """Rows of SCHEMA. top, reference, behaviour: ``top_scores``, and ``own_logprobs`` of the student before training
    and of the one that wrote in an online iteration, of all answers, row after row.

    Raises StoreError when they are of other answers.
    """
    judged = [answer for row in rows for answer in row.answers]
    lengths = np.array([len(one.answer.token_ids) for one in judged], np.int64)
    if not all(np.array_equal(lengths, one.lengths) for one in (top, reference, behaviour) if one is not None):
        raise StoreError(f"scores to store: expected those of {len(lengths)} answers, token by token")
    numbers = {**top.columns, "reference_logprobs": reference.columns.get(OWN)}
    numbers["behaviour_logprobs"] = behaviour.columns.get(OWN) if behaviour is not None else None
    columns = pa.Table.from_pylist([_plain(row) for row in rows], schema=SCHEMA.remove(_ANSWERS))
    answers = pa.ListArray.from_arrays(
        _offsets([len(row.answers) for row in rows]),
        _answers(judged, lengths, numbers),
        type=SCHEMA.field("answers").type,
    )
    return columns.add_column(_ANSWERS, SCHEMA.field("answers"), answers)


def table_of(groups: Iterable[RolloutGroup]) -> pa.Table:
    """Groups as rows of SCHEMA, all of online iterations or none. Raises StoreError when scores cannot be stored."""
    given = list(groups)
    scored = [answer for group in given for answer in group.answers]
    rows = [
        Row(**{**vars(group), "answers": [answer.judged for answer in group.answers]})  # the other fields are the same
        for group in given
    ]
    behaviour = [one.behaviour_logprobs for one in scored if one.behaviour_logprobs is not None]
    return table(
        rows,
        top_scores([one.teacher for one in scored]),
        own_logprobs([one.reference_logprobs for one in scored]),
        own_logprobs(behaviour) if behaviour else None,
    )


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


JUDGED = ("position", "kind", "question", "label", "choices", *(f"answers.list.element.{name}" for name in _PLAIN))
"""The columns of a file that ``judged_texts`` needs."""


def judged_texts(table: pa.Table) -> list[JudgedText]:
    """The answers in a table with the columns JUDGED, row after row."""
    return [
        JudgedText(
            position=row["position"],
            kind=row["kind"],
            question=row["question"],
            label=row["label"],
            choices=tuple(row["choices"]),
            source=answer["source"],
            text=answer["text"],
            accuracy=answer["accuracy"],
            verdict=answer["verdict"],
            reasoning=None if answer["reasoning"] == _NOT_ASKED else answer["reasoning"],
        )
        for row in table.to_pylist()
        for answer in row["answers"]
    ]


def sequence_tokens(table: pa.Table) -> list[int]:
    """What ``packing.sequence_tokens`` says of each row, without reading the scores."""
    answers = table["answers"].combine_chunks()
    read = pc.subtract(pc.list_value_length(answers.flatten().field("token_ids")), 1).to_numpy()
    per_row = np.zeros(len(table), np.int64)
    np.add.at(per_row, pc.list_parent_indices(answers).to_numpy(), read)
    return (per_row + table["prompt_tokens"].to_numpy()).tolist()


def answer_tokens(table: pa.Table) -> int:
    """Tokens of all answers of all rows."""
    token_ids = table["answers"].combine_chunks().flatten().field("token_ids")
    return pc.sum(pc.list_value_length(token_ids)).as_py() or 0


def _scored_answers(answers: pa.StructArray) -> list[ScoredAnswer]:
    everything, reference = scores(answers), _numbers(answers, "reference_logprobs")
    behaviour, written = _numbers(answers, "behaviour_logprobs"), 0
    has_behaviour = pc.list_value_length(answers.field("behaviour_logprobs")).to_numpy() > 0
    texts = answers.flatten()
    names = [field.name for field in answers.type]
    plain = {name: texts[names.index(name)].to_pylist() for name in _PLAIN}
    token_ids = texts[names.index("token_ids")].to_pylist()
    found, start = [], 0
    for index, ids in enumerate(token_ids):
        part = slice(start, start := start + len(ids))
        of_writer = slice(written, written := written + len(ids) * bool(has_behaviour[index]))
        found.append(
            ScoredAnswer(
                judged=JudgedAnswer(
                    answer=Answer(
                        source=plain["source"][index],
                        text=plain["text"][index],
                        token_ids=tuple(ids),
                        finish=plain["finish"][index],
                    ),
                    accuracy=plain["accuracy"][index],
                    verdict=plain["verdict"][index],
                    reasoning=None if plain["reasoning"][index] == _NOT_ASKED else plain["reasoning"][index],
                ),
                teacher=TokenScores(
                    top_ids=everything.top_ids[part],
                    top_logprobs=everything.top_logprobs[part],
                    left_out=everything.left_out[part],
                ),
                reference_logprobs=reference[part],
                behaviour_logprobs=behaviour[of_writer] if has_behaviour[index] else None,
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
            pictures=tuple(Picture(**picture) for picture in row["pictures"]),
        ),
        prompt_tokens=row["prompt_tokens"],
        answers=answers,
        teacher_digest=row["teacher_digest"],
        student_digest=row["student_digest"],
        version=None if row["version"] == _BEFORE_TRAINING else row["version"],
    )


def _plain(row: Row) -> dict[str, Any]:
    problem = row.problem
    return {
        "position": row.position,
        "stage": row.stage,
        "mask_ratio": row.mask_ratio,
        "id": problem.id,
        "question": problem.question,
        "label": problem.label,
        "kind": problem.kind,
        "choices": problem.choices,
        "pictures": [vars(picture) for picture in problem.pictures],
        "prompt_tokens": row.prompt_tokens,
        "teacher_digest": row.teacher_digest,
        "student_digest": row.student_digest,
        "version": _BEFORE_TRAINING if row.version is None else row.version,
    }


def _answers(
    judged: Sequence[JudgedAnswer], lengths: np.ndarray, numbers: Mapping[str, np.ndarray | None]
) -> pa.StructArray:
    ids = np.fromiter((token for one in judged for token in one.answer.token_ids), np.int32, int(lengths.sum()))
    plain = {
        "source": [one.answer.source for one in judged],
        "text": [one.answer.text for one in judged],
        "finish": [one.answer.finish for one in judged],
        "accuracy": [one.accuracy for one in judged],
        "verdict": [one.verdict for one in judged],
        "reasoning": [_NOT_ASKED if one.reasoning is None else one.reasoning for one in judged],
    }

    def array(field: pa.Field) -> pa.Array:
        if field.name in plain:
            return pa.array(plain[field.name], field.type)
        if not len(judged):
            return pa.array([], field.type)
        values = ids if field.name == "token_ids" else numbers[field.name]
        if values is None:
            return pa.ListArray.from_arrays(_offsets(0 * lengths), pa.array([], pa.float32()), type=field.type)
        per_token = values.shape[1] if values.ndim > 1 else 1
        return pa.ListArray.from_arrays(_offsets(lengths * per_token), pa.array(values.ravel()), type=field.type)

    return pa.StructArray.from_arrays([array(field) for field in _ANSWER], fields=list(_ANSWER))


def _joined(arrays: Sequence[np.ndarray], empty: tuple[int, ...], kind: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(empty, kind)


def _offsets(lengths: Sequence[int] | np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
