"""What stored teacher scores weigh, how exact they are and how fast they are read: ``make bench-store``.

``python -m bench.store`` measures on a real language model; ``--markdown FILE`` prints what was measured before.
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from bench.aims import Aim, entry
from bench.command import command
from bench.report import machine
from bench.scale import at
from bench.smollm import Distributions, distributions
from masters_ray.learner.work import ALLOCATOR
from masters_ray.records import Answer, JudgedAnswer, RolloutGroup, ScoredAnswer, TokenScores
from masters_ray.store import rows
from tests.builders import group, table_of

KS = (8, 16, 32, 50, 64, 128)
_TOKENS = 300
"""Of each answer."""
_ANSWERS = 8
_READ_ROWS = at(64, 4)
_COLUMNS = ("top_gaps", "top_roots", "left_out_roots")


def measure(repeats: int) -> dict[str, Any]:
    """All figures, and the table by k."""
    real = distributions()
    by_k = [_at(k, real) for k in KS]
    at_50 = by_k[KS.index(50)]
    speeds = _reading(_top(real.teacher, 50), repeats)
    tables = {
        "bytes_per_token_k50": entry(
            "bytes on disk of one token's top 50 and left-out mass", at_50["bytes per token"], Aim(most=114), by_k
        ),
        "jsd_error_k50": entry(
            "mean error that storing adds to a token's JSD, nats, k = 50", at_50["stored: mean error"], Aim(), by_k[3:4]
        ),
        "decode_tokens_per_s": entry(
            "tokens per second from a shard's bytes to ids and log-probabilities, k = 50, one core",
            median(speeds),
            Aim(least=1e6),
            [{"repeat": number, "tokens per second": speed} for number, speed in enumerate(speeds, 1)],
        ),
    }
    figures = {key: entry["value"] for key, entry in tables.items()}
    on = machine(("numpy", "pyarrow", "torch", "transformers"))
    return {"machine": on, "repeats": repeats, **figures, "tables": tables}


def _at(k: int, real: Distributions) -> dict[str, Any]:
    """One line of the table: bytes, and both errors of the JSD to the student."""
    given = _top(real.teacher, k)
    with tempfile.TemporaryDirectory() as folder:
        file = _write(Path(folder) / "shard.parquet", [given])
        content = pq.ParquetFile(file).metadata.row_group(0)
        found = rows.decoded(pq.read_table(file)["answers"].combine_chunks().flatten())
    sizes = dict.fromkeys(_COLUMNS, 0)
    for index in range(content.num_columns):
        column = content.column(index)
        for name in _COLUMNS:
            if f".{name}." in column.path_in_schema:
                sizes[name] += column.total_compressed_size
    tokens = len(given.left_out)
    exact = _jsd(real.teacher, real.student)
    cut, stored = (_top_jsd(scores, real.student) for scores in (given, found))
    return {
        "k": k,
        "bytes per token": sum(sizes.values()) / tokens,
        **{f"{name}, bytes": size / tokens for name, size in sizes.items()},
        "exact JSD": float(exact.mean()),
        "cut to k: mean error": float((exact - cut).mean()),
        "stored: mean error": float(np.abs(stored - cut).mean()),
        "stored: largest error": float(np.abs(stored - cut).max()),
    }


def _reading(given: TokenScores, repeats: int) -> list[float]:
    """Tokens per second, in a file large enough that its beginning costs nothing."""
    random = np.random.default_rng(0)
    columns = [f"answers.list.element.{name}" for name in _COLUMNS]
    answers = [_alike(given, random) for _ in range(_READ_ROWS * _ANSWERS)]
    with tempfile.TemporaryDirectory() as folder:
        file = _write(Path(folder) / "shard.parquet", answers)
        speeds = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            table = pq.ParquetFile(file).read(columns=columns, use_threads=False)
            found = rows.decoded(table["answers"].combine_chunks().flatten())
            speeds.append(len(found.left_out) / (time.perf_counter() - started))
    return speeds[1:]


def _alike(given: TokenScores, random: np.random.Generator) -> TokenScores:
    """Scores of one answer with the statistics of the real ones, but no two tokens the same."""
    chosen = random.integers(0, len(given.left_out), _TOKENS)
    moved = (given.top_ids[chosen] + random.integers(0, 1000, (_TOKENS, 1))) % 49_152
    logprobs = given.top_logprobs[chosen] + random.normal(0, 0.1, given.top_logprobs[chosen].shape)
    logprobs -= np.log(np.exp(logprobs).sum(-1, keepdims=True) + given.left_out[chosen, None])
    left_out = np.clip(1 - np.exp(logprobs).sum(-1), 0, 1)
    return TokenScores(
        top_ids=moved.astype(np.int32), top_logprobs=logprobs.astype(np.float32), left_out=left_out.astype(np.float32)
    )


def _write(file: Path, answers: Sequence[TokenScores]) -> Path:
    """A shard whose groups have these scores, by the door that every stored group takes."""
    pieces = [_answer(one) for one in answers]
    groups: list[RolloutGroup] = [
        group(pieces[start : start + _ANSWERS], position=start) for start in range(0, len(pieces), _ANSWERS)
    ]
    pq.write_table(table_of(groups), file, **rows.PARQUET)
    return file


def _answer(scores: TokenScores) -> ScoredAnswer:
    tokens = len(scores.left_out)
    answer = Answer(source="teacher", text="", token_ids=tuple(range(tokens)), finish="stop")
    judged = JudgedAnswer(answer=answer, accuracy=1, verdict="")
    return ScoredAnswer(judged=judged, teacher=scores, reference_logprobs=np.zeros(tokens, np.float32))


def _top(logprobs: np.ndarray, k: int) -> TokenScores:
    ids = np.argsort(-logprobs, axis=-1)[:, :k]
    top = np.take_along_axis(logprobs, ids, axis=-1)
    left_out = np.clip(1 - np.exp(top.astype(np.float64)).sum(-1), 0, 1)
    return TokenScores(top_ids=ids.astype(np.int32), top_logprobs=top, left_out=left_out.astype(np.float32))


def _top_jsd(scores: TokenScores, student: np.ndarray) -> np.ndarray:
    own = np.exp(np.take_along_axis(student, scores.top_ids, axis=-1).astype(np.float64))
    return _divergence(
        np.c_[np.exp(scores.top_logprobs.astype(np.float64)), scores.left_out],
        np.c_[own, np.clip(1 - own.sum(-1), 0, 1)],
    )


def _jsd(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [
            _divergence(np.exp(left.astype(np.float64)), np.exp(right.astype(np.float64)))
            for left, right in zip(np.array_split(one, 64), np.array_split(other, 64), strict=True)
        ]
    )


def _divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    middle = (p + q) / 2
    return sum(0.5 * (one * np.log(np.maximum(one, 1e-300) / np.maximum(middle, 1e-300))).sum(-1) for one in (p, q))


if __name__ == "__main__":
    if os.environ.get("GLIBC_TUNABLES") != ALLOCATOR:  # as the learner's workers have it; read when a process starts
        os.environ["GLIBC_TUNABLES"] = ALLOCATOR
        os.execv(sys.executable, [sys.executable, "-m", "bench.store", *sys.argv[1:]])
    command("store", __doc__.splitlines()[0], 5, measure)
