"""Each family through real engines and the learner, in one process: masked teacher, answers, scores, a step, export,
in-place weights; engines beside transformers token by token."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm.model_executor.models import registry
from werkzeug.local import LocalProxy

from masters_ray.config import Engine, Learner, Part, Reward, Sampling
from masters_ray.data import decode
from masters_ray.learner.collate import Collator
from masters_ray.method.grpo import group_losses
from masters_ray.method.prompts import question_messages
from masters_ray.models import hf, weights
from masters_ray.models.chat import Chat
from masters_ray.records import Refused
from masters_ray.replicas.model import ReplicaModel
from tests.builders import group, replica_spec, scored
from tests.families.test_learner import problem

EXACT = {"qwen3_5": 0.5}
"""Largest difference of engine and transformers, nats; on CPUs vLLM computes recurrences in bfloat16 alone."""
USUAL = 5e-5
RATIO = 0.2
PARTS: tuple[Part, ...] = ("language",)
PROBLEMS = [problem(place) for place in range(4)]
ANSWERS = [[(20, 31, 42, 53, 1), (64, 75)] for _ in PROBLEMS]


@pytest.fixture(autouse=True)
def engines_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    variables |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # vLLM looks at each model's class in a process of its own, which imports everything anew.
    monkeypatch.setattr(registry, "_run_in_subprocess", lambda look: look())
    # vLLM reads every attribute of all loaded modules; those of Flask, which other tests load, want a request.
    for name, module in list(sys.modules.items()):
        if any(type(value) is LocalProxy for value in list(vars(module).values())):
            monkeypatch.delitem(sys.modules, name)


def replica(folder: Path, role: Any, toy_engine: Engine, **more: Any) -> ReplicaModel:
    exact = weights.architecture(folder).family.caches_prefixes
    engine = dataclasses.replace(toy_engine, max_pictures=2, dtype="float32" if exact else "bfloat16")
    return ReplicaModel(replica_spec(role, checkpoint=str(folder), engine=engine, **more))


def end(model: ReplicaModel) -> None:
    model.engine.loop.stop()


def furthest(model: ReplicaModel, plain: Any, chat: Chat) -> float:
    """The largest difference of the engine's log-probs from transformers'."""
    gaps = []
    for one, answers, own in zip(PROBLEMS, ANSWERS, model.own_logprobs(PROBLEMS, ANSWERS), strict=True):
        assert not isinstance(own, Refused), own.reason
        inputs = chat.inputs(question_messages(one), list(map(decode, one.pictures)))
        if "token_type_ids" in inputs:  # vLLM's attention on CPUs does not let a picture's tokens see later ones
            inputs["token_type_ids"] = torch.zeros_like(inputs["token_type_ids"])
        with torch.no_grad():
            expected = [hf.plain_logprobs(plain, inputs, answer).numpy() for answer in answers]
        gaps += [np.abs(found - wanted).max() for found, wanted in zip(own, expected, strict=True)]
    return float(max(gaps))


def same(one: ReplicaModel, before: list[Any]) -> bool:
    now = one.own_logprobs(PROBLEMS, ANSWERS)
    return all(
        np.array_equal(a, b)
        for own, was in zip(now, before, strict=True)
        for a, b in zip(cast(Any, own), was, strict=True)
    )


def test_the_teacher_is_masked_as_the_checkpoint_is_and_masked_again(
    kind: str, checkpoint: Callable[..., Path], toy_engine: Engine
) -> None:
    folder, parts = checkpoint(kind, layers=4, seed=1), PARTS
    teacher = replica(folder, "teacher", toy_engine, masked=parts, ratio=RATIO, ratios=(RATIO, 0.0))
    try:
        known, chat = weights.architecture(folder), Chat(folder)
        masked, _ = hf.load_masked(folder, "float32", RATIO, frozenset(parts))
        plain = hf.load_model(folder, "float32").eval()
        report = teacher.engine.mask(RATIO)
        assert sum(report.masked.values()) == known.expected()["language"]
        before = teacher.own_logprobs(PROBLEMS, ANSWERS)
        assert furthest(teacher, masked, chat) <= EXACT.get(kind, USUAL)
        assert teacher.engine.mask(0.0) != report
        assert furthest(teacher, plain, chat) <= EXACT.get(kind, USUAL)
        assert teacher.engine.mask(RATIO) == report
        assert kind in EXACT or same(teacher, before)
    finally:
        end(teacher)


def test_a_student_answers_learns_is_exported_and_taken_in(
    kind: str, checkpoint: Callable[..., Path], toy_engine: Engine, tmp_path: Path
) -> None:
    folder = checkpoint(kind)
    student = replica(folder, "student", toy_engine)
    try:
        model = hf.load_model(folder, "float32")
        collator = Collator(folder, model, torch.device("cpu"), torch.float32)
        assert furthest(student, model.eval(), collator.chat) <= EXACT.get(kind, USUAL)
        written = student.answer(PROBLEMS, Sampling(max_tokens=8), 2, [1, 2, 3, 4])
        assert written.scored.refused == {}
        groups = [
            group([scored(one.token_ids, seed=place, source="student") for one in answers], position=place, of=asked)
            for place, (asked, answers) in enumerate(zip(PROBLEMS, written.answers, strict=True))
        ]
        groups = [
            dataclasses.replace(row, prompt_tokens=tokens)
            for row, tokens in zip(groups, written.scored.prompt_tokens, strict=True)
        ]
        hf.freeze(model, ["vision"])
        packed = hf.PackedStudent(model.train(), logits_bytes=2**20)
        batch = collator.batch(groups, [collator.prompt(row) for row in groups])
        settings = Learner()
        outputs = group_losses(settings, Reward(), batch, packed(batch), 8.0, None)
        outputs.loss.sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.05 * parameter.grad / (1e-6 + parameter.grad.norm()))
        state = {name: one.detach() for name, one in model.named_parameters()}
        hf.export(state, folder, tmp_path / "trained", "float32")
        trained = hf.load_model(tmp_path / "trained", "float32").eval()
        assert kind in EXACT or furthest(student, trained, collator.chat) > 10 * USUAL
        if weights.architecture(folder).family.remask == "in_place":
            handed_over = hf.in_checkpoint(state, folder, "float32")
            student.engine.loop.alone(lambda llm: take_in(llm, handed_over))
            assert furthest(student, trained, collator.chat) <= EXACT.get(kind, USUAL)
    finally:
        end(student)
    again = replica(tmp_path / "trained", "student", toy_engine)
    try:
        assert furthest(again, trained, collator.chat) <= EXACT.get(kind, USUAL)
        said = again.answer_greedily(PROBLEMS, 8)
        assert not any(isinstance(one, Refused) for one in said)
    finally:
        end(again)


def take_in(llm: Any, tensors: dict[str, Tensor]) -> None:
    """What a version of the student does in an engine, without the way there."""
    llm.collective_rpc(lambda worker: worker._reload(iter(tensors.items())))
    llm.reset_prefix_cache()
    llm.llm_engine.reset_mm_cache()
    llm.llm_engine.reset_encoder_cache()
