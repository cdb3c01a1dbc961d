"""Small makers of the rows that tests need."""

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from safetensors.torch import load_file, save_file

from masters_ray import store
from masters_ray.config import Engine, Judge
from masters_ray.data import Overlap
from masters_ray.evaluate import Accuracy, Change, Interval
from masters_ray.method import schedule
from masters_ray.method.schedule import Iteration, Stage
from masters_ray.records import (
    Answer,
    AnswerTally,
    JudgedAnswer,
    LogprobMismatch,
    Picture,
    Problem,
    Rejected,
    RolloutGroup,
    ScoredAnswer,
    StageOutcome,
    StepMetrics,
    TokenScores,
)
from masters_ray.replicas.processes import Role
from masters_ray.replicas.spec import ReplicaSpec
from masters_ray.report import summary as facts
from tests.conftest import PAIR


def checkpoint(
    folder: Path,
    of: str = "student",
    *,
    weights: bool = False,
    tensors: Callable[[dict[str, Any]], object] | None = None,
    template: str | None = None,
    **files: dict[str, Any] | Callable[[dict[str, Any]], object],
) -> Path:
    """A copy of a shipped model. weights: also its weights; tensors: what is done to them; files: by their
    names, values to set in their JSON or what is done to it."""
    ignored = None if weights or tensors else shutil.ignore_patterns("*.safetensors")
    shutil.copytree(PAIR / of, folder, ignore=ignored, dirs_exist_ok=True)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    for name, change in files.items():
        file = folder / f"{name}.json"
        content = json.loads(file.read_text())
        content.update(change) if isinstance(change, dict) else change(content)
        file.write_text(json.dumps(content))
    if tensors is not None:
        held = load_file(folder / "model.safetensors")
        tensors(held)
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


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
    shown = tuple(Picture(data=png()) for _ in range(pictures))
    return Problem(id=id, question="what color is the shape?", label=label, pictures=shown, kind=kind)


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


def scored(token_ids: Sequence[int], *, accuracy: int = 1, k: int = 2, seed: int = 0, **answer: Any) -> ScoredAnswer:
    """answer: what is not as in the teacher's own."""
    answer = {"source": "teacher", "text": "red", "finish": "stop"} | answer | {"token_ids": tuple(token_ids)}
    judged = JudgedAnswer(answer=Answer(**answer), accuracy=accuracy, verdict=f"<answer>{accuracy}</answer>")
    reference = np.full(len(token_ids), -1.0, np.float32)
    return ScoredAnswer(judged=judged, teacher=scores(len(token_ids), k=k, seed=seed), reference_logprobs=reference)


def group(
    answers: Sequence[ScoredAnswer] | None = None, *, position: int = 0, stage: int = 0, of: Problem | None = None
) -> RolloutGroup:
    chosen = answers or (scored([5, 1]), scored([6, 7, 1], source="student", accuracy=0, seed=1))
    told: dict[str, Any] = {"mask_ratio": 0.2, "prompt_tokens": 20, "teacher_digest": "t" * 64}
    told |= {"problem": of or problem(id=f"p{position}"), "answers": tuple(chosen), "student_digest": "s" * 64}
    return RolloutGroup(position=position, stage=stage, **told)


def replica_spec(*roles: Role, **changes: Any) -> ReplicaSpec:
    """One process on half a CPU."""
    content: dict[str, Any] = {"key": "student", "checkpoint": "none", "engine": Engine(), "count": 1}
    return ReplicaSpec(roles=roles, **(content | {"cpus": 0.5, "gpus": 0.0} | changes))


def table_of(groups: Iterable[RolloutGroup]) -> pa.Table:
    """Groups, all or none of online iterations, as rows of the store."""
    given = list(groups)
    scored = [answer for group in given for answer in group.answers]
    behaviour = [one.behaviour_logprobs for one in scored if one.behaviour_logprobs is not None]
    return store.table(
        given,
        [[answer.judged for answer in group.answers] for group in given],
        store.top_scores([one.teacher for one in scored]),
        pa.array([one.reference_logprobs for one in scored], store.LOGPROBS),
        pa.array(behaviour, store.LOGPROBS) if behaviour else None,
    )


def account(*groups: RolloutGroup, rejected: dict[int, Rejected] | None = None) -> store.Account:
    """Of a shard of these groups' questions, some of which may have been set aside."""
    return store.Account(asked={one.position: one.problem.digest for one in groups}, rejected=rejected or {}, noted={})


def written(folder: store.Where, key: Mapping[str, Any], *shards: Sequence[RolloutGroup]) -> store.Writer:
    """The writer of a store, which goes on with what is there, when it has added these shards."""
    writer = store.Writer(folder, key)
    for groups in shards:
        writer.write(table_of(groups), account(*groups))
    return writer


def iterations(stages: Sequence[int], groups_per_step: int, online_fraction: float = 0.0) -> tuple[Iteration, ...]:
    """Of stages with so many questions, which follow one another in the data."""
    ends = [0, *accumulate(stages)]
    plan = [(Stage(index=index, ratio=0.2), range(*ends[index : index + 2])) for index in range(len(stages))]
    return tuple(schedule.iterations(plan, groups_per_step, online_fraction))


