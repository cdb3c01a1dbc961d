"""A teacher that is asked while the student learns, against stored scores of the whole vocabulary."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from masters_ray import weights
from masters_ray.data import decode
from masters_ray.divergence import top_k_jsd
from masters_ray.engines import hf
from masters_ray.engines.chat import Chat
from masters_ray.errors import LearnerError
from masters_ray.grpo import Objective
from masters_ray.learner.job import LiveSource, StagePlan
from masters_ray.learner.live import LiveTeacher
from masters_ray.learner.terms import batch_terms
from masters_ray.live import LiveScores, live_terms
from masters_ray.masks import MaskReport, masked
from masters_ray.packing import PackedBatch, pack
from masters_ray.prompts import question_messages
from masters_ray.records import Problem, TokenScores
from masters_ray.store import codec
from tests.builders import group, scored
from tests.conftest import PAIR

TOKENS, WIDTH, VOCABULARY = 7, 5, 30


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sides(teacher_vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor, Tensor, LiveScores]:
    hidden, weight = random(TOKENS, WIDTH, seed=0).requires_grad_(), random(VOCABULARY, WIDTH, seed=1).requires_grad_()
    targets = torch.arange(TOKENS) * 3
    teacher = LiveScores(
        hidden=random(TOKENS, 4, seed=2),
        weight=random(teacher_vocabulary, 4, seed=3),
        bias=random(teacher_vocabulary, seed=4),
    )
    return hidden, weight, targets, teacher


def stored(teacher: LiveScores, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's top k, as rollouts would keep them exactly."""
    logprobs = linear(teacher.hidden, teacher.weight, teacher.bias).log_softmax(-1)
    top, ids = logprobs[:, :VOCABULARY].topk(k)
    return ids, top, (1 - top.exp().sum(-1)).clamp(min=0)


