from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from masters_ray.errors import UnreadableRowError
from masters_ray.learner.collate import Collator
from masters_ray.records import Picture, Rejected, RolloutGroup
from tests.builders import group, iterations, scored, table_of
from tests.conftest import PAIR
from tests.tensors import own_steps, prompt_of
from tests.unit.test_batches import PLAN, planned, rows

MODEL: Any = SimpleNamespace(
    model=SimpleNamespace(), config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=60))
)


@pytest.fixture
def collator() -> Collator:
    return Collator(PAIR / "student", MODEL, torch.device("cpu"), torch.float32)


@pytest.fixture
def good(collator: Collator) -> RolloutGroup:
    row = group(position=7, stage=2)
    return replace(row, prompt_tokens=len(prompt_of(MODEL, collator.chat, row.problem).input_ids))


def with_picture(row: RolloutGroup, picture: Picture) -> RolloutGroup:
    return replace(row, problem=replace(row.problem, pictures=(picture,)))


BROKEN: dict[str, Callable[[RolloutGroup], RolloutGroup]] = {
    "/nowhere/x.png": lambda row: with_picture(row, Picture(path="/nowhere/x.png")),
    "the processor cannot read its question or pictures": lambda row: with_picture(row, Picture(data=b"torn")),
    "expected a prompt of 5 tokens, as the engine read it": lambda row: replace(row, prompt_tokens=5),
    "or one beyond the student's 60": lambda row: replace(row, answers=(scored([5, 60]), row.answers[1])),
    "an answer has no tokens": lambda row: replace(row, answers=(scored([]), row.answers[1])),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_row_that_cannot_be_read_is_named_and_the_others_are_packed(
    reason: str, collator: Collator, good: RolloutGroup
) -> None:
    table = table_of([replace(good, position=1), BROKEN[reason](good)])
    failed: dict[int, Rejected] = {}
    micro = collator.read(table, [0, 1], failed)
    assert micro and micro.indices == [0] and len(micro.groups) == 1
    assert list(failed) == [1] and failed[1].row == "p7" and failed[1].kind == "learner"
    assert failed[1].reason.startswith("stage 2, position 7: ") and reason in failed[1].reason


@pytest.mark.parametrize("error", [StopIteration(), MemoryError()])
def test_whatever_a_processor_raises_is_the_rows_but_a_lack_of_memory(
    error: Exception, collator: Collator, good: RolloutGroup
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    collator.chat = SimpleNamespace(inputs=fail)  # type: ignore[assignment]
    with pytest.raises(MemoryError if isinstance(error, MemoryError) else UnreadableRowError):
        collator.prompt(good)


def test_a_row_that_is_unfit_is_left_out_as_it_is_stored_and_not_as_it_is_written_anew(
    collator: Collator, good: RolloutGroup
) -> None:
    collator.unfit = {(2, 7): "apart"}
    with pytest.raises(UnreadableRowError, match="apart"):
        collator.prompt(good)
    assert len(collator.prompt(replace(good, version=3)).input_ids)
    assert len(collator.prompt(replace(good, position=8)).input_ids)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_row_that_cannot_be_read_is_told_and_its_step_is_that_of_the_others(workers: int) -> None:
    there = [row for row in rows() if row.position != 2]
    expected = planned(there, [(replace(PLAN, rows=4), one) for one in iterations((5,), 4)])[0]
    unreadable: list[Rejected] = []
    taken: dict[int, int] = {}
    for rank in range(workers):
        part, _ = own_steps(planned(), 2, rank=rank, workers=workers)
        unreadable += part.unreadable.values()
        part = part.without({2})
        assert part.step.table == expected.table
        assert part.micro_batches, "a worker without rows has a dummy"
        for one in part.micro_batches:
            taken |= zip(one.indices, [row.position for row in one.groups], strict=False)
    assert unreadable == [Rejected(row="p2", reason="stage 0, position 2: its picture is gone", kind="learner")]
    assert taken == {0: 0, 1: 1, 2: 3}, "each row by one worker"


def test_a_worker_that_can_read_no_row_of_a_step_says_so() -> None:
    _, part = own_steps(planned(), 4)
    assert (list(part.unreadable), part.micro_batches) == ([0], [])
    assert len(part.without(part.unreadable).step.table) == 0