def interval(value: float, n: int = 240) -> Interval:
    return Interval(value=value, low=max(0.0, value - 0.05), high=min(1.0, value + 0.05), n=n)


def accuracy(value: float, low: float, high: float, n: int = 720, **by_kind: float) -> Accuracy:
    kinds = {kind: interval(share) for kind, share in by_kind.items()}
    return Accuracy(value=value, low=low, high=high, n=n, by_kind=kinds)


def stage_outcome(stage: int = 0, ratio: float = 0.2, **changes: Any) -> StageOutcome:
    content: dict[str, Any] = {"stage": stage, "ratio": ratio, "sparsity": ratio - 0.00001 * bool(ratio)}
    content |= {"masked": {"layers.*.weight": 7}, "unmasked": {"embed_tokens.weight": 1}}
    content |= {"teacher_digest": f"{stage}a7c" * 16, "seconds": 41.2 + stage, "tokens": 100000, "tail_mass_sum": 31.0}
    content |= {"rows": 320, "answers": 2560, "unjudged": stage, "empty": 2}
    content |= {"set_aside": {"picture": 1, "engine": 2} if stage else {}}
    content |= {"compared": 2560 - stage, "judge_right": 1920 - stage, "rule_right": 1922 - stage}
    content |= {"judge_rule_agreements": 2550 - stage}
    content |= {"teacher_written": 1280, "teacher_judged": 100, "teacher_right": 88 + 2 * stage}
    content |= {"student_written": 1280, "student_judged": 100, "student_right": 62, "student_cut": 270}
    return StageOutcome(**(content | changes))


def step(number: int, **changes: Any) -> StepMetrics:
    """Of an offline step; what ``changes`` does not say is 0."""
    zeros: dict[str, Any] = dict.fromkeys(StepMetrics.__dataclass_fields__, 0.0)
    counts = {"stage": 0, "groups": 32, "answer_tokens": 768, "tokens": 1920, "fresh": 0}
    return StepMetrics(**(zeros | counts | {"step": number} | changes))


def split_facts(problems: int, quarantined: int) -> facts.SplitFacts:
    return facts.SplitFacts(problems=problems, quarantined=quarantined, digest="d" * 64, remarks=[])


def summary(**changes: Any) -> facts.Summary:
    """Of a finished run with five stages whose student has learned; ``changes`` are fields of it."""
    stages = [stage_outcome(stage, ratio) for stage, ratio in enumerate((0.2, 0.15, 0.1, 0.05, 0.0))]
    cut = {"teacher": 0.0, "student_before": 0.183, "student_after": 0.0}
    steps = {"steps": 50, "skipped": 1, "groups": 1600, "answer_tokens": 38400, "tokens": 96000}
    apart = LogprobMismatch(stage=0, rows=64, row="train/<7>", mean_gap=0.0123, token_gap=0.456, bound=0.1, apart=0)
    content: dict[str, Any] = {
        "accuracy": facts.Accuracies(
            teacher=accuracy(0.969, 0.957, 0.981, colour=0.985, place=0.949, shape=0.973),
            student_before=accuracy(0.612, 0.571, 0.652, colour=0.704, place=0.512, shape=0.620),
            student_after=accuracy(0.830, 0.802, 0.857, colour=0.880, place=0.768, shape=0.842),
        ),
        "evaluation": facts.EvaluationFacts(marked_by="rule", left_out=0, cut=cut, max_tokens=64, remarks=[]),
        "judge": Judge(),
        "answers": sum(stages, AnswerTally()),
        "stages": stages,
        "wall_seconds": 640.0,
        "phases": {"engines": 38.0, "evaluation before": 21.5, "rollouts": 216.0, "learner": 310.5, "rest": 20.1},
        "learner": facts.LearnerFacts(**steps, seconds=310.5, workers=2, zero_stage=2, left_out=3, agreement=[apart]),
        "train": split_facts(1600, 3),
        "held_out": split_facts(720, 0),
        "overlap": Overlap(same_question=0, same_picture=0, examples=[]),
        "teachers": [
            facts.ModelFacts(checkpoint="models/teacher", digest="0123456789abcdef" * 4, parameters=31_240_960)
        ],
        "student": facts.ModelFacts(checkpoint="models/student", digest="fedcba9876543210" * 4, parameters=3_754_622),
        "dir": "/runs/easy-vqa-7",
        "seed": 7,
        "started": "2026-03-01T10:20:30+00:00",
        "config_file": "conf/easy_vqa.yaml",
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "config": "run:\n  seed: 7\nschedule:\n  max_ratio: 0.2  # <of each matrix>\n",
        "change": Change(value=0.218, low=0.171, high=0.265, n=720, improved=190, regressed=33),
        "rewards": facts.RewardFacts(
            groups=100, mixed=71, above=3, level=8, disputed=6, reasons={"distillation": 9, "verdict": 4}
        ),
    }
    return facts.Summary(**(content | changes))
