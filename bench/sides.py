"""The learners that are compared: each makes the gradient of a loss, or takes a whole optimizer step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from bench.groups import TOP_K, Question, packed
from bench.models import LOGITS_BYTES
from masters_ray.batching import micro_batches
from masters_ray.config import Learner
from masters_ray.engines.hf import PackedStudent
from masters_ray.grpo import GroupTerms, Objective, group_terms
from masters_ray.packing import PackedBatch, sequence_tokens

KL_BETA = 0.1
CLIP = 0.2


def one_question(
    batch: PackedBatch, given: tuple[Tensor, Tensor, Tensor], answers: Tensor, jsd_weight: float = 1.0
) -> GroupTerms:
    """The loss's terms of those ``answers`` (bool [A]) of a batch, taken as one group. given: of the batch, by a
    PackedStudent."""
    logprobs, divergences, errors = given
    tokens = answers[batch.answer_of]
    answer_of = batch.answer_of[tokens]
    return group_terms(
        Objective(kl_beta=KL_BETA, clip_epsilon=CLIP, jsd_weight=jsd_weight),
        new_logprobs=logprobs[tokens],
        reference_logprobs=batch.reference_logprobs[tokens],
        token_jsd=divergences[tokens],
        token_jsd_error=errors[tokens],
        answer_of=answer_of - answer_of.min(),
        accuracy=batch.accuracy[answers],
        reasoning=batch.reasoning[answers],
        tokens_per_group=len(answer_of),
    )


class Masters:
    """This project's learner on one question: forward and backward without an optimizer."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.student = PackedStudent(model, LOGITS_BYTES)

    def backward(self, batch: PackedBatch, jsd_weight: float = 1.0) -> GroupTerms:
        """All answers of the batch are one group's, however they are packed."""
        self.model.zero_grad(set_to_none=True)
        everything = torch.ones_like(batch.accuracy, dtype=torch.bool)
        terms = one_question(batch, self.student(batch), everything, jsd_weight)
        terms.loss.backward()
        return terms


class Teacher:
    """A teacher that is asked while the student learns."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._packed = PackedStudent(model, LOGITS_BYTES)
        model.lm_head = _WholeVocabulary(model.lm_head.weight)

    @torch.no_grad()
    def score(self, batch: PackedBatch) -> PackedBatch:
        """The batch with this teacher's scores in place of the stored ones."""
        logprobs: Tensor = self._packed(batch)
        top_logprobs, top_ids = logprobs.topk(TOP_K)
        left_out = (1 - top_logprobs.exp().sum(-1)).clamp(min=0)
        return replace(batch, top_ids=top_ids, top_logprobs=top_logprobs, left_out=left_out)


class _WholeVocabulary(nn.Module):
    """An output head that gives log-probabilities of all tokens."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden: Tensor, _: PackedBatch) -> Tensor:
        return linear(hidden, self.weight).log_softmax(-1)


class Trl:
    """TRL's GRPO on one question: forward and backward without an optimizer."""

    def __init__(self, model: Any) -> None:
        from bench import trl_step

        if trl_step.BETA != KL_BETA:
            raise ValueError(f"the two learners weigh k3 differently: {trl_step.BETA} and {KL_BETA}")
        self.model = model
        self._step = trl_step.TrlStep(model)

    @staticmethod
    def inputs(question: Question, advantages: Tensor) -> dict[str, Any]:
        from bench.trl_step import prepared

        given = question.inputs
        return prepared(
            given["input_ids"][0],
            question.answers,
            given["pixel_values"],
            given["image_grid_thw"],
            given["mm_token_type_ids"][0],
            advantages,
            torch.stack([torch.from_numpy(answer.reference_logprobs) for answer in question.group.answers]),
        )

    def backward(self, inputs: dict[str, Any]) -> None:
        self.model.zero_grad(set_to_none=True)
        self._step.loss(inputs).backward()


MicroBatch = tuple[list[int], list[Question], PackedBatch]
"""Places in the step, the questions there, and the same packed."""


class Optimizer:
    """Whole optimizer steps of the learner's engine: DeepSpeed without ZeRO, AdamW, clipping; one worker."""

    def __init__(self, model: Any) -> None:
        from masters_ray.learner.engine import StudentEngine
        from masters_ray.learner.work import OperationCounter

        alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        os.environ.update(alone)
        settings = Learner(zero_stage=0, dtype="float32", frozen=["vision"])
        self.model = model
        self._operations = OperationCounter(model)
        self._engine = StudentEngine(PackedStudent(model, LOGITS_BYTES), settings, torch.device("cpu"))

    @staticmethod
    def batches(questions: Sequence[Question], budget: int) -> list[MicroBatch]:
        """Micro-batches of at most ``budget`` tokens."""
        rounds = micro_batches([sequence_tokens(one.group) for one in questions], workers=1, budget=budget)
        chosen = [(indices, [questions[index] for index in indices]) for [indices] in rounds]
        return [(indices, some, packed(some)) for indices, some in chosen]

    def step(self, batches: Sequence[MicroBatch]) -> int:
        """One step with all that the learner's loop does but read rows and report. Returns its necessary operations."""
        from masters_ray.learner.metrics import StepTally

        groups = sum(len(indices) for indices, _, _ in batches)
        tally = StepTally(groups)
        for indices, questions, batch in batches:
            with self._operations.counted(batch):
                given = self._engine.terms(batch)
            terms = [one_question(batch, given, batch.group_of == group) for group in range(len(indices))]
            self._engine.gradients.add(torch.stack([term.loss for term in terms]).sum() / groups)
            tally.add([one.group for one in questions], indices, terms, batch, given[0])
        operations = self._operations.take()
        tally.joined(self._engine.over_workers, operations)
        if self._engine.gradients.apply() is None:
            raise RuntimeError("the gradient is not finite")
        return operations
