"""Small makers of the rows that tests need."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from masters_ray import schedule, store
from masters_ray.records import (
    Answer,
    Finish,
    JudgedAnswer,
    Picture,
    Problem,
    Rejected,
    RolloutGroup,
    ScoredAnswer,
    Source,
    TokenScores,
)
from masters_ray.schedule import Iteration, Stage


def picture(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """What ``png`` encodes."""
    return Image.open(io.BytesIO(png(size))).convert("RGB")


def png(size: tuple[int, int] = (64, 64), colour: tuple[int, int, int] = (250, 240, 240)) -> bytes:
    """An encoded picture of one colour with a red square in it."""
    image = Image.new("RGB", size, colour)
    image.paste((255, 0, 0), (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def encoded_png(
    width: int, height: int, bits: int, colour_type: int, content: bytes, *chunks: tuple[bytes, bytes]
) -> bytes:
    """A PNG that Pillow does not write. content: compressed; chunks: before it, by their names."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", content), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def problem(id: str = "p", label: str = "red", pictures: int = 1, kind: str = "colour") -> Problem:
    return Problem(
        id=id,
        question="what color is the shape?",
        label=label,
        pictures=tuple(Picture(data=png()) for _ in range(pictures)),
        kind=kind,
    )


def scores(tokens: int, k: int = 2, seed: int = 0, vocabulary: int = 50) -> TokenScores:
    """A teacher's top k of random distributions over ``vocabulary`` tokens."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(tokens, vocabulary))
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    order = np.argsort(-logprobs, axis=-1)[:, :k]
    top = np.take_along_axis(logprobs, order, axis=-1)
    left_out = np.clip(1 - np.exp(top).sum(-1), 0, 1)
    return TokenScores(
        top_ids=order.astype(np.int32), top_logprobs=top.astype(np.float32), left_out=left_out.astype(np.float32)
    )


def scored(
    token_ids: Sequence[int],
    *,
    source: Source = "teacher",
    text: str = "red",
    accuracy: int = 1,
    k: int = 2,
    seed: int = 0,
    finish: Finish = "stop",
) -> ScoredAnswer:
    return ScoredAnswer(
        judged=JudgedAnswer(
            answer=Answer(source=source, text=text, token_ids=tuple(token_ids), finish=finish),
            accuracy=accuracy,
            verdict=f"<answer>{accuracy}</answer>",
        ),
        teacher=scores(len(token_ids), k=k, seed=seed),
        reference_logprobs=np.full(len(token_ids), -1.0, np.float32),
    )


def group(
    answers: Sequence[ScoredAnswer] | None = None, *, position: int = 0, stage: int = 0, of: Problem | None = None
) -> RolloutGroup:
    chosen = answers or (scored([5, 1]), scored([6, 7, 1], source="student", accuracy=0, seed=1))
    return RolloutGroup(
        position=position,
        stage=stage,
        mask_ratio=0.2,
        problem=of or problem(id=f"p{position}"),
        prompt_tokens=20,
        answers=tuple(chosen),
        teacher_digest="t" * 64,
        student_digest="s" * 64,
    )


def account(*groups: RolloutGroup, rejected: dict[int, Rejected] | None = None) -> store.Account:
    """Of a shard of these groups' questions, some of which may have been set aside."""
    return store.Account(asked={one.position: one.problem.digest for one in groups}, rejected=rejected or {}, noted={})


def written(folder: store.Where, key: Mapping[str, Any], *shards: Sequence[RolloutGroup]) -> store.Writer:
    """The writer of a store, which goes on with what is there, when it has added these shards."""
    writer = store.Writer(folder, key)
    for groups in shards:
        writer.write(store.table_of(groups), account(*groups))
    return writer


def iterations(stages: Sequence[int], groups_per_step: int, online_fraction: float = 0.0) -> tuple[Iteration, ...]:
    """Of stages with so many questions, which follow one another in the data."""
    ends = [sum(stages[: index + 1]) for index in range(len(stages))]
    plan = [
        (Stage(index=index, ratio=0.2), range(end - count, end))
        for index, (count, end) in enumerate(zip(stages, ends, strict=True))
    ]
    return tuple(schedule.iterations(plan, groups_per_step, online_fraction))
