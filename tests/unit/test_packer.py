"""A stored row that cannot be read is named with its reason, whatever a processor raises; the others are packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from masters_ray.data import decode
from masters_ray.engines import hf
from masters_ray.errors import UnreadableRowError
from masters_ray.learner.packer import Packer
from masters_ray.prompts import question_messages
from masters_ray.records import Picture, RolloutGroup
from tests.builders import group, scored
from tests.conftest import PAIR

MODEL: Any = SimpleNamespace(
    model=SimpleNamespace(), config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=60))
)


@pytest.fixture(scope="module")
def packer() -> Packer:
    return Packer(PAIR / "student", MODEL, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def good(packer: Packer) -> RolloutGroup:
    row = group(position=7, stage=2)
    pictures = [decode(picture) for picture in row.problem.pictures]
    prompt = hf.prompt_tensors(MODEL, packer._chat, question_messages(row.problem), pictures)
    return replace(row, prompt_tokens=len(prompt.input_ids))


def with_picture(row: RolloutGroup, picture: Picture) -> RolloutGroup:
    return replace(row, problem=replace(row.problem, pictures=(picture,)))


BROKEN: dict[str, Callable[[RolloutGroup], RolloutGroup]] = {
    "/nowhere/x.png": lambda row: with_picture(row, Picture(path="/nowhere/x.png")),
    "the processor cannot read its question or pictures": lambda row: with_picture(row, Picture(data=b"torn")),
    "expected a prompt of 5 tokens, as the engine read it": lambda row: replace(row, prompt_tokens=5),
    "an answer has token 60; the student knows 60 tokens": lambda row: replace(
        row, answers=(scored([5, 60]), row.answers[1])
    ),
    "an answer has no tokens": lambda row: replace(row, answers=(scored([]), row.answers[1])),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_row_that_cannot_be_read_is_named(reason: str, packer: Packer, good: RolloutGroup) -> None:
    assert len(packer.pack([good]).layout.spans) == 1
    with pytest.raises(UnreadableRowError) as told:
        packer.pack([replace(good, position=1), BROKEN[reason](good)])
    assert str(told.value).startswith("p7 (stage 2, position 7): ") and reason in str(told.value)


@pytest.mark.parametrize("error", [StopIteration(), TypeError("'NoneType' object is not an iterator"), IndexError("9")])
def test_whatever_a_processor_raises_is_the_rows(error: Exception, packer: Packer, good: RolloutGroup) -> None:
    def fail(*_: Any) -> Any:
        raise error

    broken = Packer(PAIR / "student", MODEL, torch.device("cpu"), torch.float32)
    broken._chat = SimpleNamespace(inputs=fail)  # type: ignore[assignment]
    with pytest.raises(UnreadableRowError, match=rf"^p7 \(stage 2.*\({type(error).__name__}: "):
        broken.pack([good])
    broken._chat = SimpleNamespace(inputs=lambda *_: (_ for _ in ()).throw(MemoryError()))  # type: ignore[assignment]
    with pytest.raises(MemoryError):
        broken.pack([good])


def test_a_row_that_is_unfit_is_left_out_as_it_is_stored_and_not_as_it_is_written_anew(good: RolloutGroup) -> None:
    packer = Packer(PAIR / "student", MODEL, torch.device("cpu"), torch.float32)
    packer.unfit = {(2, 7): "apart"}
    with pytest.raises(UnreadableRowError, match="p7 .*: apart"):
        packer.pack([good])
    assert packer.pack([replace(good, version=3)]).layout.spans
    assert packer.pack([replace(good, position=8)]).layout.spans
