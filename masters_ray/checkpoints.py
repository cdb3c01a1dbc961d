"""Whether checkpoints can do what a run does with them: be masked, be trained. Reads headers, not weights."""

from __future__ import annotations

from pathlib import Path

from masters_ray.config import Config, MaskScope
from masters_ray.errors import Complaint
from masters_ray.parts import is_unknown, matrices_in, part_of
from masters_ray.schedule import ratios
from masters_ray.weight_files import headers, quantisation

_SHOWN = 3


def student(folder: Path) -> list[Complaint]:
    """A quantised student cannot be trained."""
    packed = quantisation(folder)
    if packed is None:
        return []
    return [
        Complaint(
            where="student.checkpoint",
            expected="weights that can be trained: float32, float16 or bfloat16",
            found=f"{folder}, which is quantised: {packed}",
            remedy="Take the checkpoint that it was made of.",
        )
    ]


def teacher(config: Config, number: int, folder: Path) -> list[Complaint]:
    """A teacher that is masked at some stage must have matrices to mask, all of them known; number: from 0."""
    one = config.of_teacher(number)
    key = "teacher" if number == 0 else f"growth[{number - 1}].teacher"
    if not any(ratio > 0 for ratio, _ in ratios(one.schedule)) and config.learner.teacher == "stored":
        return []
    packed = quantisation(folder)
    if packed is not None:
        return [
            Complaint(
                where=f"{key}.checkpoint",
                expected="weights that can be masked: float32, float16 or bfloat16",
                found=f"{folder}, which is quantised: {packed}",
                remedy="Take the checkpoint that it was made of; a teacher whose ratios are all 0 may be quantised.",
            )
        ]
    held = headers(folder)
    parts = scope(one.teacher.mask)
    complaints = []
    if not any(matrices_in(name, entry.shape) for name, entry in held.items() if part_of(name) in parts):
        complaints.append(
            Complaint(
                where=f"{key}.mask",
                expected=f"matrices of {' or '.join(sorted(parts)) or 'some part'} in {folder}",
                found="none",
                remedy="A mask would do nothing: name other parts, or set all ratios to 0.",
            )
        )
    unknown = sorted(name for name, entry in held.items() if is_unknown(name, entry.shape))
    if unknown:
        matrices = sum(matrices_in(name, entry.shape) for name, entry in held.items())
        complaints.append(
            Complaint(
                where=f"{key}.checkpoint",
                expected="weights whose names say which part of the model they belong to",
                found=f"{len(unknown)} of {matrices} matrices in no known part: {', '.join(unknown[:_SHOWN])}",
                remedy="This model's family is not supported as a masked teacher: whether these belong to the masked "
                "parts cannot be told.",
            )
        )
    return complaints


def scope(mask: MaskScope) -> set[str]:
    """The parts that are masked."""
    return {name for name, chosen in vars(mask).items() if chosen}
