"""A teacher that is asked while the student learns, against stored scores of the whole vocabulary."""

import dataclasses

import pytest
import torch
from torch.nn.functional import linear

from masters_ray.errors import LearnerError
from masters_ray.kernels.live import LiveScores, live_terms
from masters_ray.kernels.packing import PackedBatch, pack
from masters_ray.learner.job import StagePlan
from masters_ray.learner.live import LiveTeacher
from masters_ray.method.divergence import top_k_jsd
from masters_ray.method.grpo import LossConfig, group_losses
from masters_ray.method.masks import MaskReport, masked
from masters_ray.models import hf, weights
from masters_ray.models.chat import Chat
from masters_ray.records import Problem, TokenScores
from masters_ray.store import codec
from tests.builders import group, scored
from tests.conftest import PAIR
from tests.tensors import prompt_of, random, top_k

TOKENS, WIDTH, VOCABULARY = 7, 5, 30


@pytest.mark.parametrize("logits_bytes", [1, 4 * 8 * VOCABULARY * 3, 2**20], ids="{} bytes".format)
def test_live_and_stored_agree_when_k_is_the_vocabulary(logits_bytes: int) -> None:
    hidden, weight = random(TOKENS, WIDTH).requires_grad_(), random(VOCABULARY, WIDTH, seed=1).requires_grad_()
    targets = torch.arange(TOKENS) * 3
    teacher = LiveScores(
        hidden=random(TOKENS, 4, seed=2), weight=random(VOCABULARY, 4, seed=3), bias=random(VOCABULARY, seed=4)
    )
    stored = top_k(linear(teacher.hidden, teacher.weight, teacher.bias).log_softmax(-1), VOCABULARY)
    logprobs = (hidden @ weight.T).log_softmax(-1)
    plain = logprobs[torch.arange(TOKENS), targets], top_k_jsd(logprobs, *stored)
    *live, left_out = live_terms(hidden, weight, None, targets, teacher, logits_bytes=logits_bytes)
    assert not left_out.any()
    gradients = []
    for own, divergences in (plain, live):
        loss = (own * random(TOKENS, seed=5) + divergences * random(TOKENS, seed=6)).sum()
        gradients.append(torch.autograd.grad(loss, [hidden, weight]))
    for one, other in zip((*live, *gradients[1]), (*plain, *gradients[0]), strict=True):
        assert torch.allclose(one, other, atol=1e-5 if one.ndim > 1 else 1e-6)


@pytest.fixture(scope="module")
def batch(questions: list[Problem]) -> PackedBatch:
    model, chat = hf.load_model(PAIR / "student", "float32"), Chat(PAIR / "student")
    rows = [group([scored([40, 41, 2]), scored([50, 2], accuracy=0)], of=problem) for problem in questions[:2]]
    return pack(rows, [prompt_of(model, chat, row.problem) for row in rows], pad_id=0)


def plan(ratio: float) -> StagePlan:
    report: list[MaskReport] = []
    for _ in masked(weights.tensors(PAIR / "teacher"), ratio, frozenset({"language"}), report):
        pass
    return StagePlan(
        stage=0,
        ratio=ratio,
        rows=1,
        teacher=str(PAIR / "teacher"),
        masked=("language",),
        teacher_digest=report[0].digest,
    )


def live_teacher() -> LiveTeacher:
    return LiveTeacher(torch.device("cpu"), "float32")


@pytest.fixture(scope="module")
def student() -> hf.PackedStudent:
    return hf.PackedStudent(hf.load_model(PAIR / "student", "float32"), logits_bytes=2**26)


def top_of(scores: LiveScores, k: int | None = None) -> TokenScores:
    """The k likeliest tokens, by default all."""
    logprobs = (scores.hidden @ scores.weight.T).log_softmax(-1)
    ids, top, left_out = top_k(logprobs, k or logprobs.shape[-1])
    return TokenScores(top_ids=ids.numpy(), top_logprobs=top.numpy(), left_out=left_out.numpy())


def with_scores(batch: PackedBatch, scores: TokenScores) -> PackedBatch:
    return dataclasses.replace(
        batch,
        top_ids=torch.from_numpy(scores.top_ids).long(),
        top_logprobs=torch.from_numpy(scores.top_logprobs),
        left_out=torch.from_numpy(scores.left_out),
    )


@torch.no_grad()
def test_the_stages_masked_teacher_is_loaded_and_gives_what_its_stored_scores_give(
    batch: PackedBatch, student: hf.PackedStudent
) -> None:
    teacher = live_teacher()
    found = []
    for ratio in (0.2, 0.0):
        scores = teacher.scores(plan(ratio), batch)
        live, from_store = student(batch, scores), student(with_scores(batch, top_of(scores)))
        assert torch.allclose(live[0], from_store[0], atol=1e-5)
        assert torch.allclose(live[1], from_store[1], atol=1e-6)
        found.append(live[1])
    assert (found[0] - found[1]).abs().max() > 1e-3, "the mask matters"


STORING = 1.6e-4
"""Nats. What storing scores in 511 steps moves a mean divergence by at most, beside leaving tokens out: as much as it
moves a token's on average (docs/BENCHMARKS.md)."""


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 4, 16], ids="k={}".format)
def test_a_real_teachers_stored_scores_lack_no_more_than_a_step_reports(
    k: int, batch: PackedBatch, student: hf.PackedStudent
) -> None:
    scores = live_teacher().scores(plan(0.2), batch)
    exact = top_of(scores, k)
    live, kept = student(batch, scores), student(with_scores(batch, exact))
    from_store = student(with_scores(batch, codec.decode(*codec.encode(exact))))
    assert (live[1] - kept[1] <= kept[2] + 1e-6).all(), "token by token, before anything is rounded"
    reported, whole = (group_losses(LossConfig(), batch, student, 5.0).metrics for student in (from_store, live))
    lacking = float((whole["jsd"] - reported["jsd"]).mean())
    assert STORING < lacking <= float(reported["jsd_error_bound"].mean()) + STORING
    assert not whole["jsd_error_bound"].any()


def test_a_teacher_that_is_not_the_one_of_the_rollouts_is_refused(batch: PackedBatch) -> None:
    with pytest.raises(LearnerError, match="stage 0 was made with"):
        live_teacher().scores(dataclasses.replace(plan(0.2), masked=("language", "vision")), batch)