@pytest.mark.parametrize("logits_bytes", [1, 4 * 8 * VOCABULARY * 3, 2**20], ids="{} bytes".format)
def test_live_and_stored_agree_when_k_is_the_vocabulary(logits_bytes: int) -> None:
    hidden, weight, targets, teacher = sides()
    logprobs = (hidden @ weight.T).log_softmax(-1)
    expected = top_k_jsd(logprobs, *stored(teacher, VOCABULARY))
    own, found, left_out = live_terms(hidden, weight, None, targets, teacher, logits_bytes=logits_bytes)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not left_out.any()
    assert torch.allclose(own, logprobs[torch.arange(TOKENS), targets], atol=1e-6)
    slopes = random(2, TOKENS, seed=5)
    live = torch.autograd.grad((own * slopes[0] + found * slopes[1]).sum(), [hidden, weight])
    plain = torch.autograd.grad(
        (logprobs[torch.arange(TOKENS), targets] * slopes[0] + expected * slopes[1]).sum(), [hidden, weight]
    )
    for one, other in zip(live, plain, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_live_teacher_is_never_nearer_than_its_top_k() -> None:
    hidden, weight, targets, teacher = sides()
    _, live, _ = live_terms(hidden, weight, None, targets, teacher, logits_bytes=2**20)
    kept = top_k_jsd((hidden @ weight.T).log_softmax(-1), *stored(teacher, 5))
    assert (live - kept > -1e-7).all() and (live - kept).max() > 1e-3


def test_vocabularies_that_are_padded_differently_are_cut_to_what_is_common() -> None:
    hidden, weight, targets, teacher = sides(VOCABULARY + 4)
    _, found, errors = live_terms(hidden, weight, None, targets, teacher, logits_bytes=2**20)
    expected = top_k_jsd((hidden @ weight.T).log_softmax(-1), *stored(teacher, VOCABULARY))
    assert torch.allclose(found, expected, atol=1e-6)
    assert errors.abs().max() < 1e-5, "the student has no tokens there"


@pytest.fixture(scope="module")
def batch(questions: list[Problem]) -> PackedBatch:
    model, chat = hf.load_model(PAIR / "student", "float32"), Chat(PAIR / "student")
    rows = [group([scored([40, 41, 2]), scored([50, 2], accuracy=0)], of=problem) for problem in questions[:2]]
    prompts = [
        hf.prompt_tensors(
            model, chat, question_messages(row.problem), [decode(picture) for picture in row.problem.pictures]
        )
        for row in rows
    ]
    return pack(rows, prompts, pad_id=0)


def plan(ratio: float) -> StagePlan:
    report: list[MaskReport] = []
    for _ in masked(weights.tensors(PAIR / "teacher"), ratio, frozenset({"language"}), report):
        pass
    return StagePlan(stage=0, ratio=ratio, rows=1, teacher_digest=report[0].digest)


def test_the_stages_masked_teacher_is_loaded_and_gives_what_its_stored_scores_give(batch: PackedBatch) -> None:
    source = LiveSource(checkpoint=str(PAIR / "teacher"), parts=("language",))
    teacher = LiveTeacher([source], torch.device("cpu"), "float32")
    student = hf.PackedStudent(hf.load_model(PAIR / "student", "float32"), logits_bytes=2**26)
    found = []
    for ratio in (0.2, 0.0):
        scores = teacher.scores(plan(ratio), batch)
        logprobs = (scores.hidden @ scores.weight.T).log_softmax(-1)
        top, ids = logprobs.topk(logprobs.shape[-1])
        kept = dataclasses.replace(batch, top_ids=ids, top_logprobs=top, left_out=torch.zeros(len(ids)))
        with torch.no_grad():
            live, from_store = student(batch, scores), student(kept)
        assert torch.allclose(live[0], from_store[0], atol=1e-5)
        assert torch.allclose(live[1], from_store[1], atol=1e-6)
        found.append(live[1])
    assert (found[0] - found[1]).abs().max() > 1e-3, "the mask matters"


def with_scores(batch: PackedBatch, scores: TokenScores) -> PackedBatch:
    return dataclasses.replace(
        batch,
        top_ids=torch.from_numpy(scores.top_ids).long(),
        top_logprobs=torch.from_numpy(scores.top_logprobs),
        left_out=torch.from_numpy(scores.left_out),
    )


STORING = 1.6e-4
"""Nats. What storing scores in 511 steps moves a mean divergence by at most, beside leaving tokens out: as much as it
moves a token's on average (docs/BENCHMARKS.md)."""


@pytest.mark.parametrize("k", [1, 4, 16], ids="k={}".format)
def test_a_real_teachers_stored_scores_lack_no_more_than_a_step_reports(k: int, batch: PackedBatch) -> None:
    source = LiveSource(checkpoint=str(PAIR / "teacher"), parts=("language",))
    scores = LiveTeacher([source], torch.device("cpu"), "float32").scores(plan(0.2), batch)
    top, ids = (scores.hidden @ scores.weight.T).log_softmax(-1).topk(k)
    exact = TokenScores(
        top_ids=ids.numpy(),
        top_logprobs=top.numpy(),
        left_out=(1 - top.exp().sum(-1)).clamp(min=0).numpy(),
    )
    student = hf.PackedStudent(hf.load_model(PAIR / "student", "float32"), logits_bytes=2**26)
    with torch.no_grad():
        live = student(batch, scores)
        kept = student(with_scores(batch, exact))
        from_store = student(with_scores(batch, codec.decode(*codec.encode(exact))))
    assert (live[1] - kept[1] <= kept[2] + 1e-6).all(), "token by token, before anything is rounded"
    reported, whole = (
        batch_terms(Objective(), batch, own, divergences, errors, 5.0, None)
        for own, divergences, errors in (from_store, live)
    )
    lacking = sum(float(one.jsd - other.jsd) for one, other in zip(whole, reported, strict=True))
    assert STORING < lacking / 2 <= sum(float(one.jsd_error) for one in reported) / 2 + STORING
    assert [float(one.jsd_error) for one in whole] == [0.0, 0.0]


def test_a_teacher_that_is_not_the_one_of_the_rollouts_is_refused(batch: PackedBatch, tmp_path: Path) -> None:
    source = LiveSource(checkpoint=str(PAIR / "teacher"), parts=("language", "vision"))
    teacher = LiveTeacher([source], torch.device("cpu"), "float32")
    with pytest.raises(LearnerError, match="stage 0 was made with"):
        teacher.scores(plan(0.2), batch)
