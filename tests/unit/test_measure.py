import dataclasses
from pathlib import Path

from masters_ray.config import Learner
from masters_ray.learner.measure import measure
from masters_ray.models import hf
from masters_ray.models.chat import Chat
from masters_ray.records import RolloutGroup
from tests.builders import group, scored, written
from tests.conftest import PAIR
from tests.tensors import prompt_of


def test_a_row_that_cannot_be_read_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    student = PAIR / "student"
    model, chat = hf.load_model(student, "float32"), Chat(student)
    tokens = len(prompt_of(model, chat, group().problem).input_ids)
    rows: list[RolloutGroup] = [group([scored([40, 2]), scored([41, 2], seed=1)], position=place) for place in range(3)]
    rows = [dataclasses.replace(row, prompt_tokens=tokens + (row.position == 1)) for row in rows]
    folder = tmp_path / "stage-0"
    written(folder, {"stage": 0}, rows).finish({})
    [(found, unreadable)] = measure(str(student), Learner(cpus=0.5, dtype="float32"), [folder])
    assert [one.position for one in found] == [place for place in (0, 2) for _ in rows[place].answers]
    assert all(one.nats > 0 for one in found)
    [reason] = unreadable
    assert f"p1, stage 0, position 1: expected a prompt of {tokens + 1} tokens" in reason
