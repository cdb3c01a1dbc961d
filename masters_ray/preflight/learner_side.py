"""The learner's part of the checks: a Ray task on a learner's device, before engines start."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from ray.exceptions import RayError

from masters_ray.config import Config, Learner, Part
from masters_ray.data import decode
from masters_ray.errors import CheckpointError, LearnerError, MastersError
from masters_ray.families import parts_in
from masters_ray.kernels.packing import PackedBatch
from masters_ray.learner import work
from masters_ray.learner.collate import Collator
from masters_ray.learner.trainer import environment
from masters_ray.method.masks import MaskReport
from masters_ray.method.prompts import question_messages
from masters_ray.models import hf, weights
from masters_ray.models.chat import Chat
from masters_ray.records import Answer, JudgedAnswer, Problem, RolloutGroup, ScoredAnswer, TokenScores

T = TypeVar("T")
TokenIds = tuple[int, ...]
Logprobs = list[list[np.ndarray]]  # float32 [tokens] of each answer of each question
_WRITTEN = 16  # tokens of the answer that the model writes


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A student's answers to some questions with the learner's log-probs, which engines are compared with."""

    problems: list[Problem]
    answers: list[list[TokenIds]]  # of each question: its label, and what the model writes
    alone: Logprobs  # from transformers' forward pass over a prompt and one answer
    together: Logprobs  # from the learner's batch of all of them
    dtype: str  # number format of both
    export_fault: str  # why the export is not the model; "" if it is


def probe(config: Config, problems: Sequence[Problem]) -> Probe:
    """Runs ``measure`` as a Ray task with the CPUs and GPUs of a learner worker. Raises LearnerError when it fails."""
    return _on_a_worker(config.learner, measure, config.student.checkpoint, config.learner, list(problems))


def _on_a_worker(settings: Learner, function: Callable[..., T], *arguments: Any) -> T:
    options = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "max_retries": 0}
    task: Any = ray.remote(max_calls=1)(function)  # its process ends, and gives all memory back
    task = task.options(**options, runtime_env={"env_vars": environment(settings)})
    try:
        found: T = ray.get(task.remote(*arguments))
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, MastersError):
            raise cause from error
        raise LearnerError(f"a model could not be checked: {error}") from error
    return found


def measure(checkpoint: str, settings: Learner, problems: list[Problem]) -> Probe:
    folder, device, dtype = _placed(checkpoint, settings)
    problems += [replace(one, id=f"{one.id} without pictures", pictures=()) for one in problems if one.pictures]
    fault = ""
    try:
        hf.check_names(folder)
    except CheckpointError as error:
        fault = str(error)
    model = hf.load_model(folder, dtype).to(device).eval()
    collator = Collator(folder, model, device, getattr(torch, dtype))
    with torch.no_grad():
        answers, alone = _alone(model, collator, problems)
        if not fault:
            fault = _export_fault(model, folder, dtype, collator, problems[0], answers[0], alone[0])
        batch = _batch(collator, problems, answers)
        student = hf.PackedStudent(model, settings.logits_mib * 2**20)
        logprobs = student(batch.to(device))[0].float().cpu()
    of_answers = iter(logprobs.split([len(one) for own in answers for one in own]))
    together = [[next(of_answers).numpy() for _ in own] for own in answers]
    return Probe(problems=problems, answers=answers, alone=alone, together=together, dtype=dtype, export_fault=fault)


def masked_logprobs(
    config: Config, ratio: float, problems: Sequence[Problem], answers: Sequence[Sequence[TokenIds]]
) -> tuple[MaskReport, Logprobs]:
    """Runs ``_masked`` on the (first) teacher as a Ray task, where ``probe`` runs. Raises LearnerError."""
    parts, folder = frozenset(parts_in(config.teacher.mask)), config.teacher.checkpoint
    return _on_a_worker(config.learner, _masked, folder, config.learner, ratio, parts, list(problems), list(answers))


def _masked(
    checkpoint: str,
    settings: Learner,
    ratio: float,
    parts: frozenset[Part],
    problems: list[Problem],
    answers: list[list[TokenIds]],
) -> tuple[MaskReport, Logprobs]:
    folder, device, dtype = _placed(checkpoint, settings)
    model, report = hf.load_masked(folder, dtype, ratio, parts)
    model, chat = model.to(device), Chat(folder)
    found: Logprobs = []
    with torch.no_grad():
        for problem, own in zip(problems, answers, strict=True):
            inputs = _inputs(chat, problem, device)
            found.append([hf.plain_logprobs(model, inputs, one).cpu().numpy() for one in own])
    return report, found


