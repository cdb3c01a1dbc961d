import dataclasses
from typing import Any

import pytest
import torch

from masters_ray.errors import LearnerError
from masters_ray.kernels.packing import pack
from masters_ray.learner.job import StagePlan
from masters_ray.learner.live import LiveTeacher
from masters_ray.models import hf
from masters_ray.models.chat import Chat
from masters_ray.records import Problem
from tests.builders import group, scored
from tests.conftest import PAIR
from tests.tensors import prompt_of, top_k


def plan(ratio: float) -> StagePlan:
    _, report = hf.load_masked(PAIR / "teacher", "float32", ratio, frozenset({"language"}))
    made_by: Any = {"teacher": str(PAIR / "teacher"), "masked": ("language",), "teacher_digest": report.digest}
    return StagePlan(stage=0, ratio=ratio, rows=1, **made_by)


@torch.no_grad()
def test_the_stages_masked_teacher_is_loaded_gives_what_its_stored_scores_give_and_no_other_is_taken(
    questions: list[Problem],
) -> None:
    model, chat = hf.load_model(PAIR / "student", "float32"), Chat(PAIR / "student")
    rows = [group([scored([40, 41, 2]), scored([50, 2], accuracy=0)], of=problem) for problem in questions[:2]]
    batch = pack(rows, [prompt_of(model, chat, row.problem) for row in rows], pad_id=0)
    student = hf.PackedStudent(model, logits_bytes=2**26)
    teacher = LiveTeacher(torch.device("cpu"), "float32")
    found = []
    for ratio in (0.2, 0.0):
        scores = teacher.scores(plan(ratio), batch)
        logprobs = (scores.hidden @ scores.weight.T).log_softmax(-1)
        ids, top, left_out = top_k(logprobs, logprobs.shape[-1])
        stored = dataclasses.replace(batch, top_ids=ids, top_logprobs=top, left_out=left_out)
        live, from_store = student(batch, scores), student(stored)
        assert torch.allclose(live[0], from_store[0], atol=1e-5)
        assert torch.allclose(live[1], from_store[1], atol=1e-6)
        found.append(live[1])
    assert (found[0] - found[1]).abs().max() > 1e-3, "the mask matters"
    with pytest.raises(LearnerError, match="stage 0 was made with"):
        teacher.scores(dataclasses.replace(plan(0.2), masked=("language", "vision")), batch)
