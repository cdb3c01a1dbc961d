"""A teacher that is asked while the student learns, against stored scores of the whole vocabulary."""

import dataclasses

import pytest
import torch

from masters_ray.config import Learner, Reward
from masters_ray.errors import LearnerError
from masters_ray.kernels.live import LiveScores
from masters_ray.kernels.packing import PackedBatch, pack
from masters_ray.learner.job import StagePlan
from masters_ray.learner.live import LiveTeacher
from masters_ray.method.grpo import group_losses
from masters_ray.method.masks import MaskReport, masked
from masters_ray.models import hf, weights
from masters_ray.models.chat import Chat
from masters_ray.records import Problem, TokenScores
from masters_ray.store import codec
from tests.builders import group, scored
from tests.conftest import PAIR
from tests.tensors import prompt_of, top_k


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
    reported, whole = (group_losses(Learner(), Reward(), batch, student, 5.0).metrics for student in (from_store, live))
    lacking = float((whole["jsd"] - reported["jsd"]).mean())
    assert STORING < lacking <= float(reported["jsd_error_bound"].mean()) + STORING
    assert not whole["jsd_error_bound"].any()


def test_a_teacher_that_is_not_the_one_of_the_rollouts_is_refused(batch: PackedBatch) -> None:
    with pytest.raises(LearnerError, match="stage 0 was made with"):
        live_teacher().scores(dataclasses.replace(plan(0.2), masked=("language", "vision")), batch)
