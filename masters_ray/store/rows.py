"""Converts groups to rows of a table and back: one row per question with its judged and scored answers."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from masters_ray.errors import StoreError
from masters_ray.families import GroupLayout
from masters_ray.records import Answer, JudgedAnswer, Picture, Problem, RolloutGroup, Row, ScoredAnswer, TokenScores
from masters_ray.store import codec


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_field("element", kind))  # lists of nullable elements are read half as fast


LOGPROBS = _list(pa.float32())  # type of a student's log-probs of the tokens of an answer
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
_TOP = pa.struct(
    [
        # The teacher's top k at each token as codec.encode returns it: gaps and roots flat, [tokens × k].
        _field("top_gaps", _list(pa.uint32())),
        _field("top_roots", _list(pa.uint16())),
        _field("left_out_roots", _list(pa.uint16())),
    ]
)
_SCORES = [
    *_TOP,
    _field("reference_logprobs", LOGPROBS),
    # [tokens] under the student that wrote in an online iteration; empty for answers written before training.
    _field("behaviour_logprobs", LOGPROBS),
]
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
        _field("references", _list(pa.string())),
        _field("suffix", pa.string()),
        _field("rule", pa.string()),
        _field("dataset", pa.string()),
        _field("pictures", _list(_PICTURE)),
        _field("prompt_tokens", pa.int32()),
        _field("answers", _list(_ANSWER)),
        _field("teacher_digest", pa.string()),
        _field("student_digest", pa.string()),
        _field("version", pa.int32()),  # −1: written before training
    ]
)
_ANSWERS = SCHEMA.get_field_index("answers")
_OF_ANSWERS = "answers.list.element."
_OF_SOURCE = ("kind", "suffix", "rule", "dataset")
PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    # These numbers differ only in their low bytes: split into bytes, the high bytes compress to almost nothing.
    "column_encoding": {f"{_OF_ANSWERS}{field.name}.list.element": "BYTE_STREAM_SPLIT" for field in _SCORES},
    "use_dictionary": ["teacher_digest", "student_digest", *_OF_SOURCE, f"{_OF_ANSWERS}source", f"{_OF_ANSWERS}finish"],
    "write_statistics": ["position"],
    "write_page_checksum": True,
}
"""Options of ``pyarrow.parquet.write_table`` for a table of SCHEMA."""


def top_scores(scores: Sequence[TokenScores]) -> pa.StructArray:
    """Encodes the teacher's scores of several answers of the same k, for the store. Raises as ``codec.encode``."""
    if not scores:
        return pa.array([], _TOP)
    names = ("top_ids", "top_logprobs", "left_out")
    together = TokenScores(**{name: np.concatenate([getattr(one, name) for one in scores]) for name in names})
    ends = np.cumsum([0, *(len(one.left_out) for one in scores)])
    columns = [
        pa.ListArray.from_arrays((ends * (numbers.size // ends[-1])).astype(np.int32), numbers.ravel(), type=field.type)
        for field, numbers in zip(_TOP, codec.encode(together), strict=True)
    ]
    return pa.StructArray.from_arrays(columns, fields=list(_TOP))


def decoded(scores: pa.StructArray) -> TokenScores:
    """Returns the teacher's scores of all tokens, of ``top_scores`` or of stored answers, answer after answer."""
    return codec.decode(*(scores.field(field.name).flatten().to_numpy() for field in _TOP))


def table(
    rows: Sequence[Row],
    answers: Sequence[Sequence[JudgedAnswer]],
    top: pa.StructArray,
    reference: pa.ListArray,
    behaviour: pa.ListArray | None = None,
) -> pa.Table:
    """Returns rows of SCHEMA. answers: those of each row. top (``top_scores``), reference and behaviour (LOGPROBS under
    the student before training and under the writer of an online iteration): of all answers, row after row. Raises
    StoreError when their lengths are not those of the answers."""
    judged = [one for own in answers for one in own]
    values: dict[str, list[Any]] = {
        "reasoning": [-1 if one.reasoning is None else one.reasoning for one in judged],
        **{name: [getattr(one, name) for one in judged] for name in ("accuracy", "verdict")},
        **{name: [getattr(one.answer, name) for one in judged] for name in ("source", "text", "token_ids", "finish")},
    }
    written = pa.RecordBatch.from_pydict(values, schema=_WRITTEN)
    lengths = pc.list_value_length(written["token_ids"])
    for numbers in (top.field("left_out_roots"), reference, behaviour):
        if numbers is not None and not pc.list_value_length(numbers).equals(lengths):
            raise StoreError(f"scores to store: expected those of {len(lengths)} answers, token by token")
    scores = [*top.flatten(), reference, pa.array([[]] * len(lengths), LOGPROBS) if behaviour is None else behaviour]
    lists = pa.ListArray.from_arrays(
        np.cumsum([0, *map(len, answers)]),
        pa.StructArray.from_arrays([*written.columns, *scores], fields=list(_ANSWER)),
        type=SCHEMA.field(_ANSWERS).type,
    )
    questions = [
        vars(row)
        | vars(row.problem)
        | {"pictures": list(map(vars, row.problem.pictures)), "version": -1 if row.version is None else row.version}
        for row in rows
    ]
    others = pa.Table.from_pylist(questions, schema=SCHEMA.remove(_ANSWERS))
    return others.add_column(_ANSWERS, SCHEMA.field(_ANSWERS), lists)


def groups(table: pa.Table) -> list[RolloutGroup]:
    """Returns the groups in rows of SCHEMA. Raises StoreError when scores and answers differ in tokens."""
    lists = table["answers"].combine_chunks()
    answers = iter(_scored_answers(lists.flatten()))
    counts = pc.list_value_length(lists).to_pylist()
    found = []
    for row, count in zip(table.drop_columns(["answers"]).to_pylist(), counts, strict=True):
        pictures = tuple(Picture(**one) for one in row.pop("pictures"))
        lists = {name: tuple(row.pop(name)) for name in ("choices", "references")}
        texts = {name: row.pop(name) for name in ("id", "question", "label", *_OF_SOURCE)}
        row["problem"] = Problem(**texts, **lists, pictures=pictures)
        row["version"] = None if row["version"] < 0 else row["version"]
        found.append(RolloutGroup(**row, answers=tuple(islice(answers, count))))
    return found


def _scored_answers(answers: pa.StructArray) -> list[ScoredAnswer]:
    lengths = pc.list_value_length(answers.field("token_ids")).to_numpy()

    def by_answer(numbers: np.ndarray) -> list[np.ndarray]:
        if len(numbers) != lengths.sum():
            raise StoreError(f"stored answers: {lengths.sum()} tokens, but scores of {len(numbers)}")
        return np.split(numbers, np.cumsum(lengths))[:-1]

    teacher = {name: by_answer(numbers) for name, numbers in vars(decoded(answers)).items()}
    reference = by_answer(answers.field("reference_logprobs").flatten().to_numpy())
    behaviour = answers.field("behaviour_logprobs").to_numpy(zero_copy_only=False)
    found = []
    for index, one in enumerate(pa.RecordBatch.from_struct_array(answers).select(_WRITTEN.names).to_pylist()):
        texts = {name: one.pop(name) for name in ("source", "text", "finish")}
        answer = Answer(**texts, token_ids=tuple(one.pop("token_ids")))
        reasoning = None if one["reasoning"] < 0 else one["reasoning"]
        found.append(
            ScoredAnswer(
                judged=JudgedAnswer(**one | {"answer": answer, "reasoning": reasoning}),
                teacher=TokenScores(**{name: numbers[index] for name, numbers in teacher.items()}),
                reference_logprobs=reference[index],
                behaviour_logprobs=behaviour[index] if len(behaviour[index]) else None,
            )
        )
    return found


def sequence_tokens(table: pa.Table, layout: GroupLayout = "prompt_once") -> list[int]:
    """Returns the tokens that each row occupies in the learner's batch, without reading the scores."""
    answers = table["answers"].combine_chunks()
    read = pc.subtract(pc.list_value_length(answers.flatten().field("token_ids")), 1).to_numpy()
    per_row = np.bincount(pc.list_parent_indices(answers).to_numpy(), read, len(table)).astype(np.int64)
    prompts = 1 if layout == "prompt_once" else pc.list_value_length(answers).to_numpy()
    return (per_row + prompts * table["prompt_tokens"].to_numpy()).tolist()


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