def _placed(checkpoint: str, settings: Learner) -> tuple[Path, torch.device, str]:
    """Returns a checkpoint's directory, the device for it, and its number format: float32 where there is room."""
    folder, device = weights.locate(checkpoint), torch.device("cuda" if settings.gpus else "cpu")
    room = 0.6 * torch.cuda.mem_get_info(device)[0] if settings.gpus else 0.5 * work.available_memory()
    return folder, device, "float32" if 4 * weights.parameter_count(folder) < room else settings.dtype


def exported(config: Config, target: Path) -> Path:
    """Exports the untrained student to ``target``, where ``probe`` runs. Raises LearnerError."""
    _on_a_worker(config.learner, _exported, config.student.checkpoint, config.learner.dtype, target)
    return target


def _exported(checkpoint: str, dtype: str, target: Path) -> None:
    folder = weights.locate(checkpoint)
    hf.export(dict(hf.load_model(folder, dtype).named_parameters()), folder, target, dtype)


def _alone(
    model: Any, collator: Collator, problems: Sequence[Problem]
) -> tuple[list[list[TokenIds]], list[list[np.ndarray]]]:
    answers, logprobs = [], []
    # A placeholder in an answer would be read as a further picture.
    options = {
        "max_new_tokens": _WRITTEN,
        "do_sample": False,
        "suppress_tokens": collator.chat.placeholder_ids() or None,
    }
    for problem in problems:
        inputs = _inputs(collator.chat, problem, model.device)
        written = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        own = [collator.chat.answer_ids(problem.label) or (collator.pad_id,), tuple(written.tolist())]
        answers.append(own)
        logprobs.append([hf.plain_logprobs(model, inputs, one).cpu().numpy() for one in own])
    return answers, logprobs


def _inputs(chat: Chat, problem: Problem, device: torch.device) -> dict[str, torch.Tensor]:
    found = chat.inputs(question_messages(problem), list(map(decode, problem.pictures)))
    return {name: value.to(device) for name, value in found.items()}


def _batch(collator: Collator, problems: Sequence[Problem], answers: Sequence[Sequence[TokenIds]]) -> PackedBatch:
    groups = [_group(position, *one) for position, one in enumerate(zip(problems, answers, strict=True))]
    return collator.batch(groups, [collator.prompt_of(group) for group in groups])


def _group(position: int, problem: Problem, answers: Sequence[TokenIds]) -> RolloutGroup:
    """Returns a group whose rewards and teacher scores stand for nothing: only log-probs are computed of it."""
    rows = []
    for token_ids in answers:
        tokens = len(token_ids)
        answer = Answer(source="student", text="", token_ids=token_ids, finish="stop")
        top = TokenScores(
            top_ids=np.zeros((tokens, 1), np.int32),
            top_logprobs=np.zeros((tokens, 1), np.float32),
            left_out=np.zeros(tokens, np.float32),
        )
        judged = JudgedAnswer(answer=answer, accuracy=0, verdict="")
        rows.append(ScoredAnswer(judged=judged, teacher=top, reference_logprobs=np.zeros(tokens, np.float32)))
    return RolloutGroup(
        position=position,
        stage=0,
        mask_ratio=0.0,
        problem=problem,
        answers=tuple(rows),
        prompt_tokens=0,
        teacher_digest="",
        student_digest="",
    )


def _export_fault(
    model: Any,
    folder: Path,
    dtype: str,
    collator: Collator,
    problem: Problem,
    answers: Sequence[TokenIds],
    expected: Sequence[np.ndarray],
) -> str:
    with tempfile.TemporaryDirectory(prefix="masters-export-") as scratch:
        written = Path(scratch) / "student"
        hf.export(dict(model.named_parameters()), folder, written, dtype)
        if (own := weights.headers(written).keys()) != (source := weights.headers(folder).keys()):
            return f"the export and {folder} differ in {weights.some(sorted(own ^ source))}"
        again = hf.load_model(written, dtype).to(model.device).eval()
        inputs = _inputs(collator.chat, problem, model.device)
        for answer, before in zip(answers, expected, strict=True):
            if not np.array_equal(hf.plain_logprobs(again, inputs, answer).cpu().numpy(), before):
                return "the export gives other log-probs than the model that was exported"
    return ""
