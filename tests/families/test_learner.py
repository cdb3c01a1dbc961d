"""What the learner does with each family's model, beside transformers' own forward pass of each answer alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from masters_ray.config import Lora
from masters_ray.data import decode
from masters_ray.learner.collate import Collator
from masters_ray.method.prompts import question_messages
from masters_ray.models import hf, weights
from masters_ray.models.chat import Chat
from masters_ray.records import Picture, Problem, RolloutGroup
from tests.builders import group, png, scored

EXACT = 6e-6
SIZES = [[(64, 64), (40, 72)], [(33, 50)], [], [(64, 30)]]
"""Pictures of each question."""


def problem(place: int) -> Problem:
    pictures = tuple(Picture(data=png(size)) for size in SIZES[place])
    return Problem(id=f"p{place}", question="what color is the shape?" * (place + 1), label="red", pictures=pictures)


def rows() -> list[RolloutGroup]:
    lengths = [(3, 1, 7), (5, 2, 2), (1, 4), (9, 3)]
    return [
        group(
            [scored([20 + 7 * one + t for t in range(length)] + [1], seed=one) for one, length in enumerate(own)],
            position=place,
            of=problem(place),
        )
        for place, own in enumerate(lengths)
    ]


def alone(model: Any, chat: Chat, row: RolloutGroup) -> list[Tensor]:
    """The log-probs of each answer's tokens, from a forward pass of prompt and answer."""
    pictures = [decode(picture) for picture in row.problem.pictures]
    inputs = chat.inputs(question_messages(row.problem), pictures)
    return [hf.plain_logprobs(model, inputs, one.judged.answer.token_ids) for one in row.answers]


def test_every_matrix_is_known_and_counted(kind: str, checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(kind, layers=4)
    known = weights.architecture(folder)
    shapes = {name: entry.shape for name, entry in weights.headers(folder).items()}
    assert [name for name, shape in shapes.items() if known.is_unknown(name, shape)] == []
    counted = known.counted(shapes)
    expected = known.expected()
    assert {"language", "vision", "projector"} <= expected.keys()
    assert {part: counted[part] for part in expected} == expected
    assert counted["embeddings"] == 1


def test_answers_of_a_batch_are_what_they_are_alone(kind: str, checkpoint: Callable[..., Path]) -> None:
    """Groups with pictures of several sizes, two, one and none, in one micro-batch; gradients flow to every matrix."""
    folder, groups = checkpoint(kind), rows()
    plain, model = hf.load_model(folder, "float32").eval(), hf.load_model(folder, "float32")
    collator = Collator(folder, model, torch.device("cpu"), torch.float32)
    batch = collator.batch(groups, [collator.prompt_of(row) for row in groups])
    student = hf.PackedStudent(model, logits_bytes=2**20)
    logprobs, divergences, _ = student(batch)
    with torch.no_grad():
        expected = torch.cat([one for row in groups for one in alone(plain, collator.chat, row)])
    assert (logprobs - expected).abs().max() <= EXACT
    (logprobs.sum() + divergences.sum()).backward()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and weights.architecture(folder).part_of(name) == "language":
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_picture_that_nobody_asks_about_changes_no_answer(kind: str, checkpoint: Callable[..., Path]) -> None:
    """At ZeRO stage 3 a batch without pictures passes the vision tower all the same."""
    folder, row = checkpoint(kind), rows()[2]
    plain, model = hf.load_model(folder, "float32").eval(), hf.load_model(folder, "float32").eval()
    collator = Collator(folder, model, torch.device("cpu"), torch.float32, always_pictured=True)
    batch = collator.batch([row], [collator.prompt_of(row)])
    assert batch.vision
    with torch.no_grad():
        logprobs, *_ = hf.PackedStudent(model, logits_bytes=2**20)(batch)
        assert (logprobs - torch.cat(alone(plain, collator.chat, row))).abs().max() <= EXACT


def test_an_export_has_the_sources_names_and_shapes_and_gives_the_trained_logits(
    kind: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder, row = checkpoint(kind), rows()[0]
    hf.check_names(folder)
    model, chat = hf.load_model(folder, "float32"), Chat(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    state = dict(model.named_parameters())
    hf.export(state, folder, tmp_path / "exported", "float32")
    source, written = (weights.headers(one) for one in (folder, tmp_path / "exported"))
    assert written == source
    again = hf.load_model(tmp_path / "exported", "float32")
    with torch.no_grad():
        for one, other in zip(alone(model.eval(), chat, row), alone(again.eval(), chat, row), strict=True):
            assert torch.equal(one, other)
    handed_over = hf.in_checkpoint(state, folder, "float32")
    stored = load_file(tmp_path / "exported" / "model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in handed_over.items())


def test_adapters_are_on_the_language_models_layers_alone(kind: str, checkpoint: Callable[..., Path]) -> None:
    model = hf.load_model(checkpoint(kind), "float32")
    known = hf.known(model)
    wrapped = hf.add_adapters(model, Lora(rank=2))
    trained = [name for name, one in wrapped.named_parameters() if one.requires_grad]
    assert trained
    parts = {known.part_of(name.removeprefix("base_model.model.")) for name in trained}
    assert parts == {"language"}


@pytest.mark.parametrize("parts", [["vision"], ["vision", "projector"], ["language"]])
def test_frozen_parts_are_frozen_whole(kind: str, parts: list[Any], checkpoint: Callable[..., Path]) -> None:
    model = hf.load_model(checkpoint(kind), "float32")
    hf.freeze(model, parts)
    known = hf.known(model)
    for name, parameter in model.named_parameters():
        assert known.part_of(name) is not None, name
        assert parameter.requires_grad == (known.part_of(name) not in parts), name
